//go:build linux

package nft

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Indices of sets by family.
const (
	v4 = iota
	v6
)

// interfaceNameSize is IFNAMSIZ (linux/if.h), maxInterfaceName the same without
// the zero byte.
const (
	interfaceNameSize = 16
	maxInterfaceName  = interfaceNameSize - 1
)

// errNoElement is what the kernel says of an element that is not there.
const errNoElement = syscall.ENOENT

// ourPriority puts the chains before those of common firewalls (filter, 0):
// what is dropped here is not counted or logged elsewhere.
const ourPriority = -10

// install puts the whole table in place. What it makes reads as:
//
//	table inet pfoertner {
//	  set admit4 { type ipv4_addr; flags timeout }       and admit6
//	  set quarantine4 { type ipv4_addr; flags timeout }  and quarantine6
//	  set remedy4 { type ipv4_addr; flags interval }     and remedy6
//	  set tunnels { type ifname }
//	  set gateway_tcp, gateway_udp { type inet_service }
//	  chain forward {
//	    type filter hook forward priority -10; policy accept
//	    iifname @tunnels oifname @tunnels counter drop
//	    iifname @tunnels goto from_tunnel
//	    oifname @tunnels goto to_tunnel
//	  }
//	  chain input { type filter hook input priority -10; policy accept
//	    iifname @tunnels goto to_gateway }
//	  chain from_tunnel { … counter drop }
//	  …
//	}
func (f *Filter) install(anew bool) error {
	conn, err := f.dial()
	if err != nil {
		return err
	}
	if anew {
		conn.AddTable(f.table) // so that there is one to delete
		conn.DelTable(f.table)
	}
	r := &ruleset{conn: conn, table: conn.AddTable(f.table)}
	f.admit = r.leases("admit")
	f.quarantine = r.leases("quarantine")
	r.remedy = r.remedies(f.options.Remedies)
	r.admit, r.quarantine = f.admit, f.quarantine
	r.tunnels = r.fixed("tunnels", nftables.TypeIFName, interfaceNames(f.options.Devices))
	r.tcp = r.fixed("gateway_tcp", nftables.TypeInetService, ports(f.options.TCP))
	r.udp = r.fixed("gateway_udp", nftables.TypeInetService, ports(f.options.UDP))
	r.chains()
	if r.err != nil {
		return r.err
	}
	return conn.Flush()
}

// ruleset writes the table. The first error stays.
type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
	err   error

	admit, quarantine, remedy [2]*nftables.Set
	tunnels, tcp, udp         *nftables.Set
}

func (r *ruleset) add(s *nftables.Set) *nftables.Set {
	s.Table = r.table
	if err := r.conn.AddSet(s, nil); err != nil && r.err == nil {
		r.err = err
	}
	return s
}

// leases makes the two sets of one kind of lease. They keep their elements
// when they exist.
func (r *ruleset) leases(name string) [2]*nftables.Set {
	return [2]*nftables.Set{
		v4: r.add(&nftables.Set{Name: name + "4", KeyType: nftables.TypeIPAddr, HasTimeout: true, Timeout: longest}),
		v6: r.add(&nftables.Set{Name: name + "6", KeyType: nftables.TypeIP6Addr, HasTimeout: true, Timeout: longest}),
	}
}

// fixed makes a set that holds what the configuration says, and nothing that
// an earlier one said.
func (r *ruleset) fixed(name string, key nftables.SetDatatype, elements []nftables.SetElement) *nftables.Set {
	s := &nftables.Set{Name: name, KeyType: key}
	if key == nftables.TypeIFName {
		s.KeyByteOrder = binaryutil.NativeEndian // so that `nft list` can read it
	}
	r.add(s)
	r.fill(s, elements)
	return s
}

func (r *ruleset) fill(s *nftables.Set, elements []nftables.SetElement) {
	r.conn.FlushSet(s)
	if len(elements) == 0 {
		return
	}
	if err := r.conn.SetAddElements(s, elements); err != nil && r.err == nil {
		r.err = err
	}
}

func (r *ruleset) remedies(prefixes []netip.Prefix) [2]*nftables.Set {
	sets := [2]*nftables.Set{
		v4: r.add(&nftables.Set{Name: "remedy4", KeyType: nftables.TypeIPAddr, Interval: true, AutoMerge: true}),
		v6: r.add(&nftables.Set{Name: "remedy6", KeyType: nftables.TypeIP6Addr, Interval: true, AutoMerge: true}),
	}
	var elements [2][]nftables.SetElement
	for _, p := range disjoint(prefixes) {
		first, after := bounds(p)
		family := familyOf(p.Addr())
		elements[family] = append(elements[family], nftables.SetElement{Key: first.AsSlice()})
		if after.IsValid() { // else the interval ends with the address space
			elements[family] = append(elements[family], nftables.SetElement{Key: after.AsSlice(), IntervalEnd: true})
		}
	}
	for family, s := range sets {
		r.fill(s, elements[family])
	}
	return sets
}

