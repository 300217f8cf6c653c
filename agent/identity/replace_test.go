package identity_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/testcollector"
	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// undecided is a collector that lets notebooks wait, until it is told to issue.
// It says which keys it was shown.
type undecided struct {
	*testcollector.Collector
	issue bool
	keys  []string
}

func undecidedCollector(t *testing.T) *undecided {
	u := &undecided{Collector: testcollector.New(t)}
	u.OnEnrol = func(s agentv1.EnrolmentService_EnrolServer) error {
		_, key, err := testcollector.Proven(s)
		if err != nil {
			return err
		}
		shown, err := attest.Fingerprint(key)
		if err != nil {
			return err
		}
		u.keys = append(u.keys, shown)
		if !u.issue {
			return s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Pending{Pending: &agentv1.Pending{Fingerprint: shown}}})
		}
		return s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: u.Issued(key, deviceID)}})
	}
	u.Listen()
	return u
}

// Persons compare a fingerprint: it has to be the same at the next attempt, and
// after a restart. Until they have decided, the certificate is what it was.
func TestKeyThatReplacesACertificateStaysTheSameUntilItIsIssued(t *testing.T) {
	u := undecidedCollector(t)
	s := u.Enrolled(t, time.Hour)
	before, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var waiting *identity.PendingError
		if _, err := reopened(t, s).Enrol(t.Context(), enrolment(u.Collector)); !errors.As(err, &waiting) {
			t.Fatalf("%v", err)
		}
		if now, err := s.Load(); err != nil || !now.Enrolled() || fingerprint(t, now) != fingerprint(t, before) {
			t.Fatalf("the certificate is gone: %+v, %v", now, err)
		}
	}
	u.issue = true
	id, err := s.Enrol(t.Context(), enrolment(u.Collector))
	if err != nil {
		t.Fatal(err)
	}
	if len(u.keys) != 3 || u.keys[0] != u.keys[1] || u.keys[1] != u.keys[2] || u.keys[0] == fingerprint(t, before) {
		t.Errorf("the collector was shown %q, the old key is %s", u.keys, fingerprint(t, before))
	}
	if _, err := s.Enrol(t.Context(), enrolment(u.Collector)); err != nil {
		t.Fatal(err)
	}
	if u.keys[3] == fingerprint(t, id) {
		t.Error("enrolling again shows the key in use")
	}
}

// A crash may leave the key behind that has become the one in use.
func TestKeyInUseIsNeverTheNextOne(t *testing.T) {
	u := undecidedCollector(t)
	s := open(t)
	u.issue = true
	id, err := s.Enrol(t.Context(), enrolment(u.Collector))
	if err != nil {
		t.Fatal(err)
	}
	next := filepath.Join(filepath.Dir(s.Path()), "identity.next.json")
	for name, content := range map[string]func() error{
		"the key in use": func() error {
			other := open(t)
			if err := other.Save(&identity.Identity{Key: id.Key}); err != nil {
				return err
			}
			return os.Rename(other.Path(), next)
		},
		"a broken file": func() error { return os.WriteFile(next, []byte("{"), 0o600) },
	} {
		if err := content(); err != nil {
			t.Fatal(err)
		}
		again, err := s.Enrol(t.Context(), enrolment(u.Collector))
		if err != nil || fingerprint(t, again) == fingerprint(t, id) {
			t.Errorf("%s: %v", name, err)
		}
		id = again
	}
}

func TestNextKeyIsAKeyToo(t *testing.T) {
	u := undecidedCollector(t)
	s := boundTo(t, notebook())
	if _, err := s.Enrol(t.Context(), enrolment(u.Collector)); err == nil {
		t.Fatal("enrolled")
	}
	next := filepath.Join(filepath.Dir(s.Path()), "identity.next.json")
	if err := os.WriteFile(next, []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.Path()); err != nil {
		t.Fatal(err)
	}
	if there, err := s.Present(); err != nil || !there {
		t.Errorf("present: %v, %v", there, err)
	}
	if err := os.WriteFile(s.Path(), []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	var copied *identity.CopiedError
	if err := reopened(t, s).Bind(identity.Traits{Serial: "another"}); !errors.As(err, &copied) {
		t.Fatal(err)
	}
	if _, err := os.Stat(next); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key of another machine is left (%v)", err)
	}
}

func TestCopiedIdentityIsKnownWithoutChangingAnything(t *testing.T) {
	s := boundTo(t, notebook())
	for name, c := range map[string]struct {
		machine identity.Traits
		copied  bool
	}{
		"the same machine": {notebook(), false},
		"another machine":  {identity.Traits{Serial: "PF-0002"}, true},
		"nothing known":    {identity.Traits{}, false},
	} {
		if copied, err := s.Copied(c.machine); err != nil || copied != c.copied {
			t.Errorf("%s: %v, %v", name, copied, err)
		}
	}
	if _, err := os.Stat(s.Path()); err != nil {
		t.Error(err)
	}
	if copied, err := open(t).Copied(notebook()); err != nil || copied {
		t.Errorf("no identity: %v, %v", copied, err)
	}
}

// A token that has done its work would only be refused, with an entry in the
// collector's audit log.
func TestTokenOfAnEnrolmentIsSpent(t *testing.T) {
	c, s := issuing(t), open(t)
	wrong := enrolment(c)
	wrong.Token = "token-2"
	if _, err := s.Enrol(t.Context(), wrong); status.Code(err) != codes.PermissionDenied {
		t.Fatal(err)
	}
	if _, err := s.Enrol(t.Context(), enrolment(c)); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]bool{"token-1": true, "token-2": false, "": false} {
		if spent, err := reopened(t, s).Spent(token); err != nil || spent != want {
			t.Errorf("%q is spent: %v, %v", token, spent, err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(s.Path()))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(filepath.Dir(s.Path()), e.Name()))
		if err != nil || strings.Contains(string(content), "token-1") {
			t.Errorf("%s holds the token (%v)", e.Name(), err)
		}
	}
}

// Somebody enrols the notebook while the service renews its certificate.
func TestRenewalDoesNotOverwriteANewEnrolment(t *testing.T) {
	c := issuing(t)
	s := c.Enrolled(t, time.Hour)
	old, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	renewal, err := s.Renew(old)
	if err != nil {
		t.Fatal(err)
	}
	enrolled, err := s.Enrol(t.Context(), enrolment(c))
	if err != nil {
		t.Fatal(err)
	}
	key, err := attest.ParseRequest(renewal.Request().GetCsr())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := renewal.Complete(c.Issued(key, old.DeviceID), time.Now()); !errors.Is(err, identity.ErrReplaced) {
		t.Errorf("%v, want ErrReplaced", err)
	}
	if stored, err := s.Load(); err != nil || fingerprint(t, stored) != fingerprint(t, enrolled) {
		t.Errorf("the new identity is gone: %v", err)
	}
}
