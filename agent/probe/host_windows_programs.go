//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// readProgram runs in a process of its own: verifying loads whatever is
// registered for signatures, and reads the file to its end.
func readProgram(_ context.Context, path string) (p Program, err error) {
	if info, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return p, fmt.Errorf("the program's file: %w", ErrNotFound)
	} else if err != nil {
		return p, fmt.Errorf("the program's file: %w", withoutPath(err))
	} else if !info.Mode().IsRegular() {
		return p, errors.New("the program is no file")
	}
	if p.Trust, err = trust(path); err != nil {
		return p, err
	}
	var errs []error
	if p.Trust != uint32(windows.TRUST_E_NOSIGNATURE) {
		p.Publisher, err = publisher(path)
		errs = append(errs, err)
	}
	p.FileVersion, p.ProductName, err = versionResource(path)
	return p, errors.Join(append(errs, err)...)
}

// withoutPath keeps a path out of a reason.
func withoutPath(err error) error {
	if p := new(os.PathError); errors.As(err, &p) {
		return p.Err
	}
	return err
}

// trust is WinVerifyTrust's result for the signature inside a file, without
// windows and without network: revocation is not looked up. Files that Windows
// ships are often signed by a catalogue beside them and count as not signed.
func trust(path string) (uint32, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, fmt.Errorf("naming a program: %w", err)
	}
	const cacheOnlyURLRetrieval = 0x1000 // WTD_CACHE_ONLY_URL_RETRIEVAL
	file := windows.WinTrustFileInfo{FilePath: name}
	file.Size = uint32(unsafe.Sizeof(file))
	data := windows.WinTrustData{
		UIChoice:                        windows.WTD_UI_NONE,
		RevocationChecks:                windows.WTD_REVOKE_NONE,
		UnionChoice:                     windows.WTD_CHOICE_FILE,
		FileOrCatalogOrBlobOrSgnrOrCert: unsafe.Pointer(&file),
		StateAction:                     windows.WTD_STATEACTION_VERIFY,
		ProvFlags:                       windows.WTD_REVOCATION_CHECK_NONE | cacheOnlyURLRetrieval,
	}
	data.Size = uint32(unsafe.Sizeof(data))
	action := windows.WINTRUST_ACTION_GENERIC_VERIFY_V2
	err = windows.WinVerifyTrustEx(windows.InvalidHWND, &action, &data)
	data.StateAction = windows.WTD_STATEACTION_CLOSE
	errClose := windows.WinVerifyTrustEx(windows.InvalidHWND, &action, &data)
	if err == nil {
		if errClose != nil {
			return 0, fmt.Errorf("closing a signature: %w", errClose)
		}
		return 0, nil
	}
	if code := syscall.Errno(0); errors.As(err, &code) {
		return uint32(code), nil
	}
	return 0, fmt.Errorf("verifying a signature: %w", err)
}

// publisher is the common name in the certificate of a file's first signer.
func publisher(path string) (string, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return "", fmt.Errorf("naming a program: %w", err)
	}
	var store, message windows.Handle
	err = windows.CryptQueryObject(windows.CERT_QUERY_OBJECT_FILE, unsafe.Pointer(name),
		windows.CERT_QUERY_CONTENT_FLAG_PKCS7_SIGNED_EMBED, windows.CERT_QUERY_FORMAT_FLAG_BINARY, 0,
		nil, nil, nil, &store, &message, nil)
	if err != nil {
		return "", fmt.Errorf("reading a signature: %w", err)
	}
	defer windows.CertCloseStore(store, 0)
	library := windows.NewLazySystemDLL("crypt32.dll")
	defer library.NewProc("CryptMsgClose").Call(uintptr(message))
	signer, err := signerCertificate(library.NewProc("CryptMsgGetParam"), message)
	if err != nil {
		return "", fmt.Errorf("reading a signer: %w", err)
	}
	const subjectCertificate = 11 << 16 // CERT_FIND_SUBJECT_CERT
	const encoding = windows.X509_ASN_ENCODING | windows.PKCS_7_ASN_ENCODING
	certificate, err := windows.CertFindCertificateInStore(store, encoding, 0, subjectCertificate, unsafe.Pointer(&signer[0]), nil)
	if err != nil {
		return "", fmt.Errorf("finding the signer's certificate: %w", err)
	}
	defer windows.CertFreeCertificateContext(certificate)
	commonName := []byte("2.5.4.3\x00")
	var text [256]uint16
	windows.CertGetNameString(certificate, windows.CERT_NAME_ATTR_TYPE, 0, unsafe.Pointer(&commonName[0]), &text[0], uint32(len(text)))
	return windows.UTF16ToString(text[:]), nil
}

