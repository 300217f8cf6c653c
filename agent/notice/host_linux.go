package notice

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	login1        = "org.freedesktop.login1"
	accounts      = "org.freedesktop.Accounts"
	notifications = "org.freedesktop.Notifications"
	// systemBus is where D-Bus listens for everybody (D-Bus Specification,
	// well-known message bus instances).
	systemBus = "unix:path=/var/run/dbus/system_bus_socket"
	// childTime ends a delivery that a desktop does not answer.
	childTime = 10 * time.Second
	// maxOrder is far above any notice.
	maxOrder = 64 << 10
)

// NewScreens returns the desktops of this Linux machine.
func NewScreens() Screens {
	return desktops{bus: systemBus, runtime: "/run/user", etc: "/etc", command: ownCommand}
}

func ownCommand() (string, []string, error) {
	program, err := os.Executable()
	return program, []string{Command}, err
}

// desktops are graphical sessions in front of which somebody sits.
type desktops struct {
	// bus is the address of the system bus.
	bus string
	// runtime holds users' runtime directories by number, etc the settings of
	// the system.
	runtime, etc string
	// command is what delivers a notice, as the user.
	command func() (program string, arguments []string, err error)
}

// Show implements Screens.
func (d desktops) Show(ctx context.Context, text func(locale string) Text) (shown int, err error) {
	system, err := dial(ctx, d.bus)
	if err != nil {
		return 0, fmt.Errorf("opening the system bus: %w", err)
	}
	defer system.Close()
	users, err := activeUsers(ctx, system)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, uid := range users {
		locale := chosenLanguage(ctx, system, uid)
		if locale == "" {
			locale = systemLocale(d.etc)
		}
		if err := d.deliver(ctx, uid, text(locale)); err != nil {
			errs = append(errs, err)
			continue
		}
		shown++
	}
	return shown, errors.Join(errs...)
}

// activeUsers are the numbers of those whose graphical session is the one that
// a seat shows. Seats are asked, not sessions: a list of sessions has names in
// it.
func activeUsers(ctx context.Context, bus *dbus.Conn) ([]uint32, error) {
	var seats []struct {
		ID   string
		Path dbus.ObjectPath
	}
	err := bus.Object(login1, "/org/freedesktop/login1").CallWithContext(ctx, login1+".Manager.ListSeats", 0).Store(&seats)
	if err != nil {
		return nil, fmt.Errorf("listing seats: %w", err)
	}
	var users []uint32
	for _, seat := range seats {
		active, err := property[struct {
			ID   string
			Path dbus.ObjectPath
		}](ctx, bus, login1, seat.Path, login1+".Seat", "ActiveSession")
		if err != nil || active.ID == "" {
			continue
		}
		uid, graphical, err := sessionUser(ctx, bus, active.Path)
		if err == nil && graphical && !slices.Contains(users, uid) {
			users = append(users, uid)
		}
	}
	return users, nil
}

// sessionUser says whose session it is, and whether it is a desktop: not a
// console, and not the greeter before anybody has signed in.
func sessionUser(ctx context.Context, bus *dbus.Conn, path dbus.ObjectPath) (uid uint32, graphical bool, err error) {
	class, err := property[string](ctx, bus, login1, path, login1+".Session", "Class")
	if err != nil || class != "user" {
		return 0, false, err
	}
	kind, err := property[string](ctx, bus, login1, path, login1+".Session", "Type")
	if err != nil || kind != "x11" && kind != "wayland" && kind != "mir" {
		return 0, false, err
	}
	user, err := property[struct {
		UID  uint32
		Path dbus.ObjectPath
	}](ctx, bus, login1, path, login1+".Session", "User")
	return user.UID, err == nil, err
}

