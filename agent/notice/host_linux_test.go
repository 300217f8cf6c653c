package notice

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// TestMain lets this program be the process that delivers a notice, and the
// desktop that shows it.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == Command:
		err = Deliver(context.Background(), os.Stdin)
	case len(os.Args) == 3 && os.Args[1] == "desktop":
		err = runDesktop(os.Args[2])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// runDesktop is a desktop at a session bus: it says on standard output that it
// is there, then what it shows, until it is killed.
func runDesktop(address string) error {
	bus, err := dial(context.Background(), address)
	if err != nil {
		return err
	}
	d := desktop{markup: true, seen: make(chan shownNotice)}
	if err := bus.Export(d, "/org/freedesktop/Notifications", notifications); err != nil {
		return err
	}
	if _, err := bus.RequestName(notifications, dbus.NameFlagDoNotQueue); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(shownNotice{Title: "here"}); err != nil {
		return err
	}
	for n := range d.seen {
		if err := out.Encode(n); err != nil {
			return err
		}
	}
	return nil
}

// startDesktop starts a desktop as its user and returns what it shows.
func startDesktop(t *testing.T, program, address string, uid uint32) *json.Decoder {
	t.Helper()
	cmd := exec.Command(program, "desktop", address)
	cmd.Dir, cmd.Stderr = "/", t.Output()
	as(cmd, uid)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	seen := json.NewDecoder(out)
	if n := next(t, seen); n.Title != "here" {
		t.Fatalf("the desktop begins with %+v", n)
	}
	return seen
}

func next(t *testing.T, seen *json.Decoder) shownNotice {
	t.Helper()
	var n shownNotice
	if err := seen.Decode(&n); err != nil {
		t.Fatalf("the desktop is gone: %v", err)
	}
	return n
}

// as makes a process that of another user.
func as(cmd *exec.Cmd, uid uint32) {
	if uid != uint32(os.Geteuid()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
}

// nobody is a user that owns nothing on a test machine.
const nobody = 65534

// daemon starts a real dbus-daemon that listens at path, as a user, and takes
// anybody when it plays the system bus.
func daemon(t *testing.T, path string, uid uint32, everybody bool) string {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("NOT RUN: dbus-daemon is missing")
	}
	policy := ""
	if everybody {
		policy = `<allow user="*"/>`
	}
	config := filepath.Join(filepath.Dir(path), filepath.Base(path)+".conf")
	content := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=` + path + `</listen><auth>EXTERNAL</auth>
<policy context="default">` + policy + `<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config-file="+config, "--nofork", "--nopidfile", "--print-address")
	cmd.Stderr = t.Output()
	as(cmd, uid)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	address, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon does not start: %v", err)
	}
	return strings.TrimSpace(address)
}

