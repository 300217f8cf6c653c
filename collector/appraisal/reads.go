package appraisal

import (
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"pfoertner/internal/posture"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// reads is what an expression looks at, found in its checked form without
// running it: an expression that stops early still depends on all of it.
type reads struct {
	// paths are the values to show: "evidence.patch.pending_security";
	// "[]" stands for every entry of a list.
	paths []string
	// sections of evidence, and "attested", that have to be readable, sorted.
	sections []string
	// states are the sections whose reading the expression looks at by itself.
	states []string
	// parts are the readings of parts of sections, as paths.
	parts []string
	// inventory, attested and evidence say who vouches for the values.
	inventory, attested, evidence bool
}

// origin is the weakest of those who vouch for what is read.
func (r reads) origin() posturev1.Origin {
	switch {
	case r.evidence:
		return posturev1.Origin_ORIGIN_SELF_REPORTED
	case r.attested:
		return posturev1.Origin_ORIGIN_ATTESTED
	case r.inventory:
		return posturev1.Origin_ORIGIN_INVENTORY
	}
	return posturev1.Origin_ORIGIN_SELF_REPORTED
}

// partReading is the reading that vouches for a part of a section that may fail
// alone, or the part itself where only a doubt about it stands alone; empty for
// all other paths.
func partReading(path string) string {
	switch {
	case below(path, "evidence.patch.kernel"), below(path, "evidence.patch.reboot_pending"):
		return "evidence.patch.kernel_reading"
	case below(path, "evidence.vpn.scope_v4"), below(path, "evidence.vpn.scope_v6"),
		below(path, "evidence.vpn.clients[].scope_v4"), below(path, "evidence.vpn.clients[].scope_v6"):
		return "evidence.vpn.routing_reading"
	case below(path, "evidence.patch.windows_update.source"):
		return "evidence.patch.windows_update.source"
	case below(path, "evidence.patch.pending"), below(path, "evidence.patch.pending_security"),
		below(path, "evidence.patch.held"), below(path, "evidence.patch.windows_update"):
		return "evidence.patch.windows_update.reading"
	case below(path, "attested.authorities"), below(path, "attested.warnings"):
		return "attested.warnings"
	case below(path, "attested.boot_loaders"), below(path, "attested.boot_loaders_changed_at"):
		return "attested.boot_loaders"
	}
	for _, part := range attestedParts() {
		if below(path, part) {
			return part
		}
	}
	return ""
}

// attestedParts are the parts of the attestation that may be unknown alone.
func attestedParts() []string {
	return []string{"attested.secure_boot", "attested.setup_mode", "attested.keys", "attested.boot_loaders", "attested.warnings", "attested.pcrs"}
}

func below(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// analyse finds what an expression reads, and uses of fields that no rule may
// look at.
func analyse(checked *cel.Ast) (reads, []mistake) {
	w := &walker{checked: checked.NativeRep(), scope: map[string]string{}}
	w.record(w.walk(w.checked.Expr()))
	w.finish()
	return w.found, w.mistakes
}

// walker follows every value from the variable it comes from.
type walker struct {
	checked *ast.AST
	// scope holds the paths of a comprehension's variables; empty for values
	// that are no part of the input.
	scope    map[string]string
	found    reads
	mistakes []mistake
}

// walk returns the path of the value of n, or "" after having recorded what it
// is made of.
func (w *walker) walk(n ast.Expr) string {
	switch n.Kind() {
	case ast.IdentKind:
		return w.ident(n.AsIdent())
	case ast.SelectKind:
		return w.selection(n)
	case ast.CallKind:
		return w.call(n.AsCall())
	case ast.ComprehensionKind:
		return w.comprehension(n)
	}
	for _, part := range children(n) {
		w.record(w.walk(part))
	}
	return ""
}

func (w *walker) ident(name string) string {
	if path, bound := w.scope[name]; bound {
		return path
	}
	switch name {
	case "evidence", "attested", "asset", "device":
		return name
	case "evidence_age":
		// How old evidence is the notebook says itself.
		w.found.evidence = true
	}
	return ""
}

func (w *walker) selection(n ast.Expr) string {
	s := n.AsSelect()
	if ref, ok := w.checked.ReferenceMap()[n.ID()]; ok && ref.Value != nil {
		return "" // a qualified constant: params.x
	}
	if w.checked.GetType(s.Operand().ID()).TypeName() == string((&fleetv1.Device{}).ProtoReflect().Descriptor().FullName()) &&
		(s.FieldName() == "evidence" || s.FieldName() == "attested" || s.FieldName() == "result") {
		// Read this way, evidence would escape the rules of readings, and a
		// result would feed on itself.
		use := "evidence"
		if s.FieldName() == "attested" {
			use = "attested"
		}
		w.refuse(n, "device."+s.FieldName()+" cannot be read in a policy: use "+use)
	}
	if w.checked.GetType(s.Operand().ID()).Kind() == types.DynKind {
		w.refuse(n, "the type of what stands before ."+s.FieldName()+" is not known")
	}
	path := w.walk(s.Operand())
	if path == "" {
		return ""
	}
	return path + "." + s.FieldName()
}

func (w *walker) refuse(n ast.Expr, message string) {
	span, _ := w.checked.SourceInfo().GetOffsetRange(n.ID())
	w.mistakes = append(w.mistakes, mistake{int(span.Start), message})
}

func (w *walker) call(c ast.CallExpr) string {
	target := ""
	if c.IsMemberFunction() {
		target = w.walk(c.Target())
	}
	args := c.Args()
	if c.FunctionName() == operators.Index {
		target, args = w.walk(args[0]), args[1:]
	}
	for _, a := range args {
		path := w.walk(a)
		w.record(path)
		w.look(c.FunctionName(), path)
	}
	w.look(c.FunctionName(), target)
	switch {
	case target == "":
		return ""
	case c.FunctionName() == "secure_boot_on" && target == "attested":
		// It tells from either what it can, so neither has to be known.
		w.attest("attested.secure_boot_on()", "attested.secure_boot", "attested.setup_mode")
		return ""
	case (c.FunctionName() == "approved" || c.FunctionName() == "rejected") && target == "attested":
		w.attest("attested.pcrs", "attested.pcrs")
		return ""
	case c.FunctionName() == operators.Index:
		return target + "[]"
	case c.FunctionName() == "fixed" && target == "evidence.volumes":
		return target + ".volumes"
	}
	w.record(target)
	return ""
}

// look records what a function looks at inside the section it is given, so that
// findings show it.
func (w *walker) look(function, path string) {
	switch {
	case path == "evidence.firewall" && function == "protects":
		w.record(path + ".engines")
		return
	case path != "evidence.patch":
		return
	}
	switch function {
	case "days_pending", "oldest_first_seen", "newest_first_seen":
		w.record(path + ".pending")
	case "security_feeds_fresh":
		w.record(path + ".feeds")
	case "searched_within":
		w.record(path + ".windows_update.last_search_at")
	case "update_source":
		w.record(path + ".windows_update.source")
	}
}

// comprehension follows all(), exists(), filter() and map(): the variable walks
// over the entries of the range, and a filter's outcome is part of the range.
func (w *walker) comprehension(n ast.Expr) string {
	c := n.AsComprehension()
	span := w.walk(c.IterRange())
	w.record(span)
	outer := map[string]string{}
	bind := func(name, path string) {
		if before, bound := w.scope[name]; bound {
			outer[name] = before
		}
		w.scope[name] = path
	}
	w.record(w.walk(c.AccuInit()))
	element := ""
	if span != "" {
		element = span + "[]"
	}
	bind(c.IterVar(), element)
	bind(c.AccuVar(), "")
	w.record(w.walk(c.LoopCondition()))
	w.record(w.walk(c.LoopStep()))
	w.record(w.walk(c.Result()))
	for _, name := range []string{c.IterVar(), c.AccuVar()} {
		delete(w.scope, name)
	}
	for name, path := range outer {
		w.scope[name] = path
	}
	if w.checked.GetType(n.ID()).IsExactType(w.checked.GetType(c.IterRange().ID())) {
		return span
	}
	return ""
}

// record notes that a value is used as a whole.
func (w *walker) record(path string) {
	if path == "" || slices.Contains(w.found.paths, path) {
		return
	}
	root, rest, _ := strings.Cut(path, ".")
	if root == "attested" {
		part := []string{partReading(path)}
		switch {
		case path == root:
			part = attestedParts()
		case part[0] == "":
			part = nil
		}
		if below(path, "attested.reading") {
			w.found.states = append(w.found.states, root)
		}
		w.attest("", path)
		w.found.parts = append(w.found.parts, part...)
		return
	}
	if root != "evidence" {
		w.found.inventory = true
		w.found.paths = append(w.found.paths, path)
		return
	}
	w.found.evidence = true
	section, field, _ := strings.Cut(rest, ".")
	if section, _, _ = strings.Cut(section, "["); section == "" {
		w.found.sections = posture.Sections()
	} else {
		w.found.sections = append(w.found.sections, section)
	}
	if below(field, "reading") {
		w.found.states = append(w.found.states, section)
	}
	if part := partReading(path); part != "" {
		w.found.parts = append(w.found.parts, part)
	}
	w.found.paths = append(w.found.paths, path)
}

// attest notes what a rule reads of the attestation: paths to show, and the part
// that has to be readable, "" for none.
func (w *walker) attest(part string, paths ...string) {
	w.found.attested = true
	w.found.sections = append(w.found.sections, "attested")
	if part != "" {
		w.found.parts = append(w.found.parts, part)
	}
	w.found.paths = append(w.found.paths, paths...)
}

// finish sorts, and drops paths of which another says more: the list when its
// entries are shown, the fields when the entry is.
func (w *walker) finish() {
	f := &w.found
	for _, list := range []*[]string{&f.sections, &f.states, &f.parts} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	all := slices.Clone(f.paths)
	f.paths = slices.DeleteFunc(f.paths, func(path string) bool {
		return slices.ContainsFunc(all, func(other string) bool {
			return strings.HasPrefix(other, path+"[]") ||
				strings.HasSuffix(other, "[]") && strings.HasPrefix(path, other+".")
		})
	})
}

// merge joins the reads of two expressions of one rule.
func (r reads) merge(other reads) reads {
	join := func(a, b []string) []string {
		list := slices.Clone(a)
		for _, s := range b {
			if !slices.Contains(list, s) {
				list = append(list, s)
			}
		}
		return list
	}
	return reads{
		paths: join(r.paths, other.paths), sections: join(r.sections, other.sections),
		states: join(r.states, other.states), parts: join(r.parts, other.parts),
		inventory: r.inventory || other.inventory, attested: r.attested || other.attested, evidence: r.evidence || other.evidence,
	}
}
