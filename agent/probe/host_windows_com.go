//go:build windows

package probe

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/go-ole/go-ole"
)

// withCOM runs do on one thread with COM started on it. Only the processes
// that read aside start COM, never the service.
func withCOM(do func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const alreadyStarted = 1 // S_FALSE
	if err := ole.CoInitializeEx(0, ole.COINIT_MULTITHREADED); err != nil && hresult(err) != alreadyStarted {
		return comFailed("starting COM", err)
	}
	defer ole.CoUninitialize()
	return do()
}

// hresult is the code in an error of COM: zero for none, E_FAIL for an error
// without code.
func hresult(err error) uint32 {
	if err == nil {
		return 0
	}
	if e := new(ole.OleError); errors.As(err, &e) {
		return uint32(e.Code())
	}
	return ole.E_FAIL
}

// comFailed tells an error of COM by its code: Windows has a text for few of
// them, and that in the machine's language.
func comFailed(doing string, err error) error {
	return fmt.Errorf("%s: error 0x%08X", doing, hresult(err))
}

// newDispatch makes an object and asks it for IDispatch.
func newDispatch(class *ole.GUID) (*ole.IDispatch, error) {
	object, err := ole.CreateInstance(class, ole.IID_IUnknown)
	if err != nil {
		return nil, err
	}
	defer object.Release()
	return object.QueryInterface(ole.IID_IDispatch)
}
