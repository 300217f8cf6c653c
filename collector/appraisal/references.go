package appraisal

import (
	_ "embed"
	"errors"
	"fmt"
	"reflect"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"go.yaml.in/yaml/v3"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

//go:embed references.yaml
var shippedReferences []byte

// References are the values that evidence is judged against and that no
// notebook states of itself: the end of support of distributions, the oldest
// acceptable VPN clients. It is immutable. In expressions it is "reference".
type References struct {
	support map[release]support
	clients map[string]string
}

// release is one version of a distribution, as os-release names both.
type release struct{ id, version string }

// support is until when a release is supported, each day included; zero: that
// kind of support does not exist.
type support struct{ ends, ltsEnds time.Time }

// ParseReferences reads reference values from YAML, as strictly as a policy.
// The error names line and column of everything that is wrong.
func ParseReferences(file []byte) (*References, error) {
	d, top := parseDocument(file)
	r := &References{support: map[release]support{}, clients: map[string]string{}}
	if top != nil {
		d.mapping(top, map[string]func(*yaml.Node){
			"distributions": func(n *yaml.Node) { d.each(n, func(n *yaml.Node) { r.readDistribution(d, n) }) },
			"vpn_clients":   func(n *yaml.Node) { d.each(n, func(n *yaml.Node) { r.readClient(d, n) }) },
		}, "distributions", "vpn_clients")
	}
	var errs []error
	for _, e := range d.errs {
		errs = append(errs, fmt.Errorf("reference values, line %d, column %d: %s", e.GetLine(), e.GetColumn(), e.GetMessage()))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return r, nil
}

// DefaultReferences are the reference values that this build ships.
func DefaultReferences() (*References, error) { return ParseReferences(shippedReferences) }

func (r *References) readDistribution(d *document, n *yaml.Node) {
	var key release
	var s support
	d.mapping(n, map[string]func(*yaml.Node){
		"id":       func(v *yaml.Node) { key.id = d.text(v, 64) },
		"version":  func(v *yaml.Node) { key.version = d.text(v, 64) },
		"codename": func(v *yaml.Node) { d.text(v, 64) },
		"ends":     func(v *yaml.Node) { s.ends = d.date(v) },
		"lts_ends": func(v *yaml.Node) { s.ltsEnds = d.date(v) },
		"source":   func(v *yaml.Node) { d.text(v, maxTextBytes) },
		"read":     func(v *yaml.Node) { d.date(v) },
	}, "id", "version", "ends", "source", "read")
	if _, taken := r.support[key]; taken {
		d.fail(n, "%s %s stands here twice", key.id, key.version)
	}
	r.support[key] = s
}

func (r *References) readClient(d *document, n *yaml.Node) {
	var product, oldest string
	d.mapping(n, map[string]func(*yaml.Node){
		"product": func(v *yaml.Node) { product = d.text(v, 64) },
		"oldest": func(v *yaml.Node) {
			oldest = d.text(v, 64)
			if _, err := numbers(oldest); err != nil {
				d.fail(v, "a version such as \"2.6.3\" is expected here")
			}
		},
		"source": func(v *yaml.Node) { d.text(v, maxTextBytes) },
		"read":   func(v *yaml.Node) { d.date(v) },
	}, "product", "oldest", "source", "read")
	r.clients[product] = oldest
}

func (r *References) oldestClient(product string) (version string, ok bool) {
	if r == nil {
		return "", false
	}
	version, ok = r.clients[product]
	return version, ok
}

// endOfSupport is the first moment without support, long-term support counted.
// It cannot tell for releases that the reference values do not name.
func endOfSupport(p *posturev1.Platform, r *References) (time.Time, error) {
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

// supported says whether a platform still gets security updates from its
// distribution.
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
