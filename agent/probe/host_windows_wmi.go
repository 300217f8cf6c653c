//go:build windows

package probe

import (
	"context"
	"fmt"

	"github.com/go-ole/go-ole"
)

const (
	encryptableNamespace = `ROOT\CIMV2\Security\MicrosoftVolumeEncryption`
	encryptableClass     = "Win32_EncryptableVolume"
)

// readBitLocker asks every instance of Win32_EncryptableVolume, through the
// automation interface of WMI (SWbemLocator): all that needs is names.
func readBitLocker(context.Context) ([]EncryptableVolume, error) {
	return inCOM(func() ([]EncryptableVolume, error) {
		service, err := connectWMI(encryptableNamespace)
		if err != nil {
			return nil, err
		}
		instances, err := asObject(service.invoke("ExecQuery", "SELECT * FROM "+encryptableClass))
		if err != nil {
			return nil, absent(err)
		}
		volumes := []EncryptableVolume{}
		err = instances.enumerate(func(o object) error {
			v, err := readEncryptable(wmiInstance{o})
			volumes = append(volumes, v)
			return err
		})
		if err != nil {
			return nil, absent(err)
		}
		return volumes, nil
	})
}

// connectWMI opens a namespace of this machine, named ".": nil means the same
// to Windows, but not to Wine.
func connectWMI(namespace string) (object, error) {
	locator, err := newObject("WbemScripting.SWbemLocator")
	if err != nil {
		return object{}, err
	}
	service, err := asObject(locator.invoke("ConnectServer", ".", namespace))
	if err != nil {
		return object{}, absent(err)
	}
	// BitLocker's provider wants packets to be private, as its documentation
	// says for remote callers; a local call is private anyway, so a refusal is
	// no reason to stop.
	if security, err := asObject(service.get("Security_")); err == nil {
		_ = security.put("ImpersonationLevel", int32(3))  // impersonate
		_ = security.put("AuthenticationLevel", int32(6)) // packet privacy
	}
	return service, nil
}

// absent turns "no such namespace" and "no such class" into ErrNotFound: some
// editions of Windows have no BitLocker.
func absent(err error) error {
	switch resultOf(err) {
	case wbemInvalidNamespace, wbemInvalidClass:
		return fmt.Errorf("%s: %w: %w", encryptableClass, err, ErrNotFound)
	}
	return fmt.Errorf("%s: %w", encryptableClass, err)
}

// wmiInstance is an SWbemObject.
type wmiInstance struct{ object }

func (w wmiInstance) property(name string) (any, error) {
	properties, err := asObject(w.get("Properties_"))
	if err != nil {
		return nil, err
	}
	p, err := asObject(properties.invoke("Item", name))
	if err != nil {
		return nil, err
	}
	v, err := p.get("Value")
	if err != nil {
		return nil, err
	}
	switch n, ok := asNumber(v); {
	case ok:
		return n, nil
	case v.VT&ole.VT_ARRAY != 0:
		return texts(v)
	default:
		return v.Value(), nil
	}
}

// texts is an array of strings.
func texts(v *ole.VARIANT) ([]string, error) {
	var list []string
	for _, item := range v.ToArray().ToValueArray() {
		s, ok := item.(string)
		if !ok {
			return nil, fmt.Errorf("an element is a %T, not a text", item)
		}
		list = append(list, s)
	}
	return list, nil
}

// call asks the list of methods, then Windows. It is the only caller of
// execute.
func (w wmiInstance) call(method string, in ...wmiArgument) (wmiObject, error) {
	if err := mayCall(method); err != nil {
		return nil, err
	}
	return w.execute(method, in)
}

// execute runs one method by SWbemObject.ExecMethod_.
func (w wmiInstance) execute(method string, in []wmiArgument) (wmiObject, error) {
	arguments := []any{method}
	if len(in) > 0 {
		parameters, err := w.parameters(method, in)
		if err != nil {
			return nil, err
		}
		arguments = append(arguments, parameters.dispatch)
	}
	out, err := asObject(w.object.invoke("ExecMethod_", arguments...))
	if err != nil {
		return nil, err
	}
	return wmiInstance{out}, nil
}

// parameters fills in the in-parameters of a method.
func (w wmiInstance) parameters(method string, in []wmiArgument) (object, error) {
	methods, err := asObject(w.get("Methods_"))
	if err != nil {
		return object{}, err
	}
	declared, err := asObject(methods.invoke("Item", method))
	if err != nil {
		return object{}, err
	}
	class, err := asObject(declared.get("InParameters"))
	if err != nil {
		return object{}, err
	}
	values, err := asObject(class.invoke("SpawnInstance_"))
	if err != nil {
		return object{}, err
	}
	properties, err := asObject(values.get("Properties_"))
	if err != nil {
		return object{}, err
	}
	for _, a := range in {
		p, err := asObject(properties.invoke("Item", a.name))
		if err != nil {
			return object{}, err
		}
		if err := p.put("Value", a.value); err != nil {
			return object{}, err
		}
	}
	return values, nil
}
