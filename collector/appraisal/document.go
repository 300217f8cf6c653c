package appraisal

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// maxDocumentBytes is the largest YAML file that is read.
const maxDocumentBytes = 256 << 10

// document is a YAML file that is read strictly: unknown and repeated keys,
// anchors and aliases are errors. It collects what is wrong, each with its
// place, so that one check shows all of it.
type document struct {
	lines []string
	errs  []*fleetv1.PolicyError
	// rule is the id of the rule being read, for the errors.
	rule string
}

// parseDocument returns the top node, or nil when the file is no YAML; then the
// error is collected.
func parseDocument(file []byte) (*document, *yaml.Node) {
	d := &document{lines: strings.Split(strings.ReplaceAll(string(file), "\r\n", "\n"), "\n")}
	if len(file) > maxDocumentBytes {
		d.failAt(1, 1, "the file has %d bytes, at most %d are taken", len(file), maxDocumentBytes)
		return d, nil
	}
	var top yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(file)))
	if err := dec.Decode(&top); err != nil {
		d.failSyntax(err)
		return d, nil
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		d.fail(&second, "only one YAML document is taken")
		return d, nil
	}
	if !d.plain(&top) || len(top.Content) != 1 {
		return d, nil
	}
	return d, top.Content[0]
}

// plain refuses anchors and aliases: they hide what is in force, and can make a
// small file huge.
func (d *document) plain(n *yaml.Node) bool {
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		d.fail(n, "anchors and aliases are not taken")
		return false
	}
	for _, c := range n.Content {
		if !d.plain(c) {
			return false
		}
	}
	return true
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

func (d *document) failSyntax(err error) {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		d.failAt(line, 1, "%s", m[2])
		return
	}
	d.failAt(1, 1, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
}

func (d *document) fail(n *yaml.Node, format string, args ...any) {
	d.failAt(n.Line, n.Column, format, args...)
}

func (d *document) failAt(line, column int, format string, args ...any) {
	d.errs = append(d.errs, &fleetv1.PolicyError{
		Line: uint32(max(line, 1)), Column: uint32(max(column, 1)), Rule: d.rule,
		Message: fmt.Sprintf(format, args...),
	})
}

// sortErrors puts the errors in the order of the file.
func (d *document) sortErrors() {
	slices.SortStableFunc(d.errs, func(a, b *fleetv1.PolicyError) int {
		return cmp.Or(cmp.Compare(a.GetLine(), b.GetLine()), cmp.Compare(a.GetColumn(), b.GetColumn()))
	})
}

// mapping reads the keys of n with the functions of fields, in the order of the
// file. It reports keys that are unknown, repeated or, of the required ones,
// missing.
func (d *document) mapping(n *yaml.Node, fields map[string]func(*yaml.Node), required ...string) {
	known := strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
	seen := map[string]bool{}
	d.pairs(n, func(key, value *yaml.Node) {
		read, ok := fields[key.Value]
		switch {
		case !ok:
			d.fail(key, "unknown key %q: known are %s", key.Value, known)
		default:
			seen[key.Value] = true
			read(value)
		}
	})
	for _, name := range required {
		if n.Kind == yaml.MappingNode && !seen[name] {
			d.fail(n, "key %q is missing", name)
		}
	}
}

// pairs calls fn for every key of n, each once.
func (d *document) pairs(n *yaml.Node, fn func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, "keys and values are expected here")
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode {
			d.fail(key, "a key has to be a plain word")
			continue
		}
		if seen[key.Value] {
			d.fail(key, "key %q stands here twice", key.Value)
			continue
		}
		seen[key.Value] = true
		fn(key, n.Content[i+1])
	}
}

// text reads a non-empty text of at most limit bytes.
func (d *document) text(n *yaml.Node, limit int) string {
	s := strings.TrimSpace(n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		d.fail(n, "a text is expected here")
		return ""
	case s == "":
		d.fail(n, "the text is empty")
	case len(s) > limit:
		d.fail(n, "the text has %d bytes, at most %d are taken", len(s), limit)
	}
	return s
}

const maxTextBytes = 1000

// localText reads {de: …, en: …}, both required.
func (d *document) localText(n *yaml.Node) *posturev1.LocalText {
	t := &posturev1.LocalText{}
	d.mapping(n, map[string]func(*yaml.Node){
		"de": func(v *yaml.Node) { t.De = d.text(v, maxTextBytes) },
		"en": func(v *yaml.Node) { t.En = d.text(v, maxTextBytes) },
	}, "de", "en")
	return t
}

// choice reads one of the words of choices.
func choice[T any](d *document, n *yaml.Node, choices map[string]T) T {
	v, ok := choices[n.Value]
	if n.Kind != yaml.ScalarNode || !ok {
		d.fail(n, "one of %s is expected here", strings.Join(slices.Sorted(maps.Keys(choices)), ", "))
	}
	return v
}

// flag reads true or false.
func (d *document) flag(n *yaml.Node) bool {
	var v bool
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" || n.Decode(&v) != nil {
		d.fail(n, "true or false is expected here")
	}
	return v
}

// texts reads a list of texts.
func (d *document) texts(n *yaml.Node) []string {
	list := []string{}
	d.each(n, func(c *yaml.Node) { list = append(list, d.text(c, maxTextBytes)) })
	return list
}

// longest is the longest duration a policy may name: ten years.
const longest = 3650 * 24 * time.Hour

// duration reads a span of time above zero: "45m", "36h", "14d", "1d12h".
func (d *document) duration(n *yaml.Node) time.Duration {
	v, err := parseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v <= 0 || v > longest {
		d.fail(n, `a duration such as "45m", "36h" or "14d" is expected here`)
		return 0
	}
	return v
}

// parseDuration is time.ParseDuration with days of 24 hours before the rest.
func parseDuration(s string) (time.Duration, error) {
	days, rest, found := strings.Cut(s, "d")
	if !found {
		return time.ParseDuration(s)
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("days of duration %q: %w", s, err)
	}
	sum := time.Duration(n) * 24 * time.Hour
	if rest == "" {
		return sum, nil
	}
	more, err := time.ParseDuration(rest)
	return sum + more, err
}

// date reads a day, "2026-06-10", as the start of that day in UTC.
func (d *document) date(n *yaml.Node) time.Time {
	t, err := time.Parse(time.DateOnly, n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.fail(n, `a date such as "2026-06-10" is expected here`)
	}
	return t
}

// moment reads a day or a time, "2026-06-10" or "2026-06-10T14:00:00Z".
func (d *document) moment(n *yaml.Node) time.Time {
	t, err := time.Parse(time.RFC3339, n.Value)
	if err != nil {
		t, err = time.Parse(time.DateOnly, n.Value)
	}
	if n.Kind != yaml.ScalarNode || err != nil {
		d.fail(n, `a date such as "2026-06-10" or a time such as "2026-06-10T14:00:00Z" is expected here`)
	}
	return t
}

// number reads a whole number above zero.
func (d *document) number(n *yaml.Node) uint32 {
	v, err := strconv.ParseUint(n.Value, 10, 32)
	if n.Kind != yaml.ScalarNode || err != nil || v == 0 {
		d.fail(n, "a whole number above zero is expected here")
	}
	return uint32(v)
}

// each calls fn for every entry of a list.
func (d *document) each(n *yaml.Node, fn func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, "a list is expected here")
		return
	}
	for _, c := range n.Content {
		fn(c)
	}
}
