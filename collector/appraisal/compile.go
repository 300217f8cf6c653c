package appraisal

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"go.yaml.in/yaml/v3"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	maxRules = 200
	// Evidence must be able to get fresh at all, and a month-old reading says
	// nothing any more.
	minFreshness = time.Minute
	maxFreshness = 30 * day
)

var (
	idPattern    = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
	paramPattern = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)
)

func effects() map[string]posturev1.Effect {
	return map[string]posturev1.Effect{
		"deny": posturev1.Effect_EFFECT_DENY, "quarantine": posturev1.Effect_EFFECT_QUARANTINE, "warn": posturev1.Effect_EFFECT_WARN,
	}
}

func rollouts() map[string]posturev1.Rollout {
	return map[string]posturev1.Rollout{
		"observe": posturev1.Rollout_ROLLOUT_OBSERVE, "warn": posturev1.Rollout_ROLLOUT_WARN, "enforce": posturev1.Rollout_ROLLOUT_ENFORCE,
	}
}

// compiler turns the nodes of one policy file into a policy.
type compiler struct {
	*document
	policy *Policy
	lang   *language
}

// readPolicy reads the keys that declare names first, wherever they stand in
// the file, because the rules use them.
func readPolicy(d *document, top *yaml.Node) *Policy {
	c := &compiler{document: d, policy: &Policy{
		contradicted: posturev1.Outcome_OUTCOME_UNKNOWN, staleEffect: posturev1.Effect_EFFECT_QUARANTINE,
		softwareKeys: posturev1.Effect_EFFECT_WARN, texts: newBuiltin(),
	}}
	var constants []constant
	var rules *yaml.Node
	d.mapping(top, map[string]func(*yaml.Node){
		"name":      func(n *yaml.Node) { c.policy.name = c.id(n) },
		"freshness": c.readFreshness,
		"contradictions": func(n *yaml.Node) {
			c.policy.contradicted = choice(d, n, map[string]posturev1.Outcome{
				"unknown": posturev1.Outcome_OUTCOME_UNKNOWN, "fail": posturev1.Outcome_OUTCOME_FAIL})
		},
		"params":   func(n *yaml.Node) { constants = append(constants, c.readParams(n)...) },
		"approved": func(n *yaml.Node) { constants = append(constants, c.readApproved(n)...) },
		"rollout":  c.readRollout,
		"notices":  c.readNotices,
		"software_keys": func(n *yaml.Node) {
			d.mapping(n, map[string]func(*yaml.Node){
				"effect": func(n *yaml.Node) { c.policy.softwareKeys = choice(d, n, effects()) },
			}, "effect")
		},
		"tunnel_proof": c.readTunnelProof,
		"rules":        func(n *yaml.Node) { rules = n },
	}, "name", "freshness", "rules")
	var err error
	if c.lang, err = newLanguage(ruleVariables(), constants...); err != nil {
		d.fail(top, "%v", err)
		return nil
	}
	c.policy.language = c.lang
	if rules != nil {
		c.readRules(rules)
	}
	return c.policy
}

func (c *compiler) id(n *yaml.Node) string {
	s := c.text(n, 64)
	if s != "" && !idPattern.MatchString(s) {
		c.fail(n, "a name of small letters, digits and hyphens is expected here")
	}
	return s
}

func (c *compiler) readFreshness(n *yaml.Node) {
	c.mapping(n, map[string]func(*yaml.Node){
		"max_age": func(n *yaml.Node) {
			c.policy.maxAge = c.duration(n)
			if a := c.policy.maxAge; a != 0 && (a < minFreshness || a > maxFreshness) {
				c.fail(n, "between 1m and 30d are taken")
			}
		},
		"effect": func(n *yaml.Node) { c.policy.staleEffect = choice(c.document, n, effects()) },
	}, "max_age")
}

