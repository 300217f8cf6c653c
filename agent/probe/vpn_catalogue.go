package probe

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed vpn_catalogue.json
var shippedCatalogue []byte

// catalogueFile lets an administrator add clients or replace shipped ones of
// the same name.
const catalogueFile = "etc/pfoertner/vpn-clients.json"

// catalogueFormat rises when an older agent could not read a catalogue any more.
const catalogueFormat = 1

// Limits of a catalogue.
const (
	maxProducts      = 200
	maxProductItems  = 40  // in any list of a product
	maxCatalogueText = 250 // bytes of any text
)

// vpnProduct says how one VPN client shows on a notebook. It is data: the
// shipped ones are in vpn_catalogue.json, described in docs/vpn-clients.md.
type vpnProduct struct {
	// Product is its name in evidence.
	Product string `json:"product"`
	// Comment is for people.
	Comment string `json:"comment"`
	// Programs: the client is installed when any of these files exists. No
	// leading slash.
	Programs []string `json:"programs"`
	// Packages of distributions whose version is the client's, best first.
	Packages []string `json:"packages"`
	// Units of systemd that run it, patterns allowed. Not those that only start
	// others: Debian's openvpn.service is active without any openvpn.
	Units []string `json:"units"`
	// Processes that must run for it to work. Empty: the kernel does the work,
	// and the service runs when a link is there.
	Processes []string `json:"processes"`
	// Links it makes.
	Links []linkPattern `json:"links"`
	// IPsec: its tunnels are policies of the kernel, whatever the route says.
	IPsec bool `json:"ipsec"`
	// WireGuard: its links tell when they last shook hands.
	WireGuard bool `json:"wireguard"`
	// NetworkManager is the VPN plugin's service or the connection type that
	// NetworkManager has for it; "*" is NetworkManager itself.
	NetworkManager string `json:"network_manager"`
	// Windows is how it shows there; nil when it is not known there.
	Windows *windowsFootprint `json:"windows"`
}

// windowsFootprint says how a client shows on Windows.
type windowsFootprint struct {
	// Services: the client is installed when any of them is there. A name that
	// ends in "*" is a prefix.
	Services []string `json:"services"`
	// Paths tell clients apart that have the same services: the path of the
	// service's program has to contain one of them. Such a service belongs to
	// no client without paths.
	Paths []string `json:"paths"`
	// Adapters are the beginnings of its adapters' descriptions: the second one
	// is called "… #2". Where several clients match, the longest beginning wins.
	Adapters []string `json:"adapters"`
	// Types are those of links (IANA ifType) that are its own when no client's
	// adapter matches.
	Types []uint32 `json:"types"`
	// Publishers may sign its programs: common names of their certificates.
	Publishers []string `json:"publishers"`
	// RemoteAccess: it is Windows' own client. It is always there, so it is
	// reported when it is in use; the Remote Access Service knows its sessions.
	RemoteAccess bool `json:"remote_access"`
}

// linkPattern matches links by kind and beginning of the name.
type linkPattern struct {
	Kind   string `json:"kind"`
	Prefix string `json:"prefix"`
}

func (p linkPattern) matches(l Link) bool {
	return l.Kind == p.Kind && strings.HasPrefix(l.Name, p.Prefix)
}

// tunnelKind says whether links of this kind hide what goes through them.
// Plain encapsulation (gre, sit) does not; ppp is also every mobile modem.
func tunnelKind(l Link) bool {
	kinds := []string{"tun", "wireguard", "xfrm", "vti", "vti6", "ovpn", "ovpn-dco"}
	// clatd's tun carries IPv4 over IPv6-only mobile networks, in clear.
	return slices.Contains(kinds, l.Kind) && !strings.HasPrefix(l.Name, "clat")
}

// VPNCatalogue is what the probes know of VPN clients beyond the shipped list.
// The zero value knows nothing more; it may be used by several goroutines.
type VPNCatalogue struct {
	mu    sync.Mutex
	added []vpnProduct
}

// catalogueContent is the content of a catalogue that is sent to agents.
type catalogueContent struct {
	Format int `json:"format"`
	// Sequence rises with every catalogue: agents never go back.
	Sequence uint64       `json:"sequence"`
	Clients  []vpnProduct `json:"clients"`
}

// Sequence checks a catalogue's content and returns its sequence, which is
// never zero.
func (c *VPNCatalogue) Sequence(content []byte) (uint64, error) {
	parsed, err := parseContent(content)
	return parsed.Sequence, err
}

