//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"syscall"
	"unsafe"

	"github.com/go-ole/go-ole"
	"golang.org/x/sys/windows"
)

// wscAntivirus is WSC_SECURITY_PROVIDER_ANTIVIRUS (wscapi.h).
const wscAntivirus = 4

// moduleNotFound is HRESULT_FROM_WIN32(ERROR_MOD_NOT_FOUND).
const moduleNotFound = 0x8007007E

// readAntivirus runs in a process of its own. Servers answer with codes of
// errors: they have no Security Center.
func readAntivirus(context.Context) (SecurityAnswer, error) {
	return inCOM(func() (answer SecurityAnswer, err error) {
		answer.HealthResult, answer.Health = securityHealth(wscAntivirus)
		answer.Products, err = securityProducts()
		if err != nil {
			answer.ListResult = comResult(err)
		}
		words, err := productWords()
		if err != nil { // the interface's answer stands alone then
			return answer, nil
		}
		for i, p := range answer.Products {
			if word, ok := words[p.Name]; ok {
				answer.Products[i].ProductState = &word
			}
		}
		return answer, nil
	})
}

// unanswered stands where Windows has not written: zero would be "good" or "on".
const unanswered = ^uint32(0)

func securityHealth(provider uint32) (result, health uint32) {
	health = unanswered
	ask := windows.NewLazySystemDLL("wscapi.dll").NewProc("WscGetSecurityProviderHealth")
	if ask.Find() != nil {
		return moduleNotFound, health
	}
	r, _, _ := ask.Call(uintptr(provider), uintptr(unsafe.Pointer(&health)))
	return uint32(r), health
}

// Where the methods of IWSCProductList and IWscProduct stand in their tables,
// behind the seven of IDispatch (iwscapi.h).
const (
	listInitialize         = 7
	listCount              = 8
	listItem               = 9
	productName            = 7
	productStateOf         = 8
	productSignatureStatus = 9
)

func securityProducts() ([]SecurityProduct, error) {
	list, err := ole.CreateInstance(
		ole.NewGUID("{17072F7B-9ABE-4A74-A261-1EB76B55107A}"), // WSCProductList
		ole.NewGUID("{722A338C-6E8E-4E72-AC27-1417FB0C81C2}")) // IWSCProductList
	if err != nil {
		return nil, err
	}
	defer list.Release()
	if err := method(list, listInitialize, wscAntivirus); err != nil {
		return nil, err
	}
	var count int32
	if err := method(list, listCount, uintptr(unsafe.Pointer(&count))); err != nil {
		return nil, err
	}
	const most = 64
	if count < 0 || count > most {
		return nil, fmt.Errorf("a list of %d products is none", count)
	}
	products := []SecurityProduct{}
	for i := range count {
		var product *ole.IUnknown
		if err := method(list, listItem, uintptr(i), uintptr(unsafe.Pointer(&product))); err != nil {
			return products, err
		}
		if product == nil {
			return products, errors.New("a product is not there")
		}
		p, err := securityProductOf(product)
		product.Release()
		if err != nil {
			return products, err
		}
		products = append(products, p)
	}
	return products, nil
}

func securityProductOf(product *ole.IUnknown) (p SecurityProduct, err error) {
	p.State, p.SignatureStatus = unanswered, unanswered
	var name *uint16 // BSTR
	if err := method(product, productName, uintptr(unsafe.Pointer(&name))); err != nil {
		return p, err
	}
	if name != nil {
		p.Name = windows.UTF16PtrToString(name)
		ole.SysFreeString((*int16)(unsafe.Pointer(name)))
	}
	if err := method(product, productStateOf, uintptr(unsafe.Pointer(&p.State))); err != nil {
		return p, err
	}
	return p, method(product, productSignatureStatus, uintptr(unsafe.Pointer(&p.SignatureStatus)))
}

// method calls a method by its place in the object's table. What arguments
// point to stays where it is meanwhile.
//
//go:uintptrescapes
func method(object *ole.IUnknown, place int, arguments ...uintptr) error {
	table := unsafe.Slice((*uintptr)(unsafe.Pointer(object.RawVTable)), place+1)
	result, _, _ := syscall.SyscallN(table[place], append([]uintptr{uintptr(unsafe.Pointer(object))}, arguments...)...)
	if uint32(result) != 0 { // also S_FALSE, which promises no answer
		return ole.NewError(uintptr(uint32(result)))
	}
	return nil
}

// productWords is productState of each AntiVirusProduct, by name. A name that
// stands for several products with different words is left out: which is meant
// cannot be told.
func productWords() (map[string]uint32, error) {
	service, err := connectWMI(`root\SecurityCenter2`)
	if err != nil {
		return nil, err
	}
	rows, err := asObject(service.invoke("ExecQuery", "SELECT displayName, productState FROM AntiVirusProduct"))
	if err != nil {
		return nil, err
	}
	words, twice := map[string]uint32{}, map[string]bool{}
	err = rows.enumerate(func(row object) error {
		name, err := row.text("displayName")
		if err != nil {
			return err
		}
		word, err := row.number("productState")
		if err != nil {
			return err
		}
		before, known := words[name]
		twice[name] = known && before != uint32(word) || twice[name]
		words[name] = uint32(word)
		return nil
	})
	maps.DeleteFunc(words, func(name string, _ uint32) bool { return twice[name] })
	return words, err
}
