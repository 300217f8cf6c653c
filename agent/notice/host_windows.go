package notice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// NewScreens returns the sessions of this Windows machine.
func NewScreens() Screens { return sessions{} }

// sessions are those of Remote Desktop Services, which are all there are: the
// console is one of them.
type sessions struct{}

// Show implements Screens. A service has no screen of its own: session 0 shows
// nothing, so messages are handed to the others.
func (sessions) Show(ctx context.Context, text func(locale string) Text) (shown int, err error) {
	active, err := activeSessions()
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, id := range active {
		if ctx.Err() != nil {
			return shown, ctx.Err()
		}
		if err := message(id, text(sessionLanguage(id))); err != nil {
			errs = append(errs, err)
			continue
		}
		shown++
	}
	return shown, errors.Join(errs...)
}

// activeSessions are those that somebody sits at.
func activeSessions() ([]uint32, error) {
	var first *windows.WTS_SESSION_INFO
	var count uint32
	if err := windows.WTSEnumerateSessions(0, 0, 1, &first, &count); err != nil {
		return nil, fmt.Errorf("listing sessions: %w", err)
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(first)))
	var active []uint32
	for _, s := range unsafe.Slice(first, count) {
		if s.State == windows.WTSActive && s.SessionID != 0 {
			active = append(active, s.SessionID)
		}
	}
	return active, nil
}

// message is WTSSendMessageW, without waiting for an answer.
func message(session uint32, t Text) error {
	title, err := windows.UTF16FromString(t.Title)
	if err != nil {
		return err
	}
	body, err := windows.UTF16FromString(t.Body)
	if err != nil {
		return err
	}
	send := windows.NewLazySystemDLL("wtsapi32.dll").NewProc("WTSSendMessageW")
	if err := send.Find(); err != nil {
		return err
	}
	const charBytes = 2
	var response uint32
	ok, _, err := send.Call(0, uintptr(session),
		uintptr(unsafe.Pointer(&title[0])), uintptr((len(title)-1)*charBytes),
		uintptr(unsafe.Pointer(&body[0])), uintptr((len(body)-1)*charBytes),
		windows.MB_OK|windows.MB_ICONWARNING, 0, uintptr(unsafe.Pointer(&response)), 0)
	if ok == 0 {
		return fmt.Errorf("sending message: %w", err)
	}
	return nil
}

// sessionLanguage is the language that Windows speaks in a session: what its
// user has chosen, else the system's. The user's security identifier leads to
// the setting and is kept nowhere.
func sessionLanguage(session uint32) string {
	if chosen := chosenLanguage(session); chosen != "" {
		return chosen
	}
	languages, err := windows.GetSystemPreferredUILanguages(windows.MUI_LANGUAGE_NAME)
	if err != nil || len(languages) == 0 {
		return ""
	}
	return languages[0]
}

func chosenLanguage(session uint32) string {
	var token windows.Token
	if err := windows.WTSQueryUserToken(session, &token); err != nil {
		return ""
	}
	defer token.Close()
	user, err := token.GetTokenUser()
	if err != nil {
		return ""
	}
	settings, err := registry.OpenKey(registry.USERS, user.User.Sid.String()+`\Control Panel\Desktop`, registry.QUERY_VALUE)
	if err != nil {
		return ""
	}
	defer settings.Close()
	languages, _, err := settings.GetStringsValue("PreferredUILanguages")
	if err != nil || len(languages) == 0 {
		return ""
	}
	return languages[0]
}

// Deliver is for desktops with a session bus: Windows has none.
func Deliver(context.Context, io.Reader) error {
	return errors.New("there is no session bus on Windows")
}