// signerCertificate returns a CERT_INFO with issuer and serial number of the
// first signer's certificate, in memory that holds what it points to.
func signerCertificate(param *windows.LazyProc, message windows.Handle) ([]byte, error) {
	if err := param.Find(); err != nil {
		return nil, err
	}
	const signerCertInfo = 7 // CMSG_SIGNER_CERT_INFO_PARAM
	var size uint32
	if ok, _, err := param.Call(uintptr(message), signerCertInfo, 0, 0, uintptr(unsafe.Pointer(&size))); ok == 0 {
		return nil, err
	}
	if size == 0 || size > 64<<10 {
		return nil, fmt.Errorf("its certificate's name cannot have %d bytes", size)
	}
	info := make([]byte, size)
	if ok, _, err := param.Call(uintptr(message), signerCertInfo, 0, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size))); ok == 0 {
		return nil, err
	}
	return info, nil
}

// versionResource reads a file's version and, in the first language that it
// has, its product's name. A file without the resource is no error.
func versionResource(path string) (version, product string, err error) {
	var zero windows.Handle
	size, err := windows.GetFileVersionInfoSize(path, &zero)
	if err != nil || size == 0 {
		return "", "", ignoring(err, windows.ERROR_RESOURCE_TYPE_NOT_FOUND, windows.ERROR_RESOURCE_DATA_NOT_FOUND, windows.ERROR_RESOURCE_NAME_NOT_FOUND)
	}
	block := make([]byte, size)
	if err := windows.GetFileVersionInfo(path, 0, size, unsafe.Pointer(&block[0])); err != nil {
		return "", "", fmt.Errorf("reading the version resource: %w", err)
	}
	if fixed, ok := versionEntry[windows.VS_FIXEDFILEINFO](block, `\`); ok {
		version = fmt.Sprintf("%d.%d.%d.%d", fixed.FileVersionMS>>16, fixed.FileVersionMS&0xFFFF, fixed.FileVersionLS>>16, fixed.FileVersionLS&0xFFFF)
	}
	type translation struct{ language, codePage uint16 }
	if t, ok := versionEntry[translation](block, `\VarFileInfo\Translation`); ok {
		product = versionText(block, fmt.Sprintf(`\StringFileInfo\%04x%04x\ProductName`, t.language, t.codePage))
	}
	return version, product, nil
}

// versionEntry copies one entry out of a version resource.
func versionEntry[T any](block []byte, name string) (entry T, ok bool) {
	var value unsafe.Pointer
	var size uint32
	err := windows.VerQueryValue(unsafe.Pointer(&block[0]), name, unsafe.Pointer(&value), &size)
	if err != nil || value == nil || uintptr(size) < unsafe.Sizeof(entry) {
		return entry, false
	}
	return *(*T)(value), true
}

func versionText(block []byte, name string) string {
	var value *uint16
	var size uint32 // in characters
	err := windows.VerQueryValue(unsafe.Pointer(&block[0]), name, unsafe.Pointer(&value), &size)
	if err != nil || value == nil {
		return ""
	}
	return windows.UTF16ToString(unsafe.Slice(value, min(size, 256)))
}

func ignoring(err error, harmless ...error) error {
	for _, h := range harmless {
		if errors.Is(err, h) {
			return nil
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("reading the version resource: %w", err)
}
