package identity_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/testcollector"
)

// notebook is the machine that an identity was made on.
func notebook() identity.Traits {
	return identity.Traits{Model: "LENOVO\x0021HES", Serial: "PF-0001", Install: "install-1"}
}

// boundTo returns the state directory of an enrolled device that remembers the
// machine.
func boundTo(t *testing.T, made identity.Traits) *identity.State {
	t.Helper()
	s := testcollector.New(t).Enrolled(t, time.Hour)
	if err := s.Bind(made); err != nil {
		t.Fatal(err)
	}
	return s
}

// reopened is the state as another process opens it.
func reopened(t *testing.T, s *identity.State) *identity.State {
	t.Helper()
	again, err := identity.Open(filepath.Dir(s.Path()), identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestIdentityIsUsedOnlyOnTheMachineItWasMadeOn(t *testing.T) {
	for name, c := range map[string]struct {
		made, here identity.Traits
		copied     bool
	}{
		"the same":                         {notebook(), notebook(), false},
		"another serial number":            {notebook(), identity.Traits{Model: "LENOVO\x0021HES", Serial: "PF-0002", Install: "install-1"}, true},
		"another model, no serial numbers": {identity.Traits{Model: "a"}, identity.Traits{Model: "b"}, true},
		"system set up anew":               {notebook(), identity.Traits{Model: "LENOVO\x0021HES", Serial: "PF-0001", Install: "install-2"}, false},
		"no serial number, another system": {identity.Traits{Model: "a", Install: "1"}, identity.Traits{Model: "a", Install: "2"}, true},
		"no serial number, the same":       {identity.Traits{Model: "a", Install: "1"}, identity.Traits{Model: "a", Install: "1"}, false},
		"serial number not readable now":   {notebook(), identity.Traits{Model: "LENOVO\x0021HES", Install: "install-1"}, false},
		"nothing readable now":             {notebook(), identity.Traits{}, false},
		"nothing was known":                {identity.Traits{}, notebook(), false},
	} {
		t.Run(name, func(t *testing.T) {
			s := reopened(t, boundTo(t, c.made))
			err := s.Bind(c.here)
			var copied *identity.CopiedError
			if errors.As(err, &copied) != c.copied || !c.copied && err != nil {
				t.Fatalf("binding says %v", err)
			}
			if _, err := s.Load(); errors.Is(err, identity.ErrNotEnrolled) != c.copied {
				t.Errorf("loading says %v", err)
			}
			if c.copied {
				if _, err := os.Stat(copied.Aside); err != nil {
					t.Errorf("set aside: %v", err)
				}
				if err := reopened(t, s).Bind(c.here); err != nil {
					t.Errorf("the next start says %v", err)
				}
			}
		})
	}
}

// A golden image carries the whole directory to a thousand notebooks: none of
// them may act as the one that the image was made on, and each can enrol.
func TestCloneFromAnImageEnrolsAsItself(t *testing.T) {
	master := boundTo(t, notebook())
	original, err := master.Load()
	if err != nil {
		t.Fatal(err)
	}
	clone := filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(clone, os.DirFS(filepath.Dir(master.Path()))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(clone, 0o700), os.Chmod(filepath.Join(clone, "identity.json"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s, err := identity.Open(clone, identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	here := identity.Traits{Model: "LENOVO\x0021HES", Serial: "PF-0777", Install: "install-1"}
	var copied *identity.CopiedError
	if err := s.Bind(here); !errors.As(err, &copied) {
		t.Fatalf("binding says %v", err)
	}
	own, err := identity.Software{}.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save(&identity.Identity{Key: own}); err != nil {
		t.Fatal(err)
	}
	again := reopened(t, s)
	if err := again.Bind(here); err != nil {
		t.Errorf("its own identity is taken as copied: %v", err)
	}
	id, err := again.Load()
	if err != nil || id.Enrolled() {
		t.Fatalf("%+v, %v", id, err)
	}
	a, errA := id.Fingerprint()
	b, errB := original.Fingerprint()
	if a == b || errors.Join(errA, errB) != nil {
		t.Errorf("the clone has the key %s of its master", b)
	}
}

// What was learned later counts too: a first start without rights, or before
// the firmware could be read.
// However far setting aside gets, the next key of the other machine is gone
// before its identity is.
func TestAnotherMachinesNextKeyDoesNotOutliveItsIdentity(t *testing.T) {
	s := boundTo(t, notebook())
	next := filepath.Join(filepath.Dir(s.Path()), "identity.next.json")
	if err := os.WriteFile(next, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The identity cannot be moved to where it would go within the next minute.
	for i := range 60 {
		at := time.Now().Add(time.Duration(i) * time.Second).UTC().Format("20060102T150405")
		if err := os.MkdirAll(filepath.Join(s.Path()+".other-machine-"+at, "in the way"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Bind(identity.Traits{Serial: "PF-0002"}); err == nil || errors.As(err, new(*identity.CopiedError)) {
		t.Fatalf("set aside all the same: %v", err)
	}
	if _, err := os.Stat(next); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the next key is still there: %v", err)
	}
	if copied, err := reopened(t, s).Copied(identity.Traits{Serial: "PF-0002"}); err != nil || !copied {
		t.Errorf("it is not seen to be another machine's any more: %v, %v", copied, err)
	}
}

func TestTraitsThatWereNotKnownAreAdded(t *testing.T) {
	s := boundTo(t, identity.Traits{Model: "LENOVO\x0021HES"})
	if err := reopened(t, s).Bind(notebook()); err != nil {
		t.Fatal(err)
	}
	var copied *identity.CopiedError
	if err := reopened(t, s).Bind(identity.Traits{Model: "LENOVO\x0021HES", Serial: "PF-0002"}); !errors.As(err, &copied) {
		t.Errorf("another serial number: %v", err)
	}
}

func TestMachineIsRememberedWithoutItsSerialNumber(t *testing.T) {
	s := boundTo(t, notebook())
	content, err := os.ReadFile(filepath.Join(filepath.Dir(s.Path()), "machine.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, plain := range []string{"PF-0001", "21HES", "install-1"} {
		if bytes.Contains(content, []byte(plain)) {
			t.Errorf("%s stands in clear in %s", plain, content)
		}
	}
}

func TestDamagedMemoryOfTheMachineIsMadeAnew(t *testing.T) {
	for _, content := range []string{"", "{", `{"salt":"AAAA"}`, "null", `{"serial":"x"}`} {
		s := boundTo(t, notebook())
		if err := os.WriteFile(filepath.Join(filepath.Dir(s.Path()), "machine.json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := reopened(t, s).Bind(notebook()); err != nil {
			t.Errorf("%q: %v", content, err)
		}
		var copied *identity.CopiedError
		if err := reopened(t, s).Bind(identity.Traits{Serial: "PF-0002"}); !errors.As(err, &copied) {
			t.Errorf("%q: after that another machine says %v", content, err)
		}
	}
}

func TestRemovedIdentityLeavesNoKey(t *testing.T) {
	s := boundTo(t, notebook())
	var copied *identity.CopiedError
	if err := s.Bind(identity.Traits{Serial: "PF-0002"}); !errors.As(err, &copied) {
		t.Fatal(err)
	}
	dir := filepath.Dir(s.Path())
	for _, name := range []string{"identity.json", ".identity.json.123", "updates.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if there, err := s.Present(); err != nil || !there {
		t.Errorf("present: %v, %v", there, err)
	}
	if removed, err := s.Remove(); err != nil || !removed {
		t.Errorf("removed: %v, %v", removed, err)
	}
	if there, err := s.Present(); err != nil || there {
		t.Errorf("still present: %v, %v", there, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "updates.json" {
		t.Errorf("left are %v, %v", left, err)
	}
}

// Serial numbers that say nothing: fleet#18645 has whole series with the same.
func TestPlaceholdersOfFirmwareAreNoFacts(t *testing.T) {
	for _, text := range []string{
		"To be filled by O.E.M.", "To Be Filled By O.E.M", "Default string", "default string ", "0", "00000000",
		"System Serial Number", "Not Specified", "None", "N/A", "xxxxxxxx", "...", "123456789", "INVALID", "", "FFFFFFFF",
	} {
		if m := identity.Stated("Vendor", "Model 1", text); m.GetSerial() != "" {
			t.Errorf("%q counts as a serial number", text)
		}
	}
	m := identity.Stated(" LENOVO ", "21HES00", "PF0ABCDE")
	if m.GetVendor() != "LENOVO" || m.GetModel() != "21HES00" || m.GetSerial() != "PF0ABCDE" {
		t.Errorf("a real notebook is %v", m)
	}
	if tr := identity.TraitsOf(identity.Stated("", "Model", "1234-ABCD"), "i"); tr.Model != "" || tr.Serial != "1234-ABCD" || tr.Install != "i" {
		t.Errorf("traits %+v", tr)
	}
}
