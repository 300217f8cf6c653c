package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Where dconf keeps what the machine prescribes (dconf(7)).
const (
	dconfProfile   = "etc/dconf/profile/user"
	dconfDatabases = "etc/dconf/db"
)

// The settings of GNOME that lock an idle screen, and what holds when nobody
// set them.
const (
	lockEnabled = "/org/gnome/desktop/screensaver/lock-enabled"
	lockDelay   = "/org/gnome/desktop/screensaver/lock-delay"
	idleDelay   = "/org/gnome/desktop/session/idle-delay"
)

// screenLockProbe reads whether the machine's policy demands that an idle
// screen is locked. What a person chose is not read.
func screenLockProbe() Probe {
	return Probe{Section: "screen_lock", Collect: collectScreenLock}
}

func collectScreenLock(_ context.Context, h Host, ev *posturev1.Evidence) error {
	out := &posturev1.ScreenLock{Reading: &posturev1.Reading{Source: "dconf system databases"}}
	ev.ScreenLock = out
	if h.Windows != nil {
		return windowsScreenLock(h.Windows, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	names, err := systemDatabases(h.Files)
	if err != nil {
		return err
	}
	policy := dconfPolicy{values: map[string]string{}, locks: map[string]bool{}}
	// The first database that sets a key wins.
	for _, name := range slices.Backward(names) {
		if err := policy.read(h.Files, name); err != nil {
			return err
		}
	}
	return policy.judge(out)
}

// dconfPolicy is what the system databases set, and which settings nobody may
// change.
type dconfPolicy struct {
	values map[string]string
	locks  map[string]bool
}

// systemDatabases lists the databases that hold for everyone, as the profile
// names them; without a profile there is none.
func systemDatabases(files fs.FS) ([]string, error) {
	content, err := fs.ReadFile(files, dconfProfile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(content)) {
		line, _, _ = strings.Cut(line, "#")
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "system-db:"); ok && fs.ValidPath(name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// read lays one database over what was read before. Its key files are read;
// the binary file that dconf compiles of them is what is in force, so it has
// to be there and not be older.
func (p dconfPolicy) read(files fs.FS, name string) error {
	compiled, err := fs.Stat(files, path.Join(dconfDatabases, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir := path.Join(dconfDatabases, name+".d")
	keyFiles, err := regularFiles(files, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("dconf database %s has no key files, and its compiled form is not read", name)
	}
	if err != nil {
		return err
	}
	lockFiles, err := regularFiles(files, path.Join(dir, "locks"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range slices.Concat(keyFiles, lockFiles) {
		info, err := fs.Stat(files, f)
		if err != nil {
			return err
		}
		if info.ModTime().After(compiled.ModTime()) {
			return fmt.Errorf("/%s is newer than the database %s: dconf update was not run", f, name)
		}
	}
	for _, f := range keyFiles {
		if err := readInto(files, f, p.addSettings); err != nil {
			return err
		}
	}
	for _, f := range lockFiles {
		if err := readInto(files, f, p.addLocks); err != nil {
			return err
		}
	}
	return nil
}

func readInto(files fs.FS, name string, add func(content string) error) error {
	content, err := fs.ReadFile(files, name)
	if err == nil {
		err = add(string(content))
	}
	if err != nil {
		return fmt.Errorf("/%s: %w", strings.TrimPrefix(name, "/"), cause(err))
	}
	return nil
}

// regularFiles lists the files of a directory in the order dconf reads them:
// by name, later ones win.
func regularFiles(files fs.FS, dir string) ([]string, error) {
	entries, err := fs.ReadDir(files, dir)
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, path.Join(dir, e.Name()))
		}
	}
	return names, err
}

// addSettings reads a key file: "[org/gnome/desktop/session]", then
// "idle-delay=uint32 300".
func (p dconfPolicy) addSettings(content string) error {
	group := ""
	lines := bufio.NewScanner(strings.NewReader(content))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			group = "/" + strings.Trim(line[1:len(line)-1], "/") + "/"
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || group == "" {
				return errors.New("not a key file of dconf")
			}
			p.values[group+strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return lines.Err()
}

// addLocks reads a file of locks: one key a line, or a path that ends in "/"
// for everything below.
func (p dconfPolicy) addLocks(content string) error {
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
			p.locks[line] = true
		}
	}
	return nil
}

func (p dconfPolicy) locked(key string) bool {
	for lock := range p.locks {
		if lock == key || strings.HasSuffix(lock, "/") && strings.HasPrefix(key, lock) {
			return true
		}
	}
	return false
}

// judge says what the settings amount to: the screen locks lock-delay after it
// went dark, which is idle-delay after the last key. All three have to be
// locked, or a person could undo it.
func (p dconfPolicy) judge(out *posturev1.ScreenLock) error {
	idle, errIdle := p.seconds(idleDelay)
	delay, errDelay := p.seconds(lockDelay)
	if err := errors.Join(errIdle, errDelay); err != nil {
		return err
	}
	enabled := p.values[lockEnabled]
	if enabled != "" && enabled != "true" && enabled != "false" {
		return fmt.Errorf("dconf %s is %.20q", lockEnabled, enabled)
	}
	_, idleSet := p.values[idleDelay]
	demanded := enabled == "true" && idleSet && idle > 0
	out.Enforced = ternary(demanded && p.locked(lockEnabled) && p.locked(idleDelay) && p.locked(lockDelay))
	if demanded {
		out.IdleSeconds = uint32(min(idle+delay, 1<<31))
	}
	return nil
}

// seconds reads "uint32 300"; a setting that is not there counts as zero.
func (p dconfPolicy) seconds(key string) (uint64, error) {
	value, ok := p.values[key]
	if !ok {
		return 0, nil
	}
	number, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(value, "uint32")), 0, 32)
	if err != nil {
		return 0, fmt.Errorf("dconf %s is %.20q", key, value)
	}
	return number, nil
}
