package appraisal

import (
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/parser"
	"go.yaml.in/yaml/v3"
)

// condition compiles an expression that says yes or no.
func (c *compiler) condition(n *yaml.Node) (*condition, reads) {
	if n.Kind != yaml.ScalarNode {
		c.fail(n, "an expression is expected here")
		return nil, reads{}
	}
	return c.expression(n, n.Value, 0, cel.BoolType)
}

// conjuncts takes a condition that is an "and" apart, so that one part that is
// false counts although another cannot be told. whole is the condition itself,
// nil when it has mistakes.
func (c *compiler) conjuncts(text string, whole *condition) []*condition {
	if whole == nil {
		return nil
	}
	// As it was written: checking puts numbers in the place of names.
	parsed, issues := c.lang.env.Parse(text)
	if issues.Err() != nil {
		return []*condition{whole}
	}
	var list []*condition
	for _, part := range andParts(parsed.NativeRep().Expr()) {
		text, err := parser.Unparse(part, parsed.NativeRep().SourceInfo())
		if err != nil {
			return []*condition{whole}
		}
		// The part stands in no place of the file, and has no mistakes of its own.
		d := &compiler{document: &document{}, policy: c.policy, lang: c.lang}
		compiled, _ := d.expression(&yaml.Node{}, text, 0, cel.BoolType)
		if compiled == nil {
			return []*condition{whole}
		}
		list = append(list, compiled)
	}
	return list
}

// andParts are the parts of an "and", or the expression itself.
func andParts(n ast.Expr) []ast.Expr {
	if n.Kind() != ast.CallKind || n.AsCall().FunctionName() != operators.LogicalAnd {
		return []ast.Expr{n}
	}
	var parts []ast.Expr
	for _, arg := range n.AsCall().Args() {
		parts = append(parts, andParts(arg)...)
	}
	return parts
}

// expression compiles text, which stands in the scalar n from the rune base on.
// want is its type, nil for any that can be shown in a text.
func (c *compiler) expression(n *yaml.Node, text string, base int, want *cel.Type) (*condition, reads) {
	failed := func(found ...mistake) (*condition, reads) {
		for _, m := range found {
			line, column := place(c.lines, n, base+m.offset)
			c.failAt(line, column, "%s", m.message)
		}
		return nil, reads{}
	}
	checked, found := c.lang.compile(text)
	if len(found) > 0 {
		return failed(found...)
	}
	switch got := checked.OutputType(); {
	case want != nil && !got.IsExactType(want):
		return failed(mistake{0, "the expression has to be true or false, but is of type " + got.String()})
	case want == nil && !showable(got):
		return failed(mistake{0, "a text or a number is expected in braces, but this is of type " + got.String()})
	}
	what, found := analyse(checked)
	if len(found) > 0 {
		return failed(found...)
	}
	program, err := c.lang.program(checked)
	if err != nil {
		return failed(mistake{0, err.Error()})
	}
	compiled := &condition{program: program}
	if want != nil {
		if compiled.constant = c.lang.fixed(checked); compiled.constant != nil {
			return compiled, reads{}
		}
	}
	compiled.needs = needsOf(what)
	return compiled, what
}

func showable(t *cel.Type) bool {
	switch t.Kind() {
	case types.StringKind, types.IntKind, types.UintKind, types.DoubleKind:
		return true
	}
	return false
}

func needsOf(what reads) []need {
	var list []need
	for _, names := range [][]string{what.sections, what.parts} {
		for _, name := range names {
			if s, ok := sourceOf(name); ok {
				// Whoever looks at the reading of the quote has looked at that of all
				// its parts: there is none for each.
				handled := slices.Contains(what.states, name) || s > sourceAttested && slices.Contains(what.states, "attested")
				list = append(list, need{s, handled})
			}
		}
	}
	return list
}
