package probe

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// What is asked of Win32_EncryptableVolume, and nothing else. The answers are
// judged in win_bitlocker.go; host_windows_wmi.go carries the questions.

// encryptableMethods is every method of Win32_EncryptableVolume that this agent
// can call: they look at a volume. The class has others, which hand out
// recovery passwords and keys, or change the volume: they are not here, and the
// code that calls a method refuses what is not here.
func encryptableMethods() []string {
	return []string{
		"GetProtectionStatus",
		"GetConversionStatus",
		"GetEncryptionMethod",
		"GetLockStatus",
		"GetVersion",
		"GetKeyProtectors",
		"GetKeyProtectorType",
		"GetSuspendCount",
	}
}

var errForbiddenMethod = errors.New("this method is not on the list of those that may be called")

// mayCall is asked before every call.
func mayCall(method string) error {
	if !slices.Contains(encryptableMethods(), method) {
		return fmt.Errorf("%s: %w", method, errForbiddenMethod)
	}
	return nil
}

// comError is an HRESULT with what was asked.
type comError struct {
	asked  string
	result uint32
}

func (e *comError) Error() string {
	return fmt.Sprintf("%s: 0x%08X", e.asked, e.result)
}

// resultOf is the HRESULT in err; E_FAIL for an error that has none, 0 for nil.
func resultOf(err error) uint32 {
	if err == nil {
		return 0
	}
	var com *comError
	if errors.As(err, &com) {
		return com.result
	}
	return 0x80004005
}

// WBEM status codes (wbemcli.h, WBEMSTATUS).
const (
	wbemNotFound             = 0x80041002
	wbemInvalidNamespace     = 0x8004100E
	wbemInvalidClass         = 0x80041010
	wbemInvalidMethod        = 0x8004102E
	wbemMethodNotImplemented = 0x80041055
	wbemMethodDisabled       = 0x80041056
)

// wmiObject is one instance, or what a method answered.
type wmiObject interface {
	// property is a number, text or list of texts; nil for NULL. The error
	// holds a comError.
	property(name string) (any, error)
	// call runs an allow-listed method.
	call(method string, in ...wmiArgument) (wmiObject, error)
}

// wmiArgument is an in-parameter of a method: an int32 (as automation knows
// every uint32) or a string.
type wmiArgument struct {
	name  string
	value any
}

// wmiMissing says that a class has no such property or method. Versions of Windows
// differ: GetSuspendCount came with Windows 8.
func wmiMissing(err error) bool {
	switch resultOf(err) {
	case wbemNotFound, wbemInvalidMethod, wbemMethodNotImplemented, wbemMethodDisabled:
		return true
	}
	return false
}

// wmiNumber is an unsigned property, which automation shows as signed.
func wmiNumber(o wmiObject, name string) (uint32, error) {
	value, err := o.property(name)
	if err != nil {
		return 0, err
	}
	switch v := value.(type) {
	case int64:
		return uint32(v), nil
	case nil:
		return 0, fmt.Errorf("%s is NULL", name)
	default:
		return 0, fmt.Errorf("%s is a %T", name, value)
	}
}

// wmiOptional is a property that need not be there.
func wmiOptional(o wmiObject, name string) *uint32 {
	n, err := wmiNumber(o, name)
	if err != nil {
		return nil
	}
	return &n
}

