package identity_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/testcollector"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
	"pfoertner/internal/e2e/swtpm"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// hardware is a machine with a TPM and a disk.
type hardware struct {
	*swtpm.TPM
	chip  *chip.Chip
	state *identity.State
}

func newHardware(t *testing.T) *hardware {
	t.Helper()
	n := &hardware{TPM: swtpm.New(t)}
	n.boot(t, filepath.Join(t.TempDir(), "state"))
	return n
}

// boot starts the agent anew over a state directory.
func (n *hardware) boot(t *testing.T, dir string) {
	t.Helper()
	n.chip = n.Chip(t)
	state, err := identity.Open(dir, identity.TPM{Chip: n.chip})
	if err != nil {
		t.Fatal(err)
	}
	n.state = state
}

// endorsement is by what the inventory knows the notebook.
func (n *hardware) endorsement(t *testing.T) (area []byte, fingerprint string) {
	t.Helper()
	ek, err := n.chip.Endorsement()
	if err != nil {
		t.Fatal(err)
	}
	key, err := ek.Key()
	if err != nil {
		t.Fatal(err)
	}
	if fingerprint, err = attest.Fingerprint(key); err != nil {
		t.Fatal(err)
	}
	return ek.Area, fingerprint
}

// desk is a collector that expects one notebook by its endorsement key, and
// takes the token "token-1" from anybody.
type desk struct {
	*testcollector.Collector
	mu       sync.Mutex
	expected []byte
	hellos   []*agentv1.Hello
	// pending: nobody has approved anything yet.
	pending bool
	// known is the attestation key that the notebook must have; nil: any.
	known []byte
}

func newDesk(t *testing.T, expected *hardware) *desk {
	d := &desk{Collector: testcollector.New(t)}
	if expected != nil {
		d.expected, _ = expected.endorsement(t)
	}
	d.OnEnrol = d.enrol
	d.Listen()
	return d
}

func (d *desk) enrol(s agentv1.EnrolmentService_EnrolServer) error {
	hello, key, err := testcollector.Proven(s)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hellos = append(d.hellos, hello)
	switch tpm := hello.GetTpm(); {
	case d.pending:
		return s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Pending{Pending: &agentv1.Pending{Fingerprint: "AAAA"}}})
	case hello.GetToken() == "token-1":
		return d.Grant(s, key, deviceID)
	case tpm == nil, !bytes.Equal(tpm.GetEkPublic(), d.expected), d.known != nil && !bytes.Equal(tpm.GetAkPublic(), d.known):
		return testcollector.Refused()
	}
	return d.Grant(s, key, deviceID)
}

// expect changes what the desk demands.
func (d *desk) expect(change func(d *desk)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change(d)
}

func (d *desk) last(t *testing.T) *agentv1.Hello {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.hellos) == 0 {
		t.Fatal("nobody has enrolled")
	}
	return d.hellos[len(d.hellos)-1]
}

func (d *desk) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.hellos)
}

// tokenless is an enrolment with nothing but the TPM.
func (d *desk) tokenless() identity.Enrolment {
	e := enrolment(d.Collector)
	e.Token = ""
	return e
}

