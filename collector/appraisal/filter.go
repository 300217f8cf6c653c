package appraisal

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"google.golang.org/protobuf/proto"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Filter is a compiled filter of device lists. It is safe for concurrent use.
type Filter struct {
	// program is nil for the filter that matches every device.
	program cel.Program
	adapt   types.Adapter
}

// CompileFilter compiles a CEL expression over device, asset, evidence,
// attested, result and now; the empty expression matches every device. Enum values have their
// short names: result.verdict == DENY. The error names line and column, from 1,
// of everything that is wrong.
func CompileFilter(expr string) (*Filter, error) {
	if strings.TrimSpace(expr) == "" {
		return &Filter{}, nil
	}
	lang, err := newLanguage(filterVariables())
	if err != nil {
		return nil, err
	}
	checked, found := lang.compile(expr)
	if len(found) == 0 && !checked.OutputType().IsExactType(cel.BoolType) {
		found = []mistake{{0, "the filter has to be true or false, but is of type " + checked.OutputType().String()}}
	}
	if len(found) > 0 {
		var errs []error
		for _, m := range found {
			line, column := lineColumn(expr, m.offset)
			errs = append(errs, fmt.Errorf("filter, line %d, column %d: %s", line, column, m.message))
		}
		return nil, errors.Join(errs...)
	}
	program, err := lang.program(checked)
	if err != nil {
		return nil, fmt.Errorf("planning the filter: %w", err)
	}
	return &Filter{program: program, adapt: lang.adapt}, nil
}

// lineColumn is the reverse of offset, both from 1.
func lineColumn(text string, offset int) (line, column int) {
	line, column = 1, 1
	for i, r := range []rune(text) {
		if i >= offset {
			break
		}
		if column++; r == '\n' {
			line, column = line+1, 1
		}
	}
	return line, column
}

// Match says whether a device matches. An error means that the expression broke
// off for this device: it then neither matches nor not.
func (f *Filter) Match(dev *fleetv1.Device, now time.Time) (bool, error) {
	if f.program == nil {
		return true, nil
	}
	out, _, err := f.program.Eval(&filterVars{dev: dev, now: now, adapt: f.adapt})
	if err != nil {
		return false, fmt.Errorf("filtering %s: %w", dev.GetAsset().GetAssetNumber(), err)
	}
	return out == types.True, nil
}

// filterVars are the variables of a filter for one device. What the device
// lacks reads as its zero value.
type filterVars struct {
	dev   *fleetv1.Device
	now   time.Time
	adapt types.Adapter
}

// ResolveName implements cel.Activation.
func (v *filterVars) ResolveName(name string) (any, bool) {
	switch name {
	case "device":
		return orZero(v.adapt, v.dev, &fleetv1.Device{}), true
	case "asset":
		return orZero(v.adapt, v.dev.GetAsset(), &fleetv1.Asset{}), true
	case "evidence":
		return orZero(v.adapt, v.dev.GetEvidence(), &posturev1.Evidence{}), true
	case "attested":
		return orZero(v.adapt, v.dev.GetAttested(), &posturev1.Attestation{}), true
	case "result":
		return orZero(v.adapt, v.dev.GetResult(), &posturev1.Result{}), true
	case "now":
		return types.Timestamp{Time: v.now}, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (v *filterVars) Parent() cel.Activation { return nil }

func orZero[M proto.Message](adapt types.Adapter, m, zero M) ref.Val {
	if !m.ProtoReflect().IsValid() {
		m = zero
	}
	return adapt.NativeToValue(m)
}
