package appraisal

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"google.golang.org/protobuf/reflect/protoreflect"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Limits of one expression. Evidence is bounded by posture.CheckLimits; these
// bound what an expression makes of it.
const (
	maxExpressionRunes = 8 << 10
	maxCost            = 1 << 20
)

// constant is a name that stands for one value in expressions: "ACTIVE",
// "params.max_patch_days".
type constant struct {
	name  string
	typ   *cel.Type
	value ref.Val
}

// language is CEL as policies and filters speak it.
type language struct {
	env   *cel.Env
	adapt types.Adapter
	enums *enums
	// own are the names of the constants that the policy itself declares.
	own []string
}

func object(m protoreflect.ProtoMessage) *cel.Type {
	return cel.ObjectType(string(m.ProtoReflect().Descriptor().FullName()))
}

// newLanguage declares the variables, the functions and the constants, which
// are the names of all enum values and those given.
func newLanguage(variables []cel.EnvOption, constants ...constant) (*language, error) {
	registry, err := types.NewProtoRegistry(types.ProtoTypeDefs(
		&posturev1.Evidence{}, &posturev1.Attestation{}, &posturev1.Result{}, &fleetv1.Device{}))
	if err != nil {
		return nil, fmt.Errorf("registering message types: %w", err)
	}
	names := newEnums(
		posturev1.File_pfoertner_posture_v1_evidence_proto,
		posturev1.File_pfoertner_posture_v1_attestation_proto,
		posturev1.File_pfoertner_posture_v1_result_proto,
		fleetv1.File_pfoertner_fleet_v1_device_proto)
	options := []cel.EnvOption{
		cel.CustomTypeAdapter(registry), cel.CustomTypeProvider(registry),
		cel.ParserExpressionSizeLimit(maxExpressionRunes),
		cel.ParserRecursionLimit(64),
		// So that a part of an expression can be written down again.
		cel.EnableMacroCallTracking(),
		// Counts are unsigned; nobody should have to know that to write "> 0".
		cel.CrossTypeNumericComparisons(true),
		cel.ASTValidators(
			cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals(), cel.ValidateComprehensionNestingLimit(2)),
	}
	options = append(options, variables...)
	options = append(options, functions(registry)...)
	for _, c := range append(names.constants(), constants...) {
		options = append(options, cel.Constant(c.name, c.typ, c.value))
	}
	env, err := cel.NewEnv(options...)
	if err != nil {
		return nil, fmt.Errorf("declaring the policy language: %w", err)
	}
	lang := &language{env: env, adapt: registry, enums: names}
	for _, c := range constants {
		lang.own = append(lang.own, c.name)
	}
	return lang, nil
}

// ruleVariables are what a rule may look at.
func ruleVariables() []cel.EnvOption {
	return []cel.EnvOption{
		cel.Variable("evidence", object(&posturev1.Evidence{})),
		cel.Variable("attested", object(&posturev1.Attestation{})),
		cel.Variable("device", object(&fleetv1.Device{})),
		cel.Variable("asset", object(&fleetv1.Asset{})),
		cel.Variable("reference", referenceType()),
		cel.Variable("now", cel.TimestampType),
		cel.Variable("evidence_age", cel.DurationType),
	}
}

// filterVariables are what a filter of devices may look at.
func filterVariables() []cel.EnvOption {
	return []cel.EnvOption{
		cel.Variable("evidence", object(&posturev1.Evidence{})),
		cel.Variable("attested", object(&posturev1.Attestation{})),
		cel.Variable("device", object(&fleetv1.Device{})),
		cel.Variable("asset", object(&fleetv1.Asset{})),
		cel.Variable("result", object(&posturev1.Result{})),
		cel.Variable("now", cel.TimestampType),
	}
}

// mistake is what is wrong with an expression; offset counts runes from its
// start.
type mistake struct {
	offset  int
	message string
}

// compile checks an expression in full: syntax, types against the message
// descriptors, enum names against the fields they are compared with.
func (l *language) compile(text string) (*cel.Ast, []mistake) {
	checked, issues := l.env.Compile(text)
	if issues.Err() != nil {
		var found []mistake
		for _, e := range issues.Errors() {
			found = append(found, mistake{offset(text, e.Location.Line(), e.Location.Column()), l.advise(e.Message)})
		}
		return nil, found
	}
	if found := l.enums.check(checked.NativeRep()); len(found) > 0 {
		return nil, found
	}
	return checked, nil
}

// offset turns CEL's line (from 1) and column (from 0, in runes) into runes
// from the start.
func offset(text string, line, column int) int {
	at := 0
	for row := range strings.SplitAfterSeq(text, "\n") {
		if line--; line <= 0 {
			break
		}
		at += len([]rune(row))
	}
	return at + max(column, 0)
}

// program makes a checked expression ready to be evaluated often. Its cost is
// counted while it runs only where loops are nested: one loop over evidence is
// bounded by the limits of a report, and counting would double what it takes.
func (l *language) program(checked *cel.Ast) (cel.Program, error) {
	options := []cel.ProgramOption{cel.EvalOptions(cel.OptOptimize)}
	if loopDepth(checked.NativeRep().Expr()) > 1 {
		options = append(options, cel.CostLimit(maxCost))
	}
	return l.env.Program(checked, options...)
}

// loopDepth is how deep loops are nested. A loop over what another loop yields
// counts as one inside it: it can be as long as the product of both.
func loopDepth(n ast.Expr) int {
	depth := 0
	for _, child := range children(n) {
		depth = max(depth, loopDepth(child))
	}
	if n.Kind() == ast.ComprehensionKind {
		depth++
	}
	return depth
}

