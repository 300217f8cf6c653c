//go:build windows

package service

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Protect makes sure that only the system and administrators decide about the
// agent's files, and returns the names of those that it has set aside because
// somebody else had put them there.
func Protect(d Directories) ([]string, error) {
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return nil, fmt.Errorf("asking who this process is: %w", err)
	}
	return protect(fileGuard{self.User.Sid}, d, time.Now().UTC().Format("20060102T150405"))
}

// trustedInstaller owns what Windows itself installs.
const trustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"

// fileGuard implements guard over NTFS.
type fileGuard struct{ self *windows.SID }

// errLink says that a path is a junction or symbolic link.
var errLink = errors.New("it is a link")

// open opens what lies at the path itself.
func (fileGuard) open(path string, access uint32) (windows.Handle, windows.ByHandleFileInformation, error) {
	var info windows.ByHandleFileInformation
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return 0, info, err
	}
	h, err := windows.CreateFile(name, access, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return 0, info, err
	}
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return 0, info, errors.Join(err, windows.CloseHandle(h))
	}
	return h, info, nil
}

func (g fileGuard) Look(path string) (found, error) {
	h, info, err := g.open(path, windows.READ_CONTROL|windows.FILE_READ_ATTRIBUTES)
	switch {
	case errors.Is(err, windows.ERROR_FILE_NOT_FOUND), errors.Is(err, windows.ERROR_PATH_NOT_FOUND):
		return found{}, nil
	case errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return found{there: true}, nil
	case err != nil:
		return found{}, err
	}
	defer windows.CloseHandle(h)
	sd, err := windows.GetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return found{}, fmt.Errorf("reading owner: %w", err)
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return found{}, fmt.Errorf("reading owner: %w", err)
	}
	return found{
		there:     true,
		directory: info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY != 0,
		link:      info.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT != 0,
		trusted:   g.trusts(owner),
	}, nil
}

func (g fileGuard) trusts(owner *windows.SID) bool {
	return owner != nil && (owner.IsWellKnown(windows.WinLocalSystemSid) ||
		owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) ||
		owner.Equals(g.self) || owner.String() == trustedInstaller)
}

func (fileGuard) Make(path, access string) error {
	sd, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return err
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: sd}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	return windows.CreateDirectory(name, attributes)
}

func (g fileGuard) Restrict(path, access string) error {
	sd, err := windows.SecurityDescriptorFromString(access)
	if err != nil {
		return err
	}
	owner, _, err := sd.Owner()
	if err != nil {
		return err
	}
	list, _, err := sd.DACL()
	if err != nil {
		return err
	}
	h, info, err := g.open(path, windows.READ_CONTROL|windows.WRITE_DAC|windows.WRITE_OWNER|windows.FILE_READ_ATTRIBUTES|windows.FILE_LIST_DIRECTORY)
	if err != nil {
		return err
	}
	defer windows.CloseHandle(h)
	if info.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT != 0 {
		return errLink
	}
	return windows.SetSecurityInfo(h, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION,
		owner, nil, list, nil)
}

func (fileGuard) Children(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (fileGuard) Rename(from, to string) error { return os.Rename(from, to) }