// chosenLanguage is what a user has chosen for the desktop; empty when the
// system does not know.
func chosenLanguage(ctx context.Context, bus *dbus.Conn, uid uint32) string {
	var path dbus.ObjectPath
	err := bus.Object(accounts, "/org/freedesktop/Accounts").
		CallWithContext(ctx, accounts+".FindUserById", dbus.FlagNoAutoStart, int64(uid)).Store(&path)
	if err != nil {
		return ""
	}
	language, err := property[string](ctx, bus, accounts, path, accounts+".User", "Language")
	if err != nil {
		return ""
	}
	return language
}

// systemLocale is LANG as the system sets it for everybody (locale.conf(5), and
// Debian's older place for it).
func systemLocale(etc string) string {
	for _, name := range []string{"locale.conf", "default/locale"} {
		content, err := os.ReadFile(filepath.Join(etc, name))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(content)) {
			if lang, ok := strings.CutPrefix(strings.TrimSpace(line), "LANG="); ok {
				return strings.Trim(lang, `"'`)
			}
		}
	}
	return ""
}

// order is what the delivering process is told on its standard input.
type order struct {
	Bus   string `json:"bus"`
	Title string `json:"title"`
	Body  string `json:"body"`
}

// deliver shows a notice on one user's desktop. Session buses take only their
// own user, and root has no business on a socket that a user may have replaced:
// so a process of its own does it as that user.
func (d desktops) deliver(ctx context.Context, uid uint32, t Text) error {
	home := filepath.Join(d.runtime, strconv.FormatUint(uint64(uid), 10))
	info, err := os.Stat(home)
	if err != nil {
		return fmt.Errorf("no session bus: %w", errors.Unwrap(err)) // the path has a user's number in it
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || owner.Uid != uid {
		return errors.New("the runtime directory of a session is somebody else's")
	}
	program, arguments, err := d.command()
	if err != nil {
		return err
	}
	content, err := json.Marshal(order{Bus: "unix:path=" + filepath.Join(home, "bus"), Title: t.Title, Body: t.Body})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, childTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C"}
	cmd.Stdin = bytes.NewReader(content)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uint32(os.Geteuid()) != uid {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: owner.Gid}
	}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("delivering a notice: %w", err)
	}
	return nil
}

// Deliver is the delivering process: it reads its order and hands the notice to
// the desktop's notification service (Desktop Notifications Specification 1.2).
func Deliver(ctx context.Context, in io.Reader) error {
	var o order
	if err := json.NewDecoder(io.LimitReader(in, maxOrder)).Decode(&o); err != nil {
		return fmt.Errorf("reading order: %w", err)
	}
	bus, err := dial(ctx, o.Bus)
	if err != nil {
		return fmt.Errorf("opening the session bus: %w", err)
	}
	defer bus.Close()
	const (
		critical = byte(2) // stays until it is closed
		never    = int32(0)
	)
	desktop := bus.Object(notifications, "/org/freedesktop/Notifications")
	var able []string
	if err := desktop.CallWithContext(ctx, notifications+".GetCapabilities", 0).Store(&able); err != nil {
		return fmt.Errorf("asking the desktop: %w", err)
	}
	if slices.Contains(able, "body-markup") {
		o.Body = html.EscapeString(o.Body)
	}
	return desktop.CallWithContext(ctx, notifications+".Notify", 0,
		"Pförtner", uint32(0), "dialog-warning", o.Title, o.Body,
		[]string{}, map[string]dbus.Variant{"urgency": dbus.MakeVariant(critical)}, never).Err
}

func dial(ctx context.Context, address string) (*dbus.Conn, error) {
	return dbus.Connect(address, dbus.WithContext(ctx), dbus.WithAuth(dbus.AuthExternal(strconv.Itoa(os.Geteuid()))))
}

// property reads one property of an object.
func property[T any](ctx context.Context, bus *dbus.Conn, service string, path dbus.ObjectPath, face, name string) (T, error) {
	var value T
	err := bus.Object(service, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, face, name).Store(&value)
	if err != nil {
		return value, fmt.Errorf("reading %s: %w", name, err)
	}
	return value, nil
}