func connect(t *testing.T, address string) *dbus.Conn {
	t.Helper()
	c, err := dial(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// shownNotice is one call of Notify.
type shownNotice struct {
	Title, Body string
	Urgency     byte
	Timeout     int32
}

// desktop is a small notification service (org.freedesktop.Notifications).
type desktop struct {
	markup bool
	seen   chan shownNotice
}

func (d desktop) GetCapabilities() ([]string, *dbus.Error) {
	if d.markup {
		return []string{"body", "body-markup"}, nil
	}
	return []string{"body"}, nil
}

func (d desktop) Notify(_ string, _ uint32, _, title, body string, _ []string, hints map[string]dbus.Variant, timeout int32) (uint32, *dbus.Error) {
	urgency, _ := hints["urgency"].Value().(byte)
	d.seen <- shownNotice{title, body, urgency, timeout}
	return 1, nil
}

func (d desktop) open(t *testing.T, bus *dbus.Conn) {
	t.Helper()
	offer(t, bus, notifications, "/org/freedesktop/Notifications", notifications, d)
}

func offer(t *testing.T, bus *dbus.Conn, name string, path dbus.ObjectPath, face string, object any) {
	t.Helper()
	if err := bus.Export(object, path, face); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.RequestName(name, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
}

// properties answers org.freedesktop.DBus.Properties.Get.
type properties map[string]any

func (p properties) Get(_, name string) (dbus.Variant, *dbus.Error) {
	v, ok := p[name]
	if !ok {
		return dbus.Variant{}, dbus.MakeFailedError(fmt.Errorf("no property %s", name))
	}
	return dbus.MakeVariant(v), nil
}

type seat struct {
	ID   string
	Path dbus.ObjectPath
}

type user struct {
	UID  uint32
	Path dbus.ObjectPath
}

type seats []seat

func (s seats) ListSeats() ([]seat, *dbus.Error) { return s, nil }

type userDirectory struct{}

func (userDirectory) FindUserById(id int64) (dbus.ObjectPath, *dbus.Error) {
	return dbus.ObjectPath("/org/freedesktop/Accounts/User" + strconv.FormatInt(id, 10)), nil
}

// session is what logind says of the session that a seat shows.
type session struct {
	class, kind string
	uid         uint32
}

// logind makes a bus answer like a machine with one seat.
func logind(t *testing.T, bus *dbus.Conn, s session, language string) {
	t.Helper()
	const propertiesFace = "org.freedesktop.DBus.Properties"
	offer(t, bus, login1, "/org/freedesktop/login1", login1+".Manager", seats{{"seat0", "/seat0"}, {"seat1", "/seat1"}})
	offer(t, bus, login1, "/seat0", propertiesFace, properties{"ActiveSession": seat{"2", "/session2"}})
	offer(t, bus, login1, "/seat1", propertiesFace, properties{"ActiveSession": seat{"", "/"}})
	offer(t, bus, login1, "/session2", propertiesFace, properties{"Class": s.class, "Type": s.kind, "User": user{s.uid, "/user"}})
	if language != "" {
		offer(t, bus, accounts, "/org/freedesktop/Accounts", accounts, userDirectory{})
		path := dbus.ObjectPath("/org/freedesktop/Accounts/User" + strconv.Itoa(int(s.uid)))
		offer(t, bus, accounts, path, propertiesFace, properties{"Language": language})
	}
}

// machine is a Linux machine with a person at the desktop.
type machine struct {
	desktops
	seen *json.Decoder
}

// seated starts a machine: two real buses, one for the system and one for the
// user, with small services on them.
func seated(t *testing.T, s session, language string) machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "pfn")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	home := filepath.Join(dir, "run", strconv.Itoa(int(s.uid)))
	etc := filepath.Join(dir, "etc")
	for _, d := range []string{home, etc} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(etc, "locale.conf"), []byte("# system\nLANG=\"de_DE.UTF-8\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(home, int(s.uid), int(s.uid)); err != nil {
			t.Fatal(err)
		}
	}
	system := daemon(t, filepath.Join(dir, "system"), uint32(os.Geteuid()), true)
	logind(t, connect(t, system), s, language)
	program := runnable(t, dir)
	own := daemon(t, filepath.Join(home, "bus"), s.uid, false)
	return machine{
		desktops: desktops{bus: system, runtime: filepath.Join(dir, "run"), etc: etc, command: func() (string, []string, error) {
			return program, []string{Command}, nil
		}},
		seen: startDesktop(t, program, own, s.uid),
	}
}

// runnable is this program where every user may start it.
func runnable(t *testing.T, dir string) string {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(own)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "deliver")
	if err := os.WriteFile(name, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func said(locale string) Text { return Text{Title: "in " + locale, Body: "a <b> & c"} }

func show(t *testing.T, m machine) (int, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return m.Show(ctx, said)
}

// The whole way on real buses: logind names the desktop's user by number, a
// process of that user talks to the user's bus.
func TestNoticeReachesTheDesktopAsItsUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: acting as another user needs root")
	}
	m := seated(t, session{"user", "wayland", nobody}, "en_GB.UTF-8")
	if n, err := show(t, m); n != 1 || err != nil {
		t.Fatalf("shown %d times, %v", n, err)
	}
	want := shownNotice{Title: "in en_GB.UTF-8", Body: "a &lt;b&gt; &amp; c", Urgency: 2}
	if got := next(t, m.seen); got != want {
		t.Errorf("the desktop shows %+v", got)
	}
}