// readEncryptable asks one instance everything. An error means that not even
// its name could be read; a method that could not be called says so by its
// return code.
func readEncryptable(o wmiObject) (EncryptableVolume, error) {
	var v EncryptableVolume
	id, err := o.property("DeviceID")
	if err != nil {
		return v, fmt.Errorf("reading DeviceID: %w", err)
	}
	v.Volume, _ = id.(string)
	if v.Volume == "" {
		return v, errors.New("a volume without DeviceID")
	}
	letter, err := o.property("DriveLetter")
	if err != nil && !wmiMissing(err) {
		return v, fmt.Errorf("reading DriveLetter: %w", err)
	}
	text, _ := letter.(string)
	v.Letter = text != ""
	v.ProtectionProperty = wmiOptional(o, "ProtectionStatus")
	v.ConversionProperty = wmiOptional(o, "ConversionStatus")
	v.MethodProperty = wmiOptional(o, "EncryptionMethod")
	v.VolumeType = wmiOptional(o, "VolumeType")

	if a := askMethod(o, "GetProtectionStatus"); a != nil {
		v.Protection = &ProtectionAnswer{Status: a.number("ProtectionStatus"), Return: a.result()}
	}
	// The precision is asked for: a rounded percentage is no proof.
	if a := askMethod(o, "GetConversionStatus", wmiArgument{"PrecisionFactor", int32(4)}); a != nil {
		v.Conversion = &ConversionAnswer{
			Status:     a.number("ConversionStatus"),
			Percentage: a.number("EncryptionPercentage"),
			Flags:      a.number("EncryptionFlags"),
			Wiping:     a.number("WipingStatus"),
			Return:     a.result(),
		}
	}
	if a := askMethod(o, "GetEncryptionMethod"); a != nil {
		v.Method = &MethodAnswer{
			Method:         a.number("EncryptionMethod"),
			SelfEncryption: a.text("SelfEncryptionDriveEncryptionMethod"),
			Return:         a.result(),
		}
	}
	if a := askMethod(o, "GetLockStatus"); a != nil {
		v.Lock = &LockAnswer{Status: a.number("LockStatus"), Return: a.result()}
	}
	if a := askMethod(o, "GetVersion"); a != nil {
		v.Version = &VersionAnswer{Version: a.number("Version"), Return: a.result()}
	}
	v.Protectors = readProtectors(o)
	if a := askMethod(o, "GetSuspendCount"); a != nil {
		v.Suspended = &SuspendAnswer{Count: a.number("SuspendCount"), Return: a.result()}
	}
	return v, nil
}

// readProtectors lists the kinds of key protectors. Their identifiers stay in
// this function.
func readProtectors(o wmiObject) *ProtectorsAnswer {
	a := askMethod(o, "GetKeyProtectors", wmiArgument{"KeyProtectorType", int32(0)})
	if a == nil {
		return nil
	}
	ids := a.texts("VolumeKeyProtectorID")
	answer := &ProtectorsAnswer{Return: a.result(), Types: []ProtectorType{}}
	if answer.Return != 0 {
		return answer
	}
	for _, id := range ids {
		if a := askMethod(o, "GetKeyProtectorType", wmiArgument{"VolumeKeyProtectorID", id}); a != nil {
			answer.Types = append(answer.Types, ProtectorType{Type: a.number("KeyProtectorType"), Return: a.result()})
		} else {
			// Of a protector whose kind cannot be asked nothing may be concluded.
			answer.Types = append(answer.Types, ProtectorType{Return: wbemInvalidMethod})
		}
	}
	return answer
}

// methodAnswer is one method's answer. Its zero Return stands only behind a
// complete one.
type methodAnswer struct {
	out     wmiObject
	code    uint32
	damaged error
}

// askMethod calls a method; nil when the class does not have it.
func askMethod(o wmiObject, method string, in ...wmiArgument) *methodAnswer {
	out, err := o.call(method, in...)
	if wmiMissing(err) {
		return nil
	}
	if err != nil {
		return &methodAnswer{code: resultOf(err)}
	}
	a := &methodAnswer{out: out}
	a.code, a.damaged = wmiNumber(out, "ReturnValue")
	return a
}

// result is the return value; the HRESULT of a call that did not reach the
// method; E_UNEXPECTED when the method succeeded without the value it is for.
func (a *methodAnswer) result() uint32 {
	if a.damaged != nil {
		return cmp.Or(a.code, 0x8000FFFF)
	}
	return a.code
}

// number is an out-parameter that must be there after success.
func (a *methodAnswer) number(name string) uint32 {
	if a.code != 0 || a.damaged != nil {
		return 0
	}
	n, err := wmiNumber(a.out, name)
	a.damaged = err
	return n
}

// text is an out-parameter that may be NULL.
func (a *methodAnswer) text(name string) string {
	if a.code != 0 || a.damaged != nil {
		return ""
	}
	value, _ := a.out.property(name)
	s, _ := value.(string)
	return s
}

// texts is a list; NULL is an empty one.
func (a *methodAnswer) texts(name string) []string {
	if a.code != 0 || a.damaged != nil {
		return nil
	}
	value, err := a.out.property(name)
	list, ok := value.([]string)
	if err != nil || value != nil && !ok {
		a.damaged = errors.Join(err, fmt.Errorf("%s is a %T", name, value))
	}
	return list
}
