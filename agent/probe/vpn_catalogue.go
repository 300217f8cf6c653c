package probe

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

//go:embed vpn_catalogue.json
var shippedCatalogue []byte

// catalogueFile lets an administrator add clients or replace shipped ones of
// the same name.
const catalogueFile = "etc/pfoertner/vpn-clients.json"

// vpnProduct says how one VPN client shows on a notebook. It is data: the
// shipped ones are in vpn_catalogue.json.
type vpnProduct struct {
	// Product is its name in evidence.
	Product string `json:"product"`
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

// loadCatalogue returns the shipped catalogue with the administrator's entries
// added.
func loadCatalogue(files fs.FS) ([]vpnProduct, error) {
	products, err := parseCatalogue(shippedCatalogue)
	if err != nil {
		return nil, fmt.Errorf("shipped catalogue: %w", err)
	}
	content, err := fs.ReadFile(files, catalogueFile)
	if errors.Is(err, fs.ErrNotExist) {
		return products, nil
	}
	if err != nil {
		return nil, err
	}
	own, err := parseCatalogue(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", catalogueFile, err)
	}
	for _, product := range own {
		i := slices.IndexFunc(products, func(p vpnProduct) bool { return p.Product == product.Product })
		if i < 0 {
			products = append(products, product)
			continue
		}
		products[i] = product
	}
	return products, nil
}

// parseCatalogue reads a JSON list of products. Unknown keys are errors: a
// misspelt one would make a client invisible.
func parseCatalogue(content []byte) ([]vpnProduct, error) {
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	var products []vpnProduct
	if err := decoder.Decode(&products); err != nil {
		return nil, err
	}
	for _, p := range products {
		if p.Product == "" {
			return nil, errors.New("an entry without a product")
		}
		for _, program := range p.Programs {
			if !fs.ValidPath(program) {
				return nil, fmt.Errorf("%s: program %q is not a path without a leading slash", p.Product, program)
			}
		}
	}
	return products, nil
}