func (r *ruleset) chains() {
	accept := nftables.ChainPolicyAccept
	priority := nftables.ChainPriorityRef(ourPriority)
	chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
		c := &nftables.Chain{Name: name, Table: r.table}
		if hook != nil {
			c.Type, c.Hooknum, c.Priority, c.Policy = nftables.ChainTypeFilter, hook, priority, &accept
		}
		c = r.conn.AddChain(c)
		r.conn.FlushChain(c)
		return c
	}
	from, to := chain("from_tunnel", nil), chain("to_tunnel", nil)
	gateway, quarantined := chain("to_gateway", nil), chain("quarantined_to_gateway", nil)
	forward := chain("forward", nftables.ChainHookForward)
	input := chain("input", nftables.ChainHookInput)

	r.rule(forward, comesFrom(r.tunnels), leavesBy(r.tunnels), drop)
	r.rule(forward, comesFrom(r.tunnels), goTo(from))
	r.rule(forward, leavesBy(r.tunnels), goTo(to))
	r.rule(input, comesFrom(r.tunnels), goTo(gateway))

	for family := range 2 {
		r.rule(from, source(family, r.admit), accepted)
		r.rule(from, source(family, r.quarantine), destination(family, r.remedy), accepted)

		r.rule(to, destination(family, r.admit), accepted)
		r.rule(to, destination(family, r.quarantine), source(family, r.remedy), answers, accepted)
		// Routers on the way say that a packet was too large.
		r.rule(to, destination(family, r.quarantine), protocol(icmp(family)), related, accepted)

		r.rule(gateway, source(family, r.admit), accepted)
		r.rule(gateway, source(family, r.quarantine), goTo(quarantined))
		r.rule(quarantined, destination(family, r.remedy), accepted)
	}
	r.rule(quarantined, protocol(syscall.IPPROTO_TCP), port(r.tcp), accepted)
	r.rule(quarantined, protocol(syscall.IPPROTO_UDP), port(r.udp), accepted)
	for _, c := range []*nftables.Chain{from, to, gateway, quarantined} {
		r.rule(c, drop)
	}
}

func (r *ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: all})
}

// The words of a rule.
var (
	accepted = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop     = []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}}
	answers  = connection(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	related  = connection(expr.CtStateBitRELATED)
)

func goTo(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: c.Name}}
}

func in(load expr.Any, s *nftables.Set) []expr.Any {
	return []expr.Any{load, &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func comesFrom(s *nftables.Set) []expr.Any {
	return in(&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, s)
}

func leavesBy(s *nftables.Set) []expr.Any {
	return in(&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, s)
}

// Offsets and lengths of addresses: RFC 791, 3.1 and RFC 8200, 3.
func source(family int, sets [2]*nftables.Set) []expr.Any {
	return address(family, [2]uint32{v4: 12, v6: 8}[family], sets)
}

func destination(family int, sets [2]*nftables.Set) []expr.Any {
	return address(family, [2]uint32{v4: 16, v6: 24}[family], sets)
}

func address(family int, offset uint32, sets [2]*nftables.Set) []expr.Any {
	// NFPROTO_IPV4 and NFPROTO_IPV6 are the address families.
	protocol := [2]byte{v4: syscall.AF_INET, v6: syscall.AF_INET6}[family]
	length := [2]uint32{v4: 4, v6: 16}[family]
	return append([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
	}, in(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}, sets[family])...)
}

func protocol(number byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{number}},
	}
}

func icmp(family int) byte {
	return [2]byte{v4: syscall.IPPROTO_ICMP, v6: syscall.IPPROTO_ICMPV6}[family]
}

// port matches the destination port of TCP (RFC 9293, 3.1) or UDP (RFC 768).
func port(s *nftables.Set) []expr.Any {
	return in(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, s)
}

func connection(states uint32) []expr.Any {
	mask := binary.NativeEndian.AppendUint32(nil, states)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func interfaceNames(names []string) []nftables.SetElement {
	out := make([]nftables.SetElement, len(names))
	for i, n := range names {
		key := make([]byte, interfaceNameSize)
		copy(key, n)
		out[i].Key = key
	}
	return out
}

func ports(numbers []uint16) []nftables.SetElement {
	out := make([]nftables.SetElement, len(numbers))
	for i, n := range numbers {
		out[i].Key = binary.BigEndian.AppendUint16(nil, n)
	}
	return out
}

// disjoint drops prefixes that lie inside others: the kernel refuses intervals
// that overlap.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range prefixes {
		inside := false
		for j, q := range prefixes {
			same := p.Masked() == q.Masked()
			if i != j && q.Contains(p.Addr()) && (q.Bits() < p.Bits() || same && j < i) {
				inside = true
			}
		}
		if !inside {
			out = append(out, p)
		}
	}
	return out
}

// bounds is the first address of a prefix and the first after it; the zero
// Addr when nothing comes after it.
func bounds(p netip.Prefix) (first, after netip.Addr) {
	first = p.Masked().Addr()
	last := first.AsSlice()
	for bit := p.Bits(); bit < len(last)*8; bit++ {
		last[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(last) // its length is that of an address
	return first, a.Next()
}