func children(n ast.Expr) []ast.Expr {
	switch n.Kind() {
	case ast.SelectKind:
		return []ast.Expr{n.AsSelect().Operand()}
	case ast.CallKind:
		if c := n.AsCall(); c.IsMemberFunction() {
			return append([]ast.Expr{c.Target()}, c.Args()...)
		}
		return n.AsCall().Args()
	case ast.ListKind:
		return n.AsList().Elements()
	case ast.ComprehensionKind:
		c := n.AsComprehension()
		return []ast.Expr{c.IterRange(), c.AccuInit(), c.LoopCondition(), c.LoopStep(), c.Result()}
	case ast.MapKind:
		var list []ast.Expr
		for _, e := range n.AsMap().Entries() {
			list = append(list, e.AsMapEntry().Key(), e.AsMapEntry().Value())
		}
		return list
	case ast.StructKind:
		var list []ast.Expr
		for _, f := range n.AsStruct().Fields() {
			list = append(list, f.AsStructField().Value())
		}
		return list
	}
	return nil
}

// fixed returns the value that an expression has whatever the evidence is, as
// "params.strict && …" has when strict is false; nil when there is none.
func (l *language) fixed(checked *cel.Ast) ref.Val {
	program, err := l.env.Program(checked, cel.EvalOptions(cel.OptOptimize, cel.OptPartialEval), cel.CostLimit(maxCost))
	if err != nil {
		return nil
	}
	vars, err := l.env.PartialVars(cel.NoVars())
	if err != nil {
		return nil
	}
	v, _, err := program.Eval(vars)
	if err != nil || v == nil || types.IsUnknownOrError(v) {
		return nil
	}
	return v
}

// enums are the names of enum values as expressions use them. CEL itself knows
// enum values only as numbers, so that it would take "reading.state == ACTIVE".
type enums struct {
	// of holds, for every name, the enums that have it.
	of     map[string][]protoreflect.FullName
	number map[string]protoreflect.EnumNumber
	// ambiguous holds the short names that stand for different numbers, with
	// the full names to write instead.
	ambiguous map[string][]string
}

// cameLater says whether an enum came when policies and filters were already in
// use: its values never take a short name away from another, so that what
// checks goes on to.
func cameLater(enum protoreflect.EnumDescriptor) bool {
	switch enum.Name() {
	case "BitLockerProtection", "BitLockerConversion", "BitLockerWiping", "BitLockerLock", "BitLockerProtector",
		"UpdateSource", "AntivirusState", "PcrReference":
		return true
	}
	return false
}

// newEnums names every value of the files' enums twice: in full
// ("VERDICT_DENY") and, where all enums agree on its number, in short ("DENY").
func newEnums(files ...protoreflect.FileDescriptor) *enums {
	e := &enums{
		of:        map[string][]protoreflect.FullName{},
		number:    map[string]protoreflect.EnumNumber{},
		ambiguous: map[string][]string{},
	}
	fulls := map[string][]string{}
	var early, late []protoreflect.EnumDescriptor
	for _, file := range files {
		for i := range file.Enums().Len() {
			if enum := file.Enums().Get(i); cameLater(enum) {
				late = append(late, enum)
			} else {
				early = append(early, enum)
			}
		}
	}
	for _, enum := range append(early, late...) {
		for j := range enum.Values().Len() {
			value := enum.Values().Get(j)
			full := string(value.Name())
			names := []string{full, shortName(enum, full)}
			if n, taken := e.number[names[1]]; taken && n != value.Number() && cameLater(enum) {
				names = names[:1]
			}
			for _, name := range names {
				fulls[name] = append(fulls[name], full)
				if n, taken := e.number[name]; taken && n != value.Number() {
					e.ambiguous[name] = nil
				}
				e.number[name] = value.Number()
				e.of[name] = append(e.of[name], enum.FullName())
			}
		}
	}
	for name := range e.ambiguous {
		e.ambiguous[name] = fulls[name]
		delete(e.number, name)
		delete(e.of, name)
	}
	return e
}

// shortName is an enum value's name without the enum's own: "ADMIT" for
// "VERDICT_ADMIT".
func shortName(enum protoreflect.EnumDescriptor, full string) string {
	return strings.TrimPrefix(full, screamingSnake(string(enum.Name()))+"_")
}

func screamingSnake(camel string) string {
	var b strings.Builder
	for i, r := range camel {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

func (e *enums) constants() []constant {
	list := make([]constant, 0, len(e.number))
	for _, name := range slices.Sorted(maps.Keys(e.number)) {
		list = append(list, constant{name, cel.IntType, types.Int(e.number[name])})
	}
	return list
}

// advise says in words for policy authors what CEL says in those of its parser,
// and names what was probably meant.
func (l *language) advise(message string) string {
	if rest, ok := strings.CutPrefix(message, "Syntax error: mismatched input '"); ok {
		token, _, _ := strings.Cut(rest, "' expecting ")
		if token == "<EOF>" {
			return "the expression ends too early"
		}
		return fmt.Sprintf("%q does not belong here", token)
	}
	if strings.HasSuffix(message, "applied to '(uint, int)'") || strings.HasSuffix(message, "applied to '(int, uint)'") {
		return message + ": counts are unsigned, write 0u instead of 0"
	}
	rest, ok := strings.CutPrefix(message, "undeclared reference to '")
	if !ok {
		return message
	}
	name, _, _ := strings.Cut(rest, "'")
	if fulls := l.enums.ambiguous[name]; len(fulls) > 0 {
		return fmt.Sprintf("%s stands for different values: write %s", name, strings.Join(fulls, " or "))
	}
	root, _, _ := strings.Cut(name, ".")
	if root == "params" || root == "approved" {
		return fmt.Sprintf("the policy declares no such name under %s: known are %s", root, orElse(strings.Join(l.own, ", "), "none"))
	}
	return message
}
