//go:build windows

package probe

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/go-ole/go-ole"
)

// onCOM runs a test on a thread with COM.
func onCOM(t *testing.T, do func() error) {
	t.Helper()
	if _, err := inCOM(func() (struct{}, error) { return struct{}{}, do() }); err != nil {
		t.Fatal(err)
	}
}

// TestWMIIsReadByName reads what every Windows has; Win32_EncryptableVolume is
// read by the same way.
func TestWMIIsReadByName(t *testing.T) {
	onCOM(t, func() error {
		service, err := connectWMI(`ROOT\CIMV2`)
		if err != nil {
			return err
		}
		instances, err := asObject(service.invoke("ExecQuery", "SELECT * FROM Win32_OperatingSystem"))
		if err != nil {
			return err
		}
		count := 0
		err = instances.enumerate(func(o object) error {
			count++
			w := wmiInstance{o}
			if name, err := w.property("Caption"); err != nil || name == "" {
				t.Errorf("Caption: %v, %v", name, err)
			}
			if build, err := w.property("BuildNumber"); err != nil || build == "" {
				t.Errorf("BuildNumber: %v, %v", build, err)
			}
			if n, err := wmiNumber(w, "ProductType"); err != nil || n == 0 {
				t.Errorf("ProductType: %v, %v", n, err)
			}
			if _, err := w.property("NoSuchProperty"); !wmiMissing(err) {
				t.Errorf("a property that is not there: %v", err)
			}
			return nil
		})
		if count != 1 {
			t.Errorf("%d instances", count)
		}
		return err
	})
}

// TestWMIMethodsAnswerByName calls a harmless method without arguments.
func TestWMIMethodsAnswerByName(t *testing.T) {
	onCOM(t, func() error {
		service, err := connectWMI(`ROOT\CIMV2`)
		if err != nil {
			return err
		}
		processes, err := asObject(service.invoke("ExecQuery",
			fmt.Sprintf("SELECT * FROM Win32_Process WHERE ProcessId = %d", os.Getpid())))
		if err != nil {
			return err
		}
		count := 0
		err = processes.enumerate(func(o object) error {
			count++
			out, err := wmiInstance{o}.execute("GetOwner", nil)
			if err != nil {
				return err
			}
			if code, err := wmiNumber(out, "ReturnValue"); err != nil || code != 0 {
				t.Errorf("ReturnValue is %d, %v", code, err)
			}
			if user, err := out.property("User"); err != nil || user == "" {
				t.Errorf("User is %v, %v", user, err)
			}
			return nil
		})
		if count != 1 {
			t.Errorf("%d instances", count)
		}
		return err
	})
}

// TestWMIMethodsTakeArguments calls a harmless method of another class as those
// of Win32_EncryptableVolume are called.
func TestWMIMethodsTakeArguments(t *testing.T) {
	const (
		localMachineKey = -2147483646 // HKEY_LOCAL_MACHINE
		notImplemented  = 0x80004001
	)
	onCOM(t, func() error {
		service, err := connectWMI(`ROOT\CIMV2`)
		if err != nil {
			return err
		}
		registry, err := asObject(service.invoke("Get", "StdRegProv"))
		if err != nil {
			return err
		}
		w := wmiInstance{registry}
		if _, err := w.call("GetStringValue"); !errors.Is(err, errForbiddenMethod) {
			t.Errorf("a method that is not on the list: %v", err)
		}
		out, err := w.execute("GetStringValue", []wmiArgument{
			{"hDefKey", int32(localMachineKey)}, {"sSubKeyName", currentVersionKey}, {"sValueName", "CurrentBuild"},
		})
		if resultOf(err) == notImplemented {
			t.Skipf("SKIPPED, not tried: this WMI has no arguments of methods (%v); Wine 10 has none", err)
		}
		if err != nil {
			return err
		}
		if code, err := wmiNumber(out, "ReturnValue"); err != nil || code != 0 {
			t.Errorf("ReturnValue is %d, %v", code, err)
		}
		if build, err := out.property("sValue"); err != nil || build == "" {
			t.Errorf("sValue is %v, %v", build, err)
		}
		out, err = w.execute("EnumKey", []wmiArgument{{"hDefKey", int32(localMachineKey)}, {"sSubKeyName", "SOFTWARE"}})
		if err != nil {
			return err
		}
		if names, err := out.property("sNames"); err != nil || len(names.([]string)) == 0 {
			t.Errorf("sNames is %v, %v", names, err)
		}
		if _, err := w.execute("NoSuchMethod", nil); !wmiMissing(err) {
			t.Errorf("a method that is not there: %v", err)
		}
		return nil
	})
}

func TestNamespaceThatIsNotThereIsNotFound(t *testing.T) {
	onCOM(t, func() error {
		if _, err := connectWMI(`ROOT\CIMV2\NoSuchNamespace`); !errors.Is(err, ErrNotFound) {
			t.Errorf("error is %v", err)
		}
		return nil
	})
}

func TestNumbersOfAutomation(t *testing.T) {
	if n, ok := asNumber(&ole.VARIANT{VT: ole.VT_I4, Val: 7}); !ok || n != 7 {
		t.Errorf("%d, %v", n, ok)
	}
	if _, ok := asNumber(&ole.VARIANT{VT: ole.VT_NULL}); ok {
		t.Error("NULL is no number")
	}
}
