package appraisal

import (
	_ "embed"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"go.yaml.in/yaml/v3"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

//go:embed references.yaml
var shippedReferences []byte

// References are the values that evidence is judged against and that no
// notebook states of itself: the end of support of systems, the updates of
// Windows and which of them the provider has approved, the oldest acceptable
// VPN clients. It is immutable. In expressions it is "reference".
type References struct {
	// issued is when the file says it was made; zero: it does not say.
	issued  time.Time
	support map[release]support
	clients map[string]string
	windows windowsTable
}

// release is one version of a distribution, as os-release names both.
type release struct{ id, version string }

// support is until when a release is supported, each day included; zero: that
// kind of support does not exist.
type support struct{ ends, ltsEnds time.Time }

// ParseReferences reads reference values from YAML, as strictly as a policy.
// The references are nil exactly when there are errors; every error has its
// line and column, from 1. docs/references.md describes the file.
func ParseReferences(file []byte) (*References, []*fleetv1.PolicyError) {
	d, top := parseDocument(file)
	r := &referenceReader{document: d, refs: &References{
		support: map[release]support{}, clients: map[string]string{}, windows: newWindowsTable(),
	}}
	if top != nil {
		r.read(top)
	}
	if len(d.errs) > 0 {
		d.sortErrors()
		return nil, d.errs
	}
	return r.refs, nil
}

// DefaultReferences are the reference values that this build ships.
func DefaultReferences() (*References, error) {
	r, faults := ParseReferences(shippedReferences)
	if len(faults) > 0 {
		return nil, fmt.Errorf("reference values, line %d, column %d: %s", faults[0].GetLine(), faults[0].GetColumn(), faults[0].GetMessage())
	}
	return r, nil
}

// DefaultReferencesFile is the shipped file.
func DefaultReferencesFile() []byte { return slices.Clone(shippedReferences) }

// Issued is when the file says it was made; zero when it does not say.
func (r *References) Issued() time.Time { return r.issued }

// WindowsAsOf is the last day for which the table of Windows updates is
// complete; zero: there is no table. UsableUntil is the first moment at which
// it is too old to be relied on.
func (r *References) WindowsAsOf() (asOf, usableUntil time.Time) {
	if asOf = r.windowsTable().asOf; asOf.IsZero() {
		return asOf, asOf
	}
	return asOf, asOf.Add(tableUsable)
}

// Over returns these reference values put over others: what both have is taken
// from these, row by row; an approved ring replaces the other as a whole.
func (r *References) Over(base *References) *References {
	merged := &References{
		issued: r.issued, support: maps.Clone(base.support), clients: maps.Clone(base.clients), windows: base.windows.over(r.windows),
	}
	maps.Copy(merged.support, r.support)
	maps.Copy(merged.clients, r.clients)
	// Rows were checked for order within each file; together they may disagree
	// on a date, which changes nothing but that date.
	_ = merged.windows.sorted()
	return merged
}

// Size is how many rows there are of each kind.
func (r *References) Size() *fleetv1.ReferencesInForce {
	updates := 0
	for _, rows := range r.windows.updates {
		updates += len(rows)
	}
	return &fleetv1.ReferencesInForce{
		WindowsBuilds: uint32(updates), WindowsLifecycle: uint32(len(r.windows.lifecycle)), Ring: uint32(len(r.windows.ring)),
		Distributions: uint32(len(r.support)), VpnClients: uint32(len(r.clients)),
	}
}

// CheckDates finds dates that lie in the future of now by more than a day: they
// would keep later files out, or a table in use for ever.
func (r *References) CheckDates(now time.Time) error {
	for _, d := range []struct {
		key string
		at  time.Time
	}{{"issued", r.issued}, {"as_of", r.windows.asOf}} {
		if d.at.After(now.Add(day)) {
			return fmt.Errorf("%s is %s, which is in the future", d.key, d.at.Format(time.DateOnly))
		}
	}
	return nil
}

func (r *References) windowsTable() *windowsTable {
	if r == nil {
		return &windowsTable{}
	}
	return &r.windows
}

// referenceReader turns the nodes of one file into reference values.
type referenceReader struct {
	*document
	refs *References
	// sources are the names that the file declares, used those of its rows.
	sources map[string]bool
	used    []*yaml.Node
	// builds are the release dates, to be compared with as_of.
	builds []placed[time.Time]
}

// placed is a value with where it stands.
type placed[T any] struct {
	node  *yaml.Node
	value T
}

func (r *referenceReader) read(top *yaml.Node) {
	r.sources = map[string]bool{}
	list := func(read func(*yaml.Node)) func(*yaml.Node) {
		return func(n *yaml.Node) { r.each(n, read) }
	}
	r.mapping(top, map[string]func(*yaml.Node){
		"issued":            func(n *yaml.Node) { r.refs.issued = r.moment(n) },
		"as_of":             func(n *yaml.Node) { r.refs.windows.asOf = r.date(n) },
		"sources":           r.readSources,
		"distributions":     list(r.distribution),
		"vpn_clients":       list(r.client),
		"windows_builds":    list(r.build),
		"windows_lifecycle": list(r.lifecycle),
		"ring":              list(r.ring),
	}, "issued")
	for _, n := range r.used {
		if !r.sources[n.Value] {
			r.fail(n, "source %q is not declared under sources", n.Value)
		}
	}
	asOf := r.refs.windows.asOf
	for _, b := range r.builds {
		switch {
		case asOf.IsZero():
			r.fail(top, `key "as_of" is missing: until when is the table of updates complete?`)
			return
		case b.value.After(asOf):
			r.fail(b.node, "the update was released after as_of, %s", asOf.Format(time.DateOnly))
		}
	}
	if err := r.refs.windows.sorted(); err != nil {
		r.fail(top, "%v", err)
	}
}

func (r *referenceReader) readSources(n *yaml.Node) {
	r.pairs(n, func(key, value *yaml.Node) {
		r.sources[key.Value] = true
		r.mapping(value, map[string]func(*yaml.Node){
			"text": func(v *yaml.Node) { r.text(v, maxTextBytes) },
			"read": func(v *yaml.Node) { r.date(v) },
		}, "text", "read")
	})
}

// source is a row's own reference to one of the file's sources.
func (r *referenceReader) source(n *yaml.Node) {
	if r.text(n, 64) != "" {
		r.used = append(r.used, n)
	}
}

func (r *referenceReader) distribution(n *yaml.Node) {
	var key release
	var s support
	r.mapping(n, map[string]func(*yaml.Node){
		"id":       func(v *yaml.Node) { key.id = r.text(v, 64) },
		"version":  func(v *yaml.Node) { key.version = r.text(v, 64) },
		"codename": func(v *yaml.Node) { r.text(v, 64) },
		"ends":     func(v *yaml.Node) { s.ends = r.date(v) },
		"lts_ends": func(v *yaml.Node) { s.ltsEnds = r.date(v) },
		"source":   r.source,
	}, "id", "version", "ends", "source")
	if _, taken := r.refs.support[key]; taken {
		r.fail(n, "%s %s stands here twice", key.id, key.version)
	}
	r.refs.support[key] = s
}

func (r *referenceReader) client(n *yaml.Node) {
	var product, oldest string
	r.mapping(n, map[string]func(*yaml.Node){
		"product": func(v *yaml.Node) { product = r.text(v, 64) },
		"oldest": func(v *yaml.Node) {
			oldest = r.text(v, 64)
			if _, err := numbers(oldest); err != nil {
				r.fail(v, "a version such as \"2.6.3\" is expected here")
			}
		},
		"source": r.source,
	}, "product", "oldest", "source")
	if _, taken := r.refs.clients[product]; taken {
		r.fail(n, "%s stands here twice", product)
	}
	r.refs.clients[product] = oldest
}

func (r *References) oldestClient(product string) (version string, ok bool) {
	if r == nil {
		return "", false
	}
	version, ok = r.clients[product]
	return version, ok
}

// endOfSupport is the first moment without support; on Linux long-term support
// counts, on Windows extended support that is proven. It cannot tell for
// systems that the reference values do not name.
func endOfSupport(p *posturev1.Platform, r *References) (time.Time, error) {
	if p.GetOperatingSystem() == posturev1.OperatingSystem_OPERATING_SYSTEM_WINDOWS {
		return r.endOfWindows(p)
	}
	key := release{p.GetDistribution(), p.GetVersion()}
	var s support
	if r != nil {
		s = r.support[key]
	}
	last := s.ends
	if s.ltsEnds.After(last) {
		last = s.ltsEnds
	}
	if last.IsZero() {
		name := short(key.id + " " + key.version)
		return last, cannotTell(
			fmt.Sprintf("Für das Betriebssystem „%s“ ist kein Ende der Unterstützung hinterlegt.", name),
			fmt.Sprintf("No end of support is on record for the operating system %q.", name))
	}
	return last.Add(day), nil
}

// supported says whether a system still gets security updates from its maker.
func supported(p *posturev1.Platform, r *References, now time.Time) (bool, error) {
	end, err := endOfSupport(p, r)
	return err == nil && now.Before(end), err
}

const referenceTypeName = "pfoertner.Reference"

func referenceType() *cel.Type { return cel.OpaqueType(referenceTypeName) }

func referencesOf(v ref.Val) *References { r, _ := v.(*References); return r }

// ConvertToNative, ConvertToType, Equal, Type and Value make References a CEL
// value that can be passed to functions and nothing else.
func (r *References) ConvertToNative(t reflect.Type) (any, error) {
	return nil, fmt.Errorf("reference values cannot become %v", t)
}

// ConvertToType implements ref.Val.
func (r *References) ConvertToType(t ref.Type) ref.Val {
	return types.NewErr("reference values cannot become %s", t.TypeName())
}

// Equal implements ref.Val.
func (r *References) Equal(other ref.Val) ref.Val { return types.Bool(ref.Val(r) == other) }

// Type implements ref.Val.
func (r *References) Type() ref.Type { return referenceType() }

// Value implements ref.Val.
func (r *References) Value() any { return r }
