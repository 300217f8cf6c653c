package identity_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"pfoertner/agent/identity"
)

func TestOneProcessHoldsTheStateDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	first, err := identity.Hold(dir)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := identity.Hold(dir); !errors.Is(err, identity.ErrInUse) {
		t.Errorf("held twice: %v, %v", second, err)
	}
	if s, err := identity.Open(dir, identity.Software{}); err != nil {
		t.Errorf("opening it: %v", err)
	} else if there, err := s.Present(); err != nil || there {
		t.Errorf("the hold counts as a key: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := identity.Hold(dir)
	if err != nil {
		t.Fatalf("given back: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Errorf("something is left: %v", err)
	}
}