func TestNoticeSpeaksTheSystemsLanguageWhenTheUserHasChosenNone(t *testing.T) {
	m := seated(t, session{"user", "x11", uint32(os.Geteuid())}, "")
	if n, err := show(t, m); n != 1 || err != nil {
		t.Fatalf("shown %d times, %v", n, err)
	}
	if got := next(t, m.seen); got.Title != "in de_DE.UTF-8" {
		t.Errorf("the desktop shows %+v", got)
	}
}

func TestNobodyIsThereBeforeSignIn(t *testing.T) {
	for name, s := range map[string]session{
		"greeter": {"greeter", "wayland", uint32(os.Geteuid())}, "console": {"user", "tty", uint32(os.Geteuid())},
		"lock screen": {"lock-screen", "x11", uint32(os.Geteuid())},
	} {
		t.Run(name, func(t *testing.T) {
			if n, err := show(t, seated(t, s, "")); n != 0 || err != nil {
				t.Errorf("shown %d times, %v", n, err)
			}
		})
	}
}

// A user who puts another directory in the place of the runtime directory does
// not make the agent act as somebody else.
func TestForeignRuntimeDirectoryIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: giving directories away needs root")
	}
	m := seated(t, session{"user", "wayland", nobody}, "")
	if err := os.Chown(filepath.Join(m.runtime, strconv.Itoa(nobody)), 1, 1); err != nil {
		t.Fatal(err)
	}
	if n, err := show(t, m); n != 0 || err == nil || strings.Contains(err.Error(), strconv.Itoa(nobody)) {
		t.Errorf("shown %d times, %v", n, err)
	}
}

func TestMachineWithoutLogindIsAnErrorNotASilence(t *testing.T) {
	dir := t.TempDir()
	d := desktops{bus: daemon(t, filepath.Join(dir, "system"), uint32(os.Geteuid()), true)}
	if n, err := d.Show(t.Context(), said); n != 0 || err == nil {
		t.Errorf("shown %d times, %v", n, err)
	}
	d.bus = "unix:path=" + filepath.Join(dir, "nothing")
	if n, err := d.Show(t.Context(), said); n != 0 || err == nil {
		t.Errorf("without a bus shown %d times, %v", n, err)
	}
}

func TestDesktopWithoutMarkupGetsPlainText(t *testing.T) {
	dir := t.TempDir()
	address := daemon(t, filepath.Join(dir, "bus"), uint32(os.Geteuid()), false)
	d := desktop{seen: make(chan shownNotice, 1)}
	d.open(t, connect(t, address))
	content, err := json.Marshal(order{Bus: address, Title: "t", Body: "a <b> & c"})
	if err != nil {
		t.Fatal(err)
	}
	if err := Deliver(t.Context(), bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	if got := <-d.seen; got.Body != "a <b> & c" {
		t.Errorf("the desktop shows %+v", got)
	}
}

func TestOrdersThatAreNone(t *testing.T) {
	for _, content := range []string{"", "[", `{"bus":"unix:path=/nowhere"}`, `{"bus":"nonsense"}`} {
		if err := Deliver(t.Context(), strings.NewReader(content)); err == nil {
			t.Errorf("%q is delivered", content)
		}
	}
}

func TestLanguageOfTheSystem(t *testing.T) {
	for name, c := range map[string]struct{ file, content, want string }{
		"systemd":  {"locale.conf", "LC_TIME=C\nLANG=de_DE.UTF-8\n", "de_DE.UTF-8"},
		"Debian":   {"default/locale", "LANG=\"en_GB.UTF-8\"\n", "en_GB.UTF-8"},
		"not set":  {"locale.conf", "# nothing\n", ""},
		"no files": {"other", "LANG=de", ""},
	} {
		etc := t.TempDir()
		if err := os.MkdirAll(filepath.Join(etc, "default"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(etc, c.file), []byte(c.content), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := systemLocale(etc); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
