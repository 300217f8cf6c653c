package probe

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// managedDesktop is a notebook whose policy locks the screen after five minutes.
func managedDesktop() fstest.MapFS {
	return fstest.MapFS{
		dconfProfile:           file("user-db:user\nsystem-db:local\n"),
		"etc/dconf/db/local":   file("GVariant"),
		"etc/dconf/db/local.d": {Mode: fs.ModeDir | 0o755},
		"etc/dconf/db/local.d/00-lock": file("[org/gnome/desktop/session]\nidle-delay=uint32 300\n\n# locks at once\n" +
			"[org/gnome/desktop/screensaver]\nlock-enabled=true\nlock-delay=uint32 0\n"),
		"etc/dconf/db/local.d/locks/lock": file(idleDelay + "\n/org/gnome/desktop/screensaver/\n"),
	}
}

func TestScreenLockOnLinux(t *testing.T) {
	keyFile := "etc/dconf/db/local.d/00-lock"
	for _, c := range []struct {
		name     string
		change   fstest.MapFS
		state    posturev1.ReadingState
		enforced posturev1.Ternary
		seconds  uint32
		reason   string
	}{
		{name: "demanded and locked", state: observed, enforced: yes, seconds: 300},
		{name: "demanded, but a person may change it", change: fstest.MapFS{"etc/dconf/db/local.d/locks/lock": file(idleDelay + "\n")}, state: observed, enforced: no, seconds: 300},
		{name: "no locks at all", change: fstest.MapFS{"etc/dconf/db/local.d/locks/lock": nil}, state: observed, enforced: no, seconds: 300},
		{name: "no profile: nothing is prescribed", change: fstest.MapFS{dconfProfile: nil}, state: observed, enforced: no},
		{name: "idle never", change: fstest.MapFS{keyFile: file("[org/gnome/desktop/session]\nidle-delay=uint32 0\n[org/gnome/desktop/screensaver]\nlock-enabled=true\n")}, state: observed, enforced: no},
		{name: "dark, and not locked", change: fstest.MapFS{keyFile: file("[org/gnome/desktop/session]\nidle-delay=uint32 300\n[org/gnome/desktop/screensaver]\nlock-enabled=false\n")}, state: observed, enforced: no},
		{name: "locked a minute after it went dark", change: fstest.MapFS{keyFile: file("[org/gnome/desktop/session]\nidle-delay=uint32 300\n[org/gnome/desktop/screensaver]\nlock-enabled=true\nlock-delay=uint32 60\n")}, state: observed, enforced: yes, seconds: 360},
		{name: "a later key file wins", change: fstest.MapFS{"etc/dconf/db/local.d/99-site": file("[org/gnome/desktop/session]\nidle-delay=uint32 900\n")}, state: observed, enforced: yes, seconds: 900},
		{name: "dconf update was not run", change: fstest.MapFS{keyFile: {Data: []byte("[org/gnome/desktop/session]\nidle-delay=uint32 60\n"), ModTime: testNow}}, state: failed, reason: "dconf update was not run"},
		{name: "compiled database alone", change: fstest.MapFS{keyFile: nil, "etc/dconf/db/local.d/locks/lock": nil, "etc/dconf/db/local.d": nil}, state: failed, reason: "compiled form is not read"},
		{name: "the profile names a database that is not there", change: fstest.MapFS{"etc/dconf/db/local": nil}, state: observed, enforced: no},
		{name: "no key file", change: fstest.MapFS{keyFile: file("idle-delay=300\n")}, state: failed, reason: "not a key file"},
		{name: "no number", change: fstest.MapFS{keyFile: file("[org/gnome/desktop/session]\nidle-delay='soon'\n")}, state: failed, reason: "idle-delay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := observe(t, Host{Files: with(managedDesktop(), c.change)}, screenLockProbe()).ScreenLock
			wantState(t, got.Reading, c.state)
			if got.Enforced != c.enforced || got.IdleSeconds != c.seconds || !strings.Contains(got.Reading.Reason, c.reason) {
				t.Errorf("enforced %s after %d s: %s", got.Enforced, got.IdleSeconds, got.Reading.Reason)
			}
		})
	}
}

// Of several databases the one that the profile names first decides.
func TestFirstDatabaseOfTheProfileWins(t *testing.T) {
	files := with(managedDesktop(), fstest.MapFS{
		dconfProfile:               file("user-db:user\nsystem-db:local\nsystem-db:site # everyone\n"),
		"etc/dconf/db/site":        file("GVariant"),
		"etc/dconf/db/site.d/lock": file("[org/gnome/desktop/session]\nidle-delay=uint32 7200\n"),
	})
	if got := observe(t, Host{Files: files}, screenLockProbe()).ScreenLock; got.IdleSeconds != 300 || got.Enforced != yes {
		t.Errorf("enforced %s after %d s", got.Enforced, got.IdleSeconds)
	}
}

func FuzzDconfKeyFile(f *testing.F) {
	f.Add("[org/gnome/desktop/session]\nidle-delay=uint32 300\n", "/org/gnome/")
	f.Add("[", "/")
	f.Fuzz(func(t *testing.T, settings, locks string) {
		p := dconfPolicy{values: map[string]string{}, locks: map[string]bool{}}
		out := &posturev1.ScreenLock{}
		if p.addSettings(settings) != nil || p.addLocks(locks) != nil || p.judge(out) != nil {
			return
		}
		if out.Enforced == yes && (out.IdleSeconds == 0 || !p.locked(idleDelay)) {
			t.Errorf("enforced after %d s", out.IdleSeconds)
		}
	})
}
