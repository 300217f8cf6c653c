//go:build windows

package probe

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"

	"github.com/go-ole/go-ole"
	"github.com/go-ole/go-ole/oleutil"
)

// Automation objects, as far as the readings aside need them. The process ends
// after its one answer, so objects are not released one by one.

const (
	sFalse        = 0x00000001
	dispException = 0x80020009 // the HRESULT is in EXCEPINFO
)

// inCOM makes a reading on one thread with COM: objects of one apartment are
// used by no other (go-ole#135). It does not return while the reading hangs;
// the process is then ended from outside.
func inCOM[T any](read func() (T, error)) (answer T, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := ole.CoInitializeEx(0, ole.COINIT_MULTITHREADED); err != nil && comResult(err) != sFalse { // started before
		return answer, &comError{"starting COM", comResult(err)}
	}
	defer ole.CoUninitialize()
	return read()
}

// comResult is the HRESULT of an error of go-ole.
func comResult(err error) uint32 {
	var failed *ole.OleError
	if !errors.As(err, &failed) {
		return resultOf(err)
	}
	if exception, ok := failed.SubError().(ole.EXCEPINFO); ok && uint32(failed.Code()) == dispException && exception.SCODE() != 0 {
		return exception.SCODE()
	}
	return uint32(failed.Code())
}

// object is one automation object.
type object struct{ dispatch *ole.IDispatch }

// newObject makes one by its program name.
func newObject(program string) (object, error) {
	unknown, err := oleutil.CreateObject(program)
	if err != nil {
		return object{}, &comError{"creating " + program, comResult(err)}
	}
	dispatch, err := unknown.QueryInterface(ole.IID_IDispatch)
	if err != nil {
		return object{}, &comError{"IDispatch of " + program, comResult(err)}
	}
	return object{dispatch}, nil
}

func (o object) get(name string, arguments ...any) (*ole.VARIANT, error) {
	v, err := oleutil.GetProperty(o.dispatch, name, arguments...)
	if err != nil {
		return nil, &comError{name, comResult(err)}
	}
	return v, nil
}

func (o object) put(name string, value any) error {
	if _, err := oleutil.PutProperty(o.dispatch, name, value); err != nil {
		return &comError{"setting " + name, comResult(err)}
	}
	return nil
}

func (o object) invoke(name string, arguments ...any) (*ole.VARIANT, error) {
	v, err := oleutil.CallMethod(o.dispatch, name, arguments...)
	if err != nil {
		return nil, &comError{name, comResult(err)}
	}
	return v, nil
}

// asObject takes what get or invoke returned.
func asObject(v *ole.VARIANT, err error) (object, error) {
	if err != nil {
		return object{}, err
	}
	if d := v.ToIDispatch(); d != nil {
		return object{d}, nil
	}
	return object{}, fmt.Errorf("an object was expected, not VARIANT type %d", v.VT)
}

func (o object) text(name string) (string, error) {
	v, err := o.get(name)
	if err != nil {
		return "", err
	}
	switch s := v.Value().(type) {
	case string:
		return s, nil
	case nil:
		return "", nil
	default:
		return "", fmt.Errorf("%s is a %T, not a text", name, s)
	}
}

func (o object) flag(name string, arguments ...any) (bool, error) {
	v, err := o.get(name, arguments...)
	if err != nil {
		return false, err
	}
	b, ok := v.Value().(bool)
	if !ok {
		return false, fmt.Errorf("%s is VARIANT type %d, not a truth value", name, v.VT)
	}
	return b, nil
}

func (o object) number(name string, arguments ...any) (int32, error) {
	v, err := o.get(name, arguments...)
	if err != nil {
		return 0, err
	}
	n, ok := asNumber(v)
	if !ok {
		return 0, fmt.Errorf("%s is VARIANT type %d, not a number", name, v.VT)
	}
	return int32(n), nil
}

// time is zero when the object has none. go-ole's own conversion is not used:
// it falls back to now.
func (o object) time(name string) (time.Time, error) {
	v, err := o.get(name)
	if err != nil {
		return time.Time{}, err
	}
	switch v.VT {
	case ole.VT_DATE:
		return oleDate(math.Float64frombits(uint64(v.Val))), nil
	case ole.VT_EMPTY, ole.VT_NULL:
		return time.Time{}, nil
	}
	return time.Time{}, fmt.Errorf("%s is VARIANT type %d, not a date", name, v.VT)
}

func asNumber(v *ole.VARIANT) (int64, bool) {
	switch n := v.Value().(type) {
	case int8:
		return int64(n), true
	case uint8:
		return int64(n), true
	case int16:
		return int64(n), true
	case uint16:
		return int64(n), true
	case int32:
		return int64(n), true
	case uint32:
		return int64(n), true
	case int64:
		return n, true
	case int:
		return int64(n), true
	}
	return 0, false
}

// each calls f with every item of a collection that has Count and Item.
func (o object) each(f func(item *ole.VARIANT) error) error {
	count, err := o.number("Count")
	if err != nil {
		return err
	}
	for i := range count {
		item, err := o.get("Item", i)
		if err != nil {
			return err
		}
		if err := f(item); err != nil {
			return err
		}
	}
	return nil
}

// enumerate calls f with every object that _NewEnum yields. go-ole's ForEach
// takes an error of the enumeration for its end: a query that was refused would
// look like an empty answer.
func (o object) enumerate(f func(object) error) error {
	v, err := o.get("_NewEnum")
	if err != nil {
		return err
	}
	unknown := v.ToIUnknown()
	if unknown == nil {
		return fmt.Errorf("_NewEnum is VARIANT type %d", v.VT)
	}
	enum, err := unknown.IEnumVARIANT(ole.IID_IEnumVariant)
	if err != nil {
		return &comError{"_NewEnum", comResult(err)}
	}
	for {
		item, length, err := enum.Next(1)
		switch {
		case length == 1:
		case err == nil || comResult(err) == sFalse:
			return nil
		default:
			return &comError{"enumerating", comResult(err)}
		}
		next, err := asObject(&item, nil)
		if err != nil {
			return err
		}
		if err := f(next); err != nil {
			return err
		}
	}
}