func enrolled(t *testing.T, n *hardware, d *desk) *identity.Identity {
	t.Helper()
	id, err := n.state.Enrol(t.Context(), d.tokenless())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mustLoad(t *testing.T, s *identity.State) *identity.Identity {
	t.Helper()
	id, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// age makes keys look older, as the file says it.
func age(t *testing.T, s *identity.State, field string, since time.Time) {
	t.Helper()
	text, err := os.ReadFile(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	re := regexp.MustCompile(`"` + field + `": "[^"]*"`)
	if !re.Match(text) {
		t.Fatalf("no %s in %s", field, text)
	}
	changed := re.ReplaceAll(text, fmt.Appendf(nil, "%q: %q", field, since.UTC().Format(time.RFC3339)))
	if err := os.WriteFile(s.Path(), changed, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestExpectedTPMEnrolsWithoutATokenAndSurvivesARestart(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	id := enrolled(t, n, d)
	if !id.InTPM() || id.DeviceID != deviceID || d.last(t).GetTpm().GetManufacturer() == "" {
		t.Errorf("enrolled %+v by %v", id, d.last(t).GetTpm())
	}
	n.Off()
	n.On(t)
	n.boot(t, filepath.Dir(n.state.Path()))
	again := mustLoad(t, n.state)
	if fingerprint(t, again) != fingerprint(t, id) {
		t.Error("another key after a restart")
	}
	if _, err := attest.Sign(again.Key, make([]byte, 32)); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(n.state.Path()); err != nil || bytes.Contains(text, []byte(identity.KindSoftware)) {
		t.Errorf("stored as %s, %v", text, err)
	}
}

func TestUnexpectedTPMIsRefusedAndSaysSo(t *testing.T) {
	n, other := newHardware(t), newHardware(t)
	d := newDesk(t, other)
	_, err := n.state.Enrol(t.Context(), d.tokenless())
	if !errors.Is(err, identity.ErrNotExpected) || status.Code(err) != codes.PermissionDenied {
		t.Errorf("%v, want ErrNotExpected and the collector's status", err)
	}
}

// The fingerprint is the one that `pfoertner-agent id` shows; the token is used
// up by the first answer.
func TestPendingIsForTheEndorsementKeyAndNeedsTheTokenOnce(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	d.expect(func(d *desk) { d.pending = true })
	_, want := n.endorsement(t)
	for attempt, token := range []string{"token-1", ""} {
		_, err := n.state.Enrol(t.Context(), enrolment(d.Collector))
		var p *identity.PendingError
		if !errors.As(err, &p) || p.Fingerprint != want {
			t.Fatalf("attempt %d: %v, want pending with %s", attempt, err, want)
		}
		if got := d.last(t).GetToken(); got != token {
			t.Errorf("attempt %d shows the token %q, want %q", attempt, got, token)
		}
	}
	first, second := d.hellos[0].GetTpm(), d.hellos[1].GetTpm()
	if !bytes.Equal(first.GetAkPublic(), second.GetAkPublic()) || !bytes.Equal(first.GetTlsKeyPublic(), second.GetTlsKeyPublic()) {
		t.Error("other keys when it asked again")
	}
	d.expect(func(d *desk) { d.pending = false })
	if id := enrolled(t, n, d); id.DeviceID != deviceID {
		t.Errorf("after the approval %+v", id)
	}
}

func TestExpiredDeviceRecoversWithTheSameKeys(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	before := enrolled(t, n, d)
	d.expect(func(d *desk) { d.known = d.hellos[0].GetTpm().GetAkPublic() })
	after := enrolled(t, n, d)
	if fingerprint(t, before) != fingerprint(t, after) || before.Chain[0].Equal(after.Chain[0]) {
		t.Error("recovery is a new certificate for the same key")
	}
}

// A machine that is set up anew keeps its endorsement key and nothing else.
func TestClearedTPMEnrolsAnewAsTheSameMachine(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	before := enrolled(t, n, d)
	n.Clear(t)
	if _, err := n.state.Load(); !errors.Is(err, chip.ErrForeign) || !errors.Is(err, identity.ErrNotEnrolled) {
		t.Fatalf("loading: %v", err)
	}
	n.boot(t, filepath.Dir(n.state.Path()))
	w := &waiter{}
	if err := n.state.Obtain(testcollector.Within(t), func() (identity.Enrolment, error) { return d.tokenless(), nil }, w, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	after := mustLoad(t, n.state)
	if fingerprint(t, before) == fingerprint(t, after) {
		t.Error("the old key is still there")
	}
	hellos := d.hellos
	if !bytes.Equal(hellos[0].GetTpm().GetEkPublic(), hellos[1].GetTpm().GetEkPublic()) || bytes.Equal(hellos[0].GetTpm().GetAkPublic(), hellos[1].GetTpm().GetAkPublic()) {
		t.Error("the same endorsement key and another attestation key are wanted")
	}
	var other *identity.CopiedError
	if len(w.said) != 1 || !errors.As(w.said[0], &other) || !other.Foreign {
		t.Errorf("told %v, want that the keys are foreign", w.said)
	}
	if _, err := os.Stat(other.Aside); err != nil {
		t.Errorf("set aside: %v", err)
	}
}

// A collector that knows nothing of TPMs asks for the signature of a software
// key: it gets none, whatever it would issue for it.
func TestACollectorThatKnowsNoTPMsGetsNoKeyInSoftware(t *testing.T) {
	n := newHardware(t)
	c := testcollector.New(t)
	proofs := make(chan *agentv1.Proof, 1)
	c.OnEnrol = func(s agentv1.EnrolmentService_EnrolServer) error {
		if _, err := s.Recv(); err != nil {
			return err
		}
		err := s.Send(&agentv1.EnrolResponse{Message: &agentv1.EnrolResponse_Challenge{
			Challenge: &agentv1.Challenge{Nonce: make([]byte, attest.NonceBytes)},
		}})
		m, _ := s.Recv()
		proofs <- m.GetProof()
		return err
	}
	c.Listen()
	if _, err := n.state.Enrol(t.Context(), enrolment(c)); err == nil {
		t.Error("enrolled")
	}
	if p := <-proofs; p != nil {
		t.Errorf("proven: %v", p)
	}
	if id := mustLoad(t, n.state); !id.InTPM() || id.Enrolled() {
		t.Errorf("keeps %+v", id)
	}
}

// waiter remembers what it was told.
type waiter struct {
	mu   sync.Mutex
	said []error
	told chan struct{}
}

func (w *waiter) NotYet(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.said = append(w.said, err)
	if w.told != nil && len(w.said) == 1 {
		close(w.told)
	}
}

func TestCopiedStateDirectoryIsOfNoUseOnAnotherMachine(t *testing.T) {
	ours, private := newHardware(t), newHardware(t)
	d := newDesk(t, ours)
	enrolled(t, ours, d)
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(ours.state.Path()))); err != nil {
		t.Fatal(err)
	}
	// os.CopyFS opens what it copies.
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chmod(filepath.Join(dir, filepath.Base(ours.state.Path())), 0o600)); err != nil {
		t.Fatal(err)
	}
	private.boot(t, dir)
	if id, err := private.state.Load(); !errors.Is(err, chip.ErrForeign) || id != nil {
		t.Errorf("loaded as %v, %v", id, err)
	}
	// The machine says of itself what ours says.
	var other *identity.CopiedError
	if err := private.state.Bind(identity.Traits{}); !errors.As(err, &other) || !other.Foreign {
		t.Errorf("binding: %v", err)
	}
	if _, err := private.state.Load(); !errors.Is(err, identity.ErrNotEnrolled) || errors.Is(err, chip.ErrForeign) {
		t.Errorf("after that: %v", err)
	}
	if _, err := private.state.Enrol(t.Context(), d.tokenless()); !errors.Is(err, identity.ErrNotExpected) {
		t.Errorf("enrolling: %v", err)
	}
	if mustLoad(t, ours.state).DeviceID != deviceID {
		t.Error("ours has suffered")
	}
}

// A firmware update must not cost a notebook its identity: without a token it
// could not come back.
func TestFirmwareThatNamesTheModelOtherwiseCostsNoKeyInTheTPM(t *testing.T) {
	made := identity.Traits{Model: "Hewlett-Packard\x00HP 840", Serial: "5CG-1", Install: "1"}
	for name, c := range map[string]struct {
		made, here identity.Traits
		copied     bool
	}{
		"another vendor's name":             {made, identity.Traits{Model: "HP\x00HP 840", Serial: "5CG-1", Install: "1"}, false},
		"another system, no serial number":  {identity.Traits{Install: "1"}, identity.Traits{Install: "2"}, false},
		"a copied virtual machine, renamed": {made, identity.Traits{Model: "Hewlett-Packard\x00HP 840", Serial: "5CG-2", Install: "1"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newHardware(t)
			d := newDesk(t, n)
			if err := n.state.Bind(c.made); err != nil {
				t.Fatal(err)
			}
			enrolled(t, n, d)
			n.boot(t, filepath.Dir(n.state.Path()))
			if copied, err := n.state.Copied(c.here); err != nil || copied != c.copied {
				t.Errorf("id says copied: %v, %v", copied, err)
			}
			if err := n.state.Bind(c.here); errors.As(err, new(*identity.CopiedError)) != c.copied || !c.copied && err != nil {
				t.Fatalf("binding: %v", err)
			}
			if _, err := n.state.Load(); errors.Is(err, identity.ErrNotEnrolled) != c.copied {
				t.Errorf("loading: %v", err)
			}
		})
	}
}

// The key of a copied file signs nothing anywhere else, whoever uses it how.
func TestCopiedKeySignsNothingElsewhere(t *testing.T) {
	ours, private := newHardware(t), newHardware(t)
	key, err := ours.chip.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	stored, err := identity.TPM{}.Store(key)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := identity.TPM{Chip: private.chip}.Open(stored)
	if err != nil {
		t.Fatal(err)
	}
	if sig, err := attest.Sign(copied, make([]byte, 32)); !errors.Is(err, chip.ErrForeign) {
		t.Errorf("signed %x, %v", sig, err)
	}
}

// Whatever happens before: what is stored as a key in the TPM is one.
func TestSoftwareKeyIsNeverStoredAsOneInTheTPM(t *testing.T) {
	key, err := attest.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if stored, err := (identity.TPM{}).Store(key); err == nil {
		t.Errorf("stored as %x", stored)
	}
	der, err := identity.Software{}.Store(key)
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := (identity.TPM{Chip: chip.New(nil, nil)}).Open(der); err == nil {
		t.Errorf("opened as %v", opened)
	}
}

func TestTPMThatIsAwayIsWaitedForAndNoSoftwareKeyAppears(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	n.boot(t, filepath.Dir(n.state.Path()))
	n.Off()
	w := &waiter{told: make(chan struct{})}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		ended <- n.state.Obtain(ctx, func() (identity.Enrolment, error) { return enrolment(d.Collector), nil }, w, slog.New(slog.DiscardHandler))
	}()
	select {
	case <-w.told:
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	}
	if err := w.said[0]; !errors.Is(err, chip.ErrUnavailable) {
		t.Errorf("told %v, want ErrUnavailable", err)
	}
	if d.asked() > 0 {
		t.Error("the collector was asked without a TPM")
	}
	if names, err := filepath.Glob(filepath.Join(filepath.Dir(n.state.Path()), "*")); err != nil || len(names) > 0 {
		t.Errorf("there are %v, %v", names, err)
	}
	n.On(t)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if !mustLoad(t, n.state).InTPM() {
		t.Error("the key is not in the TPM")
	}
}

func TestTPMThatGoesAwayLeavesTheIdentityAlone(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	enrolled(t, n, d)
	n.Off()
	if err := n.state.Bind(identity.Traits{}); err != nil {
		t.Errorf("binding: %v", err)
	}
	if _, err := n.state.Load(); !errors.Is(err, chip.ErrUnavailable) || errors.Is(err, identity.ErrNotEnrolled) {
		t.Errorf("loading: %v", err)
	}
	if _, err := n.state.Enrol(t.Context(), enrolment(d.Collector)); !errors.Is(err, chip.ErrUnavailable) {
		t.Errorf("enrolling: %v", err)
	}
	n.On(t)
	if mustLoad(t, n.state).DeviceID != deviceID {
		t.Error("another identity")
	}
}

func TestProtectionIsNotLoweredByASetting(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	enrolled(t, n, d)
	before, err := os.ReadFile(n.state.Path())
	if err != nil {
		t.Fatal(err)
	}
	s, err := identity.Open(filepath.Dir(n.state.Path()), identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); !errors.Is(err, identity.ErrOtherKind) || !strings.Contains(err.Error(), "device_key to tpm") {
		t.Errorf("loading: %v", err)
	}
	if _, err := s.Enrol(t.Context(), enrolment(d.Collector)); !errors.Is(err, identity.ErrOtherKind) {
		t.Errorf("enrolling: %v", err)
	}
	err = s.Obtain(t.Context(), func() (identity.Enrolment, error) { return enrolment(d.Collector), nil }, &waiter{}, slog.New(slog.DiscardHandler))
	if !errors.Is(err, identity.ErrOtherKind) {
		t.Errorf("obtaining: %v", err)
	}
	if after, err := os.ReadFile(s.Path()); err != nil || !bytes.Equal(before, after) || d.asked() != 1 {
		t.Errorf("the identity was touched (%v), or the collector asked %d times", err, d.asked())
	}
}

func TestSoftwareKeyIsRaisedIntoTheTPMWithATokenOnly(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	dir := filepath.Dir(n.state.Path())
	s, err := identity.Open(dir, identity.Software{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Enrol(t.Context(), enrolment(d.Collector)); err != nil {
		t.Fatal(err)
	}
	if _, err := n.state.Load(); !errors.Is(err, identity.ErrOtherKind) {
		t.Errorf("loading: %v", err)
	}
	// That token has enrolled the software key; it is of no more use.
	for name, e := range map[string]identity.Enrolment{"without a token": d.tokenless(), "with a spent token": enrolment(d.Collector)} {
		if _, err := n.state.Enrol(t.Context(), e); !errors.Is(err, identity.ErrOtherKind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := enrolment(d.Collector)
	e.Token = "token-2"
	d.expect(func(d *desk) { d.pending = true })
	if _, err := n.state.Enrol(t.Context(), e); !errors.As(err, new(*identity.PendingError)) {
		t.Fatalf("with a new token: %v", err)
	}
	if old, err := s.Load(); err != nil || !old.Enrolled() {
		t.Errorf("while it waits the old identity is %v, %v", old, err)
	}
	d.expect(func(d *desk) { d.pending = false })
	if id, err := n.state.Enrol(t.Context(), e); err != nil || !id.InTPM() {
		t.Fatalf("after the approval: %v, %v", id, err)
	}
	if !mustLoad(t, n.state).InTPM() {
		t.Error("not stored")
	}
}

// A token that the collector refuses does not stand in the way of a TPM that it
// has come to expect.
func TestRefusedTokenIsWithheldEveryOtherTime(t *testing.T) {
	n := newHardware(t)
	refused := fmt.Errorf("enrolling: %w", testcollector.Refused())
	for name, test := range map[string]struct {
		state  *identity.State
		before bool
		err    error
		want   bool
	}{
		"refused with it":    {n.state, false, refused, true},
		"refused without it": {n.state, true, refused, false},
		"not reached":        {n.state, false, status.Error(codes.Unavailable, ""), false},
		"software key":       {open(t), false, refused, false},
	} {
		if got := test.state.Withholds(test.before, test.err); got != test.want {
			t.Errorf("%s: withheld %v, want %v", name, got, test.want)
		}
	}
	d := newDesk(t, n)
	asked := func(withhold bool) string {
		_ = n.state.Attempt(t.Context(), func() (identity.Enrolment, error) {
			e := enrolment(d.Collector)
			e.Token = "expired"
			return e, nil
		}, withhold) // how it ends is not the question
		return d.last(t).GetToken()
	}
	if with, without := asked(false), asked(true); with != "expired" || without != "" {
		t.Errorf("shown %q and %q", with, without)
	}
}

func TestNonsenseInTheIdentityFileIsBroken(t *testing.T) {
	n := newHardware(t)
	d := newDesk(t, n)
	enrolled(t, n, d)
	whole, err := os.ReadFile(n.state.Path())
	if err != nil {
		t.Fatal(err)
	}
	text := string(whole)
	field := func(name string) string {
		m := regexp.MustCompile(`"` + name + `": "([^"]*)"`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s", name)
		}
		return m[1]
	}
	for name, content := range map[string]string{
		"torn":                        text[:len(text)/2],
		"empty":                       "",
		"no attestation key":          strings.Replace(text, field("attestation_key"), "", 1),
		"key for attestation key":     strings.Replace(text, field("attestation_key"), field("key"), 1),
		"attestation key for key":     strings.Replace(text, field("key"), field("attestation_key"), 1),
		"key is nonsense":             strings.Replace(text, field("key"), "AAAA", 1),
		"attestation key is nonsense": strings.Replace(text, field("attestation_key"), "AAAA", 1),
	} {
		if err := os.WriteFile(n.state.Path(), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if id, err := n.state.Load(); !errors.Is(err, identity.ErrBroken) {
			t.Errorf("%s: %v, %v, want ErrBroken", name, id, err)
		}
		if _, err := n.state.Enrol(t.Context(), d.tokenless()); !errors.Is(err, identity.ErrBroken) {
			t.Errorf("%s: enrolling over it: %v", name, err)
		}
	}
}

// Logs are as long as the machine makes them; messages are not.
func TestEventLogThatIsTooLongIsLeftOut(t *testing.T) {
	for name, test := range map[string]struct {
		bytes int
		sent  bool
	}{"as long as may be": {posture.MaxEventLogBytes, true}, "too long": {posture.MaxEventLogBytes + 1, false}} {
		n := newHardware(t)
		n.Log = bytes.Repeat([]byte{1}, test.bytes)
		d := newDesk(t, n)
		id := enrolled(t, n, d)
		q, err := id.Quote(make([]byte, 32), make([]byte, 32))
		if err != nil || len(q.GetMessage()) == 0 || len(q.GetEventLog()) > 0 != test.sent || posture.CheckLimits(q) != nil {
			t.Errorf("%s: log of %d bytes, %v, %v", name, len(q.GetEventLog()), err, posture.CheckLimits(q))
		}
	}
}

func TestQuoteAnswersItsNonceOrSaysWhyNot(t *testing.T) {
	n := newHardware(t)
	n.Log = []byte("log")
	d := newDesk(t, n)
	id := enrolled(t, n, d)
	ak, err := attest.ParseAttestationKey(d.last(t).GetTpm().GetAkPublic())
	if err != nil {
		t.Fatal(err)
	}
	nonce, exporter := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	q, err := id.Quote(nonce, exporter)
	if err != nil || !bytes.Equal(q.GetNonce(), nonce) || string(q.GetEventLog()) != "log" {
		t.Fatalf("quote %v, %v", q, err)
	}
	a, err := (&attest.Quote{Message: q.GetMessage(), Signature: q.GetSignature(), Values: q.GetPcrValues()}).
		Verify(ak, attest.Qualify(attest.PurposeQuote, nonce, exporter))
	if err != nil || len(a.PCRs) != len(attest.QuotedPCRs()) {
		t.Errorf("verified as %+v, %v", a, err)
	}
	if q, err := id.Quote(nonce[:16], exporter); err != nil || q.GetFailure() == "" || len(q.GetMessage()) > 0 {
		t.Errorf("short nonce: %v, %v", q, err)
	}
	n.Off()
	if q, err := id.Quote(nonce, exporter); err != nil || q.GetFailure() == "" || len(q.GetFailure()) > 200 || len(q.GetMessage()) > 0 {
		t.Errorf("without a TPM: %v, %v", q, err)
	}
	if _, err := (&identity.Identity{}).Quote(nonce, exporter); !errors.Is(err, identity.ErrSoftwareKey) {
		t.Errorf("software key: %v", err)
	}
}

func TestVPNKeyIsCertifiedAndKept(t *testing.T) {
	n, other := newHardware(t), newHardware(t)
	d := newDesk(t, n)
	id := enrolled(t, n, d)
	key, err := n.state.NewVPNKey()
	if err != nil {
		t.Fatal(err)
	}
	nonce, exporter := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	message, signature, err := id.CertifyVPN(key, nonce, exporter)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := attest.ParseAttestationKey(d.last(t).GetTpm().GetAkPublic())
	if err != nil {
		t.Fatal(err)
	}
	public, err := attest.ParseSigningKey(key.Area())
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.VerifyCertify(ak, public, attest.Qualify(attest.PurposeVPN, nonce, exporter), message, signature); err != nil {
		t.Error(err)
	}
	stored, err := key.Stored()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := n.state.LoadVPNKey(stored); err != nil || !again.Public().(*ecdsa.PublicKey).Equal(key.Public()) {
		t.Errorf("loaded %v, %v", again, err)
	}
	if _, err := other.state.LoadVPNKey(stored); !errors.Is(err, chip.ErrForeign) {
		t.Errorf("on another machine: %v", err)
	}
	statements, err := n.chip.NewAK()
	if err != nil {
		t.Fatal(err)
	}
	if stored, err = statements.Stored(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.state.LoadVPNKey(stored); err == nil {
		t.Error("an attestation key is taken for one of the VPN")
	}
	software := open(t)
	if _, err := software.NewVPNKey(); !errors.Is(err, identity.ErrSoftwareKey) {
		t.Errorf("without a TPM: %v", err)
	}
}