// Extend uses a catalogue's content from now on: its clients are added to the
// shipped ones and replace those of the same name. Nil content takes them away
// again. After an error everything is as before.
func (c *VPNCatalogue) Extend(content []byte) error {
	var added []vpnProduct
	if content != nil {
		parsed, err := parseContent(content)
		if err != nil {
			return err
		}
		added = parsed.Clients
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.added = added
	return nil
}

func (c *VPNCatalogue) extension() []vpnProduct {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.added
}

func parseContent(content []byte) (catalogueContent, error) {
	var c catalogueContent
	if err := decodeStrictly(content, &c); err != nil {
		return catalogueContent{}, fmt.Errorf("VPN catalogue: %w", err)
	}
	switch {
	case c.Format != catalogueFormat:
		return catalogueContent{}, fmt.Errorf("VPN catalogue: format %d, this agent knows %d", c.Format, catalogueFormat)
	case c.Sequence == 0:
		return catalogueContent{}, errors.New("VPN catalogue: without a sequence")
	}
	err := checkProducts(c.Clients)
	for _, p := range c.Clients {
		for _, program := range p.Programs {
			// What comes from far away never looks into homes.
			if !slices.ContainsFunc([]string{"usr/", "opt/", "bin/", "sbin/", "snap/"}, func(dir string) bool { return strings.HasPrefix(program, dir) }) {
				err = errors.Join(err, fmt.Errorf("%s: program %q is not where programs are installed", p.Product, program))
			}
		}
	}
	if err != nil {
		return catalogueContent{}, fmt.Errorf("VPN catalogue: %w", err)
	}
	return c, nil
}

// loadCatalogue returns the shipped catalogue, over it the administrator's own
// entries (files may be nil where there can be none), over both those of the
// collector.
func loadCatalogue(files fs.FS, extension *VPNCatalogue) ([]vpnProduct, error) {
	products, err := parseCatalogue(shippedCatalogue)
	if err != nil {
		return nil, fmt.Errorf("shipped catalogue: %w", err)
	}
	own, err := ownCatalogue(files)
	if err != nil {
		return nil, err
	}
	for _, product := range slices.Concat(own, extension.extension()) {
		i := slices.IndexFunc(products, func(p vpnProduct) bool { return p.Product == product.Product })
		if i < 0 {
			products = append(products, product)
			continue
		}
		products[i] = product
	}
	return products, nil
}

func ownCatalogue(files fs.FS) ([]vpnProduct, error) {
	if files == nil {
		return nil, nil
	}
	content, err := fs.ReadFile(files, catalogueFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	own, err := parseCatalogue(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", catalogueFile, err)
	}
	return own, nil
}

// parseCatalogue reads a JSON list of products.
func parseCatalogue(content []byte) ([]vpnProduct, error) {
	var products []vpnProduct
	if err := decodeStrictly(content, &products); err != nil {
		return nil, err
	}
	return products, checkProducts(products)
}

// decodeStrictly takes unknown keys for errors: a misspelt one would make a
// client invisible.
func decodeStrictly(content []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("something follows the end")
	}
	return nil
}

func checkProducts(products []vpnProduct) error {
	if len(products) > maxProducts {
		return fmt.Errorf("%d clients, at most %d are taken", len(products), maxProducts)
	}
	seen := map[string]bool{}
	for _, p := range products {
		if err := p.check(); err != nil {
			return fmt.Errorf("%.40q: %w", p.Product, err)
		}
		if seen[p.Product] {
			return fmt.Errorf("%q stands there twice", p.Product)
		}
		seen[p.Product] = true
	}
	return nil
}

// check refuses what would match nothing, or everything.
func (p vpnProduct) check() error {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,39}$`).MatchString(p.Product) {
		return errors.New("an entry without a product, or with a name that is none")
	}
	lists := [][]string{{p.Comment, p.NetworkManager}, p.Programs, p.Packages, p.Units, p.Processes}
	for _, program := range p.Programs {
		if !fs.ValidPath(program) {
			return fmt.Errorf("program %q is not a path without a leading slash", program)
		}
	}
	for _, l := range p.Links {
		if l.Kind == "" {
			return errors.New("a link without a kind")
		}
		lists = append(lists, []string{l.Kind, l.Prefix})
	}
	if w := p.Windows; w != nil {
		lists = append(lists, w.Services, w.Paths, w.Adapters, w.Publishers)
		if err := w.check(); err != nil {
			return err
		}
	}
	if len(p.Links) > maxProductItems {
		return fmt.Errorf("more than %d links", maxProductItems)
	}
	for _, list := range lists {
		if len(list) > maxProductItems {
			return fmt.Errorf("a list of %d, at most %d are taken", len(list), maxProductItems)
		}
		for _, text := range list {
			if len(text) > maxCatalogueText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
				return fmt.Errorf("%.40q is too long or no text", text)
			}
		}
	}
	return nil
}

func (w *windowsFootprint) check() error {
	if len(w.Services) == 0 {
		return errors.New("nothing tells whether it is installed on Windows: a service is needed")
	}
	if len(w.Types) > maxProductItems {
		return fmt.Errorf("more than %d types", maxProductItems)
	}
	for _, s := range w.Services {
		if !regexp.MustCompile(`^[^\\/*]{3,80}\*?$`).MatchString(s) {
			return fmt.Errorf("service %.40q is no name and no beginning of one", s)
		}
	}
	for _, texts := range [][]string{w.Adapters, w.Paths, w.Publishers} {
		for _, text := range texts {
			if len(bareName(text)) < 3 {
				return fmt.Errorf("%q would match too much", text)
			}
		}
	}
	return nil
}