func (c *compiler) readRollout(n *yaml.Node) {
	c.mapping(n, map[string]func(*yaml.Node){
		"default": func(n *yaml.Node) { c.policy.rollout = choice(c.document, n, rollouts()) },
		"units": func(n *yaml.Node) {
			c.pairs(n, func(key, value *yaml.Node) {
				if key.Value == "" || key.Value != strings.ToLower(key.Value) || strings.HasPrefix(key.Value, "/") || strings.HasSuffix(key.Value, "/") {
					c.fail(key, `a unit such as "inneres/polizei" is expected here`)
				}
				c.policy.units = append(c.policy.units, unitRollout{key.Value, choice(c.document, value, rollouts())})
			})
		},
	})
}

// readNotices reads what is shown on the screens of notebooks.
func (c *compiler) readNotices(n *yaml.Node) {
	c.mapping(n, map[string]func(*yaml.Node){
		"refusal": func(n *yaml.Node) {
			c.policy.withoutNotice = choice(c.document, n, map[string]bool{"on": false, "off": true})
		},
	}, "refusal")
}

// readParams reads constants whose type is that of their YAML value.
func (c *compiler) readParams(n *yaml.Node) []constant {
	var list []constant
	c.pairs(n, func(key, value *yaml.Node) {
		if !paramPattern.MatchString(key.Value) {
			c.fail(key, "a name of small letters, digits and underscores is expected here")
			return
		}
		if typ, v := c.param(value); v != nil {
			list = append(list, constant{"params." + key.Value, typ, v})
		}
	})
	return list
}

func (c *compiler) param(n *yaml.Node) (*cel.Type, ref.Val) {
	switch {
	case n.Kind == yaml.SequenceNode:
		return textList(c.texts(n))
	case n.Kind == yaml.MappingNode:
		var v time.Duration
		c.mapping(n, map[string]func(*yaml.Node){"duration": func(n *yaml.Node) { v = c.duration(n) }}, "duration")
		return cel.DurationType, types.Duration{Duration: v}
	case n.Tag == "!!bool":
		return cel.BoolType, types.Bool(c.flag(n))
	case n.Tag == "!!int":
		var v int64
		if err := n.Decode(&v); err != nil {
			c.fail(n, "the number is too large")
		}
		return cel.IntType, types.Int(v)
	case n.Tag == "!!float":
		var v float64
		if err := n.Decode(&v); err != nil {
			c.fail(n, "this is no number")
		}
		return cel.DoubleType, types.Double(v)
	case n.Tag == "!!str":
		return cel.StringType, types.String(n.Value)
	}
	c.fail(n, "a number, a text, true or false, a list of texts or {duration: 14d} is expected here")
	return nil, nil
}

func textList(list []string) (*cel.Type, ref.Val) {
	return cel.ListType(cel.StringType), types.NewStringList(types.DefaultTypeAdapter, list)
}

func (c *compiler) readApproved(n *yaml.Node) []constant {
	var list []constant
	c.pairs(n, func(key, value *yaml.Node) {
		if !paramPattern.MatchString(key.Value) {
			c.fail(key, "a name of small letters, digits and underscores is expected here")
			return
		}
		typ, v := textList(c.texts(value))
		list = append(list, constant{"approved." + key.Value, typ, v})
	})
	return list
}

func (c *compiler) readRules(n *yaml.Node) {
	taken := map[string]bool{RuleKnownDevice: true, RuleEvidenceFresh: true, RuleHardwareBound: true}
	c.each(n, func(n *yaml.Node) {
		r := c.readRule(n)
		if taken[r.id] {
			c.fail(n, "rule %q exists already", r.id)
		}
		taken[r.id] = true
		c.rule = ""
		c.policy.rules = append(c.policy.rules, r)
	})
	switch {
	case n.Kind == yaml.SequenceNode && len(n.Content) == 0:
		c.fail(n, "a policy without rules admits every known device")
	case len(n.Content) > maxRules:
		c.fail(n, "%d rules, at most %d are taken", len(n.Content), maxRules)
	}
}

