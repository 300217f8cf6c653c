package openvpn

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Finding is one thing about a server's configuration.
type Finding struct {
	// Unsafe: the gate does not start beside it. Otherwise it is good to know.
	Unsafe bool
	// Where is "file:line", or the file for what is missing from it.
	Where string
	// Problem is what could happen, Remedy the line to change.
	Problem, Remedy string
}

func (f Finding) String() string {
	return fmt.Sprintf("%s: %s. %s.", f.Where, f.Problem, f.Remedy)
}

// Review is what Check found.
type Review struct {
	// Device is the tunnel interface that the server makes.
	Device   string
	Findings []Finding
}

// Unsafe are the findings beside which the gate does not start.
func (r Review) Unsafe() []Finding {
	return slices.DeleteFunc(slices.Clone(r.Findings), func(f Finding) bool { return !f.Unsafe })
}

// Check reads a server's configuration and finds what would let packets or
// sessions pass the gate by. Socket is the management socket that the gate
// will use. An error says that the configuration could not be read in full:
// then nothing is known.
func Check(path, socket string) (Review, error) {
	directives, err := readConfig(path)
	if err != nil {
		return Review{}, fmt.Errorf("openvpn configuration: %w", err)
	}
	c := checker{path: path, socket: socket, seen: map[string][]directive{}}
	for _, d := range directives {
		c.seen[d.name] = append(c.seen[d.name], d)
	}
	c.device()
	c.server()
	c.certificates()
	c.management()
	c.bypasses()
	c.notes()
	return c.review, nil
}

type checker struct {
	path   string
	socket string
	seen   map[string][]directive
	review Review
}

func (c *checker) refuse(where, problem, remedy string) {
	c.review.Findings = append(c.review.Findings, Finding{Unsafe: true, Where: where, Problem: problem, Remedy: remedy})
}

func (c *checker) note(where, problem, remedy string) {
	c.review.Findings = append(c.review.Findings, Finding{Where: where, Problem: problem, Remedy: remedy})
}

// last is the directive that counts: the last one, as OpenVPN takes it.
func (c *checker) last(name string) (directive, bool) {
	all := c.seen[name]
	if len(all) == 0 {
		return directive{}, false
	}
	return all[len(all)-1], true
}

// forbid refuses every appearance of a directive.
func (c *checker) forbid(name, problem, remedy string) {
	for _, d := range c.seen[name] {
		c.refuse(d.where(), problem, remedy)
	}
}

func (c *checker) device() {
	d, ok := c.last("dev")
	name := d.arg(0)
	kind, typed := c.last("dev-type")
	switch {
	case !ok:
		c.refuse(c.path, "no tunnel device is named, so the packet filter cannot guard it", "Add 'dev tun0'")
	case strings.HasPrefix(name, "tap") || typed && kind.arg(0) == "tap":
		c.refuse(d.where(), "a tap device carries Ethernet frames past the packet filter", "Use 'dev tun0'")
	case name == "tun":
		c.refuse(d.where(), "the tunnel device gets any free number, so the packet filter cannot guard it", "Name it: 'dev tun0'")
	case !strings.HasPrefix(name, "tun") && !typed:
		c.refuse(d.where(), "the kind of the tunnel device is not known", "Add 'dev-type tun'")
	default:
		c.review.Device = name
	}
}

func (c *checker) server() {
	_, server := c.last("server")
	_, server6 := c.last("server-ipv6")
	mode, _ := c.last("mode")
	if !server && !server6 && mode.arg(0) != "server" {
		c.refuse(c.path, "this is not the configuration of a server", "Add 'server NETWORK NETMASK'")
	}
	c.forbid("secret", "a shared key names no device", "Remove it and use certificates")
	c.forbid("server-bridge", "a bridge carries Ethernet frames past the packet filter", "Use 'server NETWORK NETMASK'")
}

func (c *checker) certificates() {
	if d, ok := c.last("verify-client-cert"); ok && d.arg(0) != "require" && len(d.args) > 0 {
		c.refuse(d.where(), "clients without a certificate get in", "Change it to 'verify-client-cert require'")
	}
	c.forbid("client-cert-not-required", "clients without a certificate get in", "Remove it")
	c.forbid("duplicate-cn", "two sessions of one certificate can live at the same time", "Remove it")
	for _, d := range c.seen["auth-gen-token"] {
		if !slices.Contains(d.args, "external-auth") {
			c.refuse(d.where(), "a client reconnects with its token and the gate is not asked",
				"Add external-auth: 'auth-gen-token LIFETIME external-auth', or remove the line")
		}
	}
}

func (c *checker) management() {
	if _, ok := c.last("management-client-auth"); !ok {
		c.refuse(c.path, "the server lets clients in without asking the gate", "Add 'management-client-auth'")
	}
	d, ok := c.last("management")
	switch {
	case !ok:
		c.refuse(c.path, "the server has no management socket, so the gate cannot speak with it",
			fmt.Sprintf("Add 'management %s unix'", c.socket))
	case d.arg(1) != "unix":
		c.refuse(d.where(), "anyone who reaches the management port can let clients in",
			fmt.Sprintf("Change it to 'management %s unix'", c.socket))
	case filepath.Clean(d.arg(0)) != filepath.Clean(c.socket):
		c.refuse(d.where(), fmt.Sprintf("the management socket is not the one that the gate is told to use (%s)", c.socket),
			fmt.Sprintf("Change it to 'management %s unix'", c.socket))
	}
	c.forbid("management-client", "the server would connect to the gate instead of waiting for it", "Remove it")
}

func (c *checker) bypasses() {
	c.forbid("client-to-client", "clients reach one another inside the server, past the packet filter", "Remove it")
	c.forbid("iroute", "a network behind a client has no session of its own", "Remove it")
	c.forbid("port-share", "connections that are no VPN are passed on to another server", "Remove it")
}

func (c *checker) notes() {
	if _, ok := c.last("auth-user-pass-optional"); !ok {
		c.note(c.path, "clients that send a certificate but no user name are refused by the server",
			"Add 'auth-user-pass-optional' if clients have certificates only")
	}
	if d, ok := c.last("management-signal"); ok {
		c.note(d.where(), "every session ends when the gate is restarted", "Remove it to keep sessions until their lease ends")
	}
	if d, ok := c.last("reneg-sec"); ok && d.arg(0) == "0" {
		c.note(d.where(), "certificates are not looked at again while a session lives", "Remove it")
	}
	if d, ok := c.last("client-config-dir"); ok {
		c.note(d.where(), "networks behind clients (iroute) named there are dropped by the packet filter", "Leave iroute out of those files")
	}
	if _, ok := c.last("disable-dco"); !ok {
		c.note(c.path, "where the kernel has data channel offload, it and not OpenVPN checks the source addresses of clients",
			"Add 'disable-dco' if the kernel module is older than OpenVPN 2.6.2")
	}
}
