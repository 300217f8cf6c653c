package appraisal

import (
	"fmt"
	"slices"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// check finds comparisons of an enum field with anything but the names of its
// own values. "asset.state == SUSPENDED_" CEL finds by itself, "asset.state ==
// DENY" and "asset.state == 4" it would take.
func (e *enums) check(checked *ast.AST) []mistake {
	var found []mistake
	visit := func(n ast.Expr) {
		if n.Kind() != ast.CallKind {
			return
		}
		call := n.AsCall()
		switch call.FunctionName() {
		case operators.Equals, operators.NotEquals, operators.In,
			operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals:
		default:
			return
		}
		for i, arg := range call.Args() {
			enum := enumOf(checked, arg)
			if enum == nil {
				continue
			}
			for _, other := range operands(call.Args()[1-i]) {
				if text := e.mismatch(checked, enum, other); text != "" {
					start, _ := checked.SourceInfo().GetOffsetRange(other.ID())
					found = append(found, mistake{int(start.Start), text})
				}
			}
		}
	}
	ast.PostOrderVisit(checked.Expr(), ast.NewExprVisitor(visit))
	return found
}

// operands are the elements of a literal list, or the expression itself.
func operands(n ast.Expr) []ast.Expr {
	if n.Kind() == ast.ListKind {
		return n.AsList().Elements()
	}
	return []ast.Expr{n}
}

func (e *enums) mismatch(checked *ast.AST, enum protoreflect.EnumDescriptor, n ast.Expr) string {
	switch n.Kind() {
	case ast.LiteralKind:
		return fmt.Sprintf("a %s is compared with a number: write the name of the value", enum.Name())
	case ast.IdentKind:
		if of, named := e.of[n.AsIdent()]; named && !slices.Contains(of, enum.FullName()) {
			return fmt.Sprintf("%s is no %s", n.AsIdent(), enum.Name())
		}
	case ast.SelectKind:
		if other := enumOf(checked, n); other != nil && other.FullName() != enum.FullName() {
			return fmt.Sprintf("a %s is compared with a %s", enum.Name(), other.Name())
		}
	}
	return ""
}

// enumOf returns the enum of a selected field, nil when n is none.
func enumOf(checked *ast.AST, n ast.Expr) protoreflect.EnumDescriptor {
	if n.Kind() != ast.SelectKind || n.AsSelect().IsTestOnly() {
		return nil
	}
	typ := checked.GetType(n.AsSelect().Operand().ID())
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(typ.TypeName()))
	if err != nil {
		return nil
	}
	message, ok := d.(protoreflect.MessageDescriptor)
	if !ok {
		return nil
	}
	field := message.Fields().ByName(protoreflect.Name(n.AsSelect().FieldName()))
	if field == nil || field.IsList() {
		return nil
	}
	return field.Enum()
}