func (c *compiler) readRule(n *yaml.Node) rule {
	var r rule
	var all reads
	unknownSet, graceUnknownSet := false, false
	c.rule = ruleID(n)
	condition := func(into **condition) func(*yaml.Node) {
		return func(n *yaml.Node) {
			compiled, found := c.condition(n)
			*into, all = compiled, all.merge(found)
		}
	}
	c.mapping(n, map[string]func(*yaml.Node){
		"id":        func(n *yaml.Node) { r.id = c.id(n) },
		"title":     func(n *yaml.Node) { r.title = c.localText(n) },
		"remedy":    func(n *yaml.Node) { r.remedy = c.localText(n) },
		"reason":    func(n *yaml.Node) { r.reason = c.readReason(n) },
		"reference": func(n *yaml.Node) { r.reference = c.text(n, 64) },
		"when": func(n *yaml.Node) {
			whole, found := c.condition(n)
			r.when, all = c.conjuncts(n.Value, whole), all.merge(found)
		},
		"require": condition(&r.require),
		"on_fail": func(n *yaml.Node) { r.onFail = choice(c.document, n, effects()) },
		"on_unknown": func(n *yaml.Node) {
			r.onUnknown, unknownSet = choice(c.document, n, effects()), true
		},
		"grace": func(n *yaml.Node) { r.grace = c.duration(n) },
		"grace_unknown": func(n *yaml.Node) {
			r.graceUnknown, graceUnknownSet = c.duration(n), true
		},
		"must_apply": func(n *yaml.Node) { r.mustApply = c.flag(n) },
	}, "id", "title", "remedy", "require", "on_fail")
	if !unknownSet {
		r.onUnknown = r.onFail
	}
	if !graceUnknownSet {
		r.graceUnknown = r.grace
	}
	r.shown = c.viewers(all.paths)
	r.origin, r.attested = all.origin(), all.attested
	return r
}

// viewers finds or makes the viewers of the paths: rules that read the same
// values share them.
func (c *compiler) viewers(paths []string) []int {
	var places []int
	for _, path := range paths {
		i := slices.IndexFunc(c.policy.viewers, func(v viewer) bool { return v.path == path })
		if i < 0 {
			v, ok := newViewer(path)
			if !ok {
				continue
			}
			i = len(c.policy.viewers)
			c.policy.viewers = append(c.policy.viewers, v)
		}
		places = append(places, i)
	}
	return places
}

// ruleID looks ahead for the id, so that every error of a rule can name it.
func ruleID(n *yaml.Node) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == "id" {
			return n.Content[i+1].Value
		}
	}
	return ""
}

// readReason reads a text in both languages with expressions in braces.
func (c *compiler) readReason(n *yaml.Node) *reason {
	r := &reason{}
	c.mapping(n, map[string]func(*yaml.Node){
		"de": func(n *yaml.Node) { r.de = c.pieces(n) },
		"en": func(n *yaml.Node) { r.en = c.pieces(n) },
	}, "de", "en")
	return r
}

func (c *compiler) pieces(n *yaml.Node) []piece {
	c.text(n, maxTextBytes)
	var list []piece
	rest := []rune(n.Value)
	base := 0
	for len(rest) > 0 {
		open := slices.Index(rest, '{')
		if open < 0 {
			return append(list, piece{literal: string(rest)})
		}
		length := slices.Index(rest[open:], '}')
		if length < 0 {
			line, column := place(c.lines, n, base+open)
			c.failAt(line, column, "the brace is not closed")
			return nil
		}
		if open > 0 {
			list = append(list, piece{literal: string(rest[:open])})
		}
		inner := string(rest[open+1 : open+length])
		value, _ := c.expression(n, inner, base+open+1, nil)
		list = append(list, piece{value: value})
		base += open + length + 1
		rest = rest[open+length+1:]
	}
	return list
}
