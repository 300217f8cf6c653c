package identity_test

import (
	"context"
	"crypto"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/testcollector"
	"pfoertner/agent/uplink"
	"pfoertner/internal/attest"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const deviceID = "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21"

func open(t *testing.T) *identity.State {
	t.Helper()
	s, err := identity.Open(filepath.Join(t.TempDir(), "state"), identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func enrolment(c *testcollector.Collector) identity.Enrolment {
	return identity.Enrolment{
		Target: c.Target(), Pin: uplink.Pin{Fingerprint: c.Servers.Fingerprint()},
		Token: "token-1", Machine: &agentv1.Machine{Vendor: "LENOVO", Serial: "PF-1"},
	}
}

// issuing is a collector that takes "token-1".
func issuing(t *testing.T) *testcollector.Collector {
	c := testcollector.New(t)
	c.OnEnrol = c.Granting("token-1", deviceID)
	c.Listen()
	return c
}

func TestEnrolmentMakesADeviceThatSurvivesARestart(t *testing.T) {
	c, s := issuing(t), open(t)
	id, err := s.Enrol(t.Context(), enrolment(c))
	if err != nil {
		t.Fatal(err)
	}
	again, err := identity.Open(filepath.Dir(s.Path()), identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	stored, err := again.Load()
	if err != nil {
		t.Fatal(err)
	}
	if stored.DeviceID != deviceID || stored.AssetNumber != "NB-0001" || !stored.Chain[0].Equal(id.Chain[0]) {
		t.Errorf("stored %+v", stored)
	}
	if _, err := stored.Certificate(time.Now()); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(s.Path()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("identity file: %v, %v", info.Mode(), err)
	}
}

// interrupted lets something happen while a key is being made, which takes a TPM
// seconds.
type interrupted struct {
	identity.Software
	by func()
}

func (k interrupted) Generate() (crypto.Signer, error) {
	k.by()
	return k.Software.Generate()
}

// At the command line and by the service, at the same time: what one has
// achieved the other must not overwrite.
func TestTwoProcessesThatEnrolLeaveOneIdentity(t *testing.T) {
	c, person := issuing(t), open(t)
	service, err := identity.Open(filepath.Dir(person.Path()), interrupted{by: func() {
		if _, err := person.Load(); err == nil {
			return // the key beside the one in use
		}
		if _, err := person.Enrol(t.Context(), enrolment(c)); err != nil {
			t.Error(err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	late := enrolment(c)
	late.Token = "used up"
	if _, err := service.Enrol(t.Context(), late); status.Code(err) != codes.PermissionDenied {
		t.Errorf("enrolling: %v", err)
	}
	if id, err := person.Load(); err != nil || !id.Enrolled() {
		t.Errorf("the identity is lost: %v", err)
	}
}

func TestRefusedEnrolmentKeepsItsKeyAndSaysSo(t *testing.T) {
	c, s := issuing(t), open(t)
	e := enrolment(c)
	e.Token = "stolen"
	if _, err := s.Enrol(t.Context(), e); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("stolen token: %v", err)
	}
	waiting, err := s.Load()
	if err != nil || waiting.Enrolled() {
		t.Fatalf("after a refusal: %v, %v", waiting, err)
	}
	id, err := s.Enrol(t.Context(), enrolment(c))
	if err != nil {
		t.Fatal(err)
	}
	if fp, other := fingerprint(t, waiting), fingerprint(t, id); fp != other {
		t.Errorf("key changed from %s to %s between attempts", fp, other)
	}
}

func fingerprint(t *testing.T, id *identity.Identity) string {
	t.Helper()
	fp, err := id.Fingerprint()
	if err != nil {
		t.Fatal(err)
	}
	return fp
}

func TestPendingShowsTheKeyOfThisNotebook(t *testing.T) {
	c, s := testcollector.New(t), open(t)
	c.OnEnrol = func(stream agentv1.EnrolmentService_EnrolServer) error {
		if _, _, err := testcollector.Proven(stream); err != nil {
			return err
		}
		return stream.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Pending{Pending: &agentv1.Pending{Fingerprint: "AAAA"}}})
	}
	c.Listen()
	_, err := s.Enrol(t.Context(), enrolment(c))
	var p *identity.PendingError
	if !errors.As(err, &p) {
		t.Fatalf("%v, want a PendingError", err)
	}
	id, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	if own := fingerprint(t, id); p.Fingerprint != own {
		t.Errorf("pending shows %s, the key is %s", p.Fingerprint, own)
	}
}

// What a collector must not be able to make an agent store.
func TestCertificatesThatDoNotFitAreNotStored(t *testing.T) {
	for name, spoil := range map[string]func(*testing.T, *testcollector.Collector, *agentv1.Issued){
		"another key": func(t *testing.T, c *testcollector.Collector, m *agentv1.Issued) {
			m.Chain[0] = c.Devices.Issue(t, testcollector.Subject{URI: "urn:uuid:" + deviceID}).Leaf.Raw
		},
		"another device":   func(_ *testing.T, _ *testcollector.Collector, m *agentv1.Issued) { m.DeviceId = "other" },
		"no certificate":   func(_ *testing.T, _ *testcollector.Collector, m *agentv1.Issued) { m.Chain = nil },
		"no CA":            func(_ *testing.T, _ *testcollector.Collector, m *agentv1.Issued) { m.TrustBundle = nil },
		"no certificate 2": func(_ *testing.T, _ *testcollector.Collector, m *agentv1.Issued) { m.Chain[0] = []byte("junk") },
	} {
		t.Run(name, func(t *testing.T) {
			c, s := testcollector.New(t), open(t)
			c.OnEnrol = func(stream agentv1.EnrolmentService_EnrolServer) error {
				hello, _, err := testcollector.Proven(stream)
				if err != nil {
					return err
				}
				key, err := attest.ParseRequest(hello.GetCsr())
				if err != nil {
					return err
				}
				m := c.Issued(key, deviceID)
				spoil(t, c, m)
				return stream.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Issued{Issued: m}})
			}
			c.Listen()
			if _, err := s.Enrol(t.Context(), enrolment(c)); err == nil {
				t.Error("enrolled")
			}
			if id, err := s.Load(); err != nil || id.Enrolled() {
				t.Errorf("stored %v, %v", id, err)
			}
		})
	}
}

func TestMachinesInTheMiddleLearnNoToken(t *testing.T) {
	genuine := issuing(t)
	impostor, asked := testcollector.New(t), make(chan struct{}, 1)
	impostor.OnEnrol = func(agentv1.EnrolmentService_EnrolServer) error {
		asked <- struct{}{}
		return status.Error(codes.Internal, "thank you")
	}
	impostor.Listen()
	e := enrolment(genuine)
	e.Target = impostor.Target()
	if _, err := open(t).Enrol(t.Context(), e); !errors.Is(err, uplink.ErrPin) {
		t.Errorf("%v, want ErrPin", err)
	}
	if len(asked) > 0 {
		t.Error("the impostor was told")
	}
}

func TestBrokenFilesAreErrorsAndStay(t *testing.T) {
	c, s := issuing(t), open(t)
	if _, err := s.Enrol(t.Context(), enrolment(c)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	text := string(whole)
	for name, content := range map[string]string{
		"empty":        "",
		"torn":         text[:len(text)/2],
		"two of them":  text + text,
		"other kind":   strings.Replace(text, `"software"`, `"tpm"`, 1),
		"newer":        strings.Replace(text, `"format": 1`, `"format": 2`, 1),
		"unknown key":  strings.Replace(text, `"format"`, `"colour": "red", "format"`, 1),
		"no key":       strings.Replace(text, `"key": "`, `"key": "AAAA`, 1),
		"binary":       strings.Repeat("\x00", 100),
		"without CA":   cut(text, `"servers": [`, `]`),
		"far too much": strings.Repeat(" ", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			if content == text {
				t.Fatal("the file was not changed")
			}
			if err := os.WriteFile(s.Path(), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			want := identity.ErrBroken
			if name == "other kind" {
				want = identity.ErrOtherKind
			}
			if _, err := s.Load(); !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
			if _, err := s.Enrol(t.Context(), enrolment(c)); !errors.Is(err, want) {
				t.Errorf("enrolling over it: %v, want %v", err, want)
			}
			if now, err := os.ReadFile(s.Path()); err != nil || string(now) != content {
				t.Errorf("the broken file was touched (%v)", err)
			}
		})
	}
}

func cut(text, from, to string) string {
	before, rest, _ := strings.Cut(text, from)
	_, after, _ := strings.Cut(rest, to)
	return before + from + to + after
}

func TestStateThatOthersMayReadIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.Open(dir, identity.Software{}); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("open directory: %v", err)
	}
	s := testcollector.Start(t).Enrolled(t, time.Hour)
	if err := os.Chmod(s.Path(), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); err == nil || errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("open file: %v", err)
	}
}

func TestExpiredCertificateSaysWhenAndWhatToDo(t *testing.T) {
	s := testcollector.Start(t).Enrolled(t, -time.Minute)
	id, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	_, err = id.Certificate(time.Now())
	if !errors.Is(err, identity.ErrExpired) || !strings.Contains(err.Error(), "token") {
		t.Errorf("%v", err)
	}
}

func TestExpiredIdentityIsReplacedByEnrollingAgain(t *testing.T) {
	c := issuing(t)
	s := c.Enrolled(t, -time.Minute)
	old, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Enrol(t.Context(), enrolment(c))
	if err != nil {
		t.Fatal(err)
	}
	if fingerprint(t, old) == fingerprint(t, id) {
		t.Error("the key was not replaced")
	}
}

func TestRenewalOfAReplacedIdentityIsNotBegun(t *testing.T) {
	c := issuing(t)
	s := c.Enrolled(t, time.Hour)
	old, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Enrol(t.Context(), enrolment(c))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Renew(old); !errors.Is(err, identity.ErrReplaced) {
		t.Errorf("%v, want ErrReplaced", err)
	}
	if stored, err := s.Load(); err != nil || stored.DeviceID != id.DeviceID {
		t.Errorf("stored %v, %v", stored, err)
	}
}

// patient remembers why there is no certificate yet.
type patient struct {
	mu   sync.Mutex
	errs []error
	told chan struct{}
}

func (p *patient) NotYet(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errs = append(p.errs, err)
	select {
	case p.told <- struct{}{}:
	default:
	}
}

func TestObtainTriesUntilTheCollectorIsThere(t *testing.T) {
	c, s := issuing(t), open(t)
	c.Stop()
	p := &patient{told: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() {
		done <- s.Obtain(t.Context(), func() (identity.Enrolment, error) {
			e := enrolment(c)
			e.Pin = uplink.Pin{File: c.Servers.File(t)}
			return e, nil
		}, p, slog.New(slog.DiscardHandler))
	}()
	<-p.told
	c.Listen()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-testcollector.Within(t).Done():
		t.Error("never enrolled")
	}
}

// The service waits, and somebody enrols at the command line.
func TestObtainNoticesThatSomebodyElseHasEnrolled(t *testing.T) {
	enrolled, err := testcollector.New(t).Enrolled(t, time.Hour).Load()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t)
	synctest.Test(t, func(t *testing.T) {
		attempts, began := 0, time.Now()
		err := s.Obtain(t.Context(), func() (identity.Enrolment, error) {
			if attempts++; attempts == 8 { // attempts are minutes apart by now
				began = time.Now()
				return identity.Enrolment{}, errors.Join(identity.ErrNoToken, s.Save(enrolled))
			}
			return identity.Enrolment{}, identity.ErrNoToken
		}, &patient{told: make(chan struct{}, 100)}, slog.New(slog.DiscardHandler))
		if err != nil || attempts != 8 {
			t.Errorf("after %d attempts %v", attempts, err)
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("noticed after %v", took)
		}
	})
}

func TestObtainEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p := &patient{told: make(chan struct{}, 1)}
	done := make(chan error, 1)
	go func() {
		done <- open(t).Obtain(ctx, func() (identity.Enrolment, error) {
			return identity.Enrolment{}, errors.New("no token")
		}, p, slog.New(slog.DiscardHandler))
	}()
	<-p.told
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
