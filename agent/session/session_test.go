package session

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/agent/testcollector"
	"pfoertner/agent/uplink"
	"pfoertner/internal/attest"
	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// opened takes the first report of a stream, checks that it is full evidence
// and acknowledges it.
func opened(t *testing.T, c *testcollector.Collector) (*testcollector.Stream, *posturev1.Evidence) {
	t.Helper()
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	r := s.Report(t)
	if r.GetFull() == nil || r.GetSequence() != 1 || !bytes.Equal(r.GetNonce(), s.Nonce) {
		t.Fatalf("a stream begins with %v", r)
	}
	s.Acknowledge(t, r)
	return s, r.GetFull()
}

func TestFullEvidenceComesFirstThenOnlyWhatChanged(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, held := opened(t, c)

	a.machine.change(func(m *machine) { m.encrypted = false }, "volumes")
	r := s.Report(t)
	if d := r.GetDelta(); d.GetVolumes() == nil || d.GetPatch() != nil || d.GetPlatform() != nil {
		t.Errorf("changed volumes are sent as %v", r)
	}
	if r.GetSequence() != 2 {
		t.Errorf("sequence %d, want 2", r.GetSequence())
	}
	merged, err := posture.Digest(posture.Merge(held, r.GetDelta()))
	if err != nil || !bytes.Equal(merged, r.GetDigest()) {
		t.Errorf("digest %x does not fit the merged evidence %x (%v)", r.GetDigest(), merged, err)
	}
	if v, p := a.machine.reads("volumes"), a.machine.reads("patch"); v != 2 || p != 1 {
		t.Errorf("volumes were read %d times, patch %d times: only volumes have changed", v, p)
	}
}

// A changed disk is on its way whatever else the notebook is busy with; the
// collection that was under way brings nothing old back when it ends.
func TestChangedDiskIsReportedWhileAnotherSectionHangs(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, held := opened(t, c)

	release := a.machine.stick("patch")
	defer release()
	a.machine.change(func(m *machine) { m.pending = 3 }) // everything is read again
	a.machine.change(func(m *machine) { m.encrypted = false }, "volumes")
	r := s.Report(t)
	if d := r.GetDelta(); d.GetVolumes() == nil || d.GetPatch() != nil {
		t.Fatalf("reported %v", r)
	}
	held = posture.Merge(held, r.GetDelta())
	s.Acknowledge(t, r)
	if !s.Silent(100 * time.Millisecond) {
		t.Error("something is reported of a collection that is not over")
	}
	release()
	for r = s.Report(t); r.GetDelta().GetPatch() == nil; r = s.Report(t) {
		s.Acknowledge(t, r)
	}
	if d := r.GetDelta(); d.GetVolumes() != nil || d.GetPatch().GetPendingSecurity() != 3 {
		t.Errorf("at the end of the long collection comes %v", r)
	}
	if digest, err := posture.Digest(posture.Merge(held, r.GetDelta())); err != nil || !bytes.Equal(digest, r.GetDigest()) {
		t.Errorf("digest %x does not fit the merged evidence %x (%v)", r.GetDigest(), digest, err)
	}
}

// Only reading every section again makes evidence fresher.
func TestEvidenceIsAsOldAsItsOldestSection(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	first := s.Report(t)
	arrived := time.Now()
	s.Acknowledge(t, first)

	const pause = 50 * time.Millisecond
	s.Silent(pause)
	release := a.machine.stick("patch")
	defer release()
	a.machine.change(func(*machine) {})
	a.machine.change(func(m *machine) { m.encrypted = false }, "volumes")
	r := s.Report(t)
	if ago := r.GetCollectedAgo().AsDuration(); ago < pause || ago > time.Since(arrived)+time.Second {
		t.Errorf("collected %v ago, while patch was last read %v ago", ago, time.Since(arrived))
	}
	s.Acknowledge(t, r)
	release()
	r = s.Report(t)
	if r.GetHeartbeat() == nil {
		t.Errorf("the whole collection is told as %v, want a heartbeat", r)
	}
	if ago := r.GetCollectedAgo().AsDuration(); ago > time.Since(arrived)-pause {
		t.Errorf("collected %v ago: everything was read again less than %v ago", ago, time.Since(arrived)-pause)
	}
}

func TestEvidenceFromBeforeASleepIsReadAgainFirst(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	for a.readings.newest().evidence == nil {
		runtime.Gosched()
	}
	// Asleep, the notebook's monotonic clock stood still.
	a.readings.mu.Lock()
	a.readings.current.began = time.Now().Round(0).Add(-8 * time.Hour)
	a.readings.mu.Unlock()
	s.Welcome(t, time.Hour)
	if r := s.Report(t); r.GetFull() == nil || r.GetCollectedAgo().AsDuration() > time.Minute {
		t.Errorf("after a sleep comes %v", r)
	}
}

func TestCollectNowIsAnsweredEvenIfNothingChanged(t *testing.T) {
	c := testcollector.Start(t)
	start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Collect{Collect: &agentv1.Collect{Reason: "operator"}}})
	if r := s.Report(t); r.GetHeartbeat() == nil || len(r.GetDigest()) == 0 {
		t.Errorf("answer to collect is %v, want a heartbeat", r)
	}
}

func TestPartialCollectionWithoutChangeIsNotReported(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	a.machine.change(func(*machine) {}, "patch")
	for a.machine.reads("patch") < 2 {
		runtime.Gosched()
	}
	// The next thing said is about something else.
	a.machine.change(func(m *machine) { m.kernel = "6.1.0-2" }, "platform")
	if r := s.Report(t); r.GetDelta().GetPlatform() == nil || r.GetSequence() != 2 {
		t.Errorf("reported %v", r)
	}
}

func TestIntervalOfTheCollectorIsKept(t *testing.T) {
	c := testcollector.Start(t)
	start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	s.Welcome(t, time.Second)
	s.Acknowledge(t, s.Report(t))
	began := time.Now()
	if r := s.Report(t); r.GetHeartbeat() == nil {
		t.Errorf("after the interval comes %v, want a heartbeat", r)
	}
	if late := time.Since(began); late > 3*time.Second {
		t.Errorf("first heartbeat after %v, interval is 1 s", late)
	}
}

func TestCollectorMayChangeTheInterval(t *testing.T) {
	c := testcollector.Start(t)
	start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	s.Acknowledge(t, s.Report(t))
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Pace{Pace: &agentv1.Pace{ReportInterval: durationpb.New(time.Second)}}})
	s.Acknowledge(t, s.Report(t))
	if r := s.Report(t); r.GetHeartbeat() == nil {
		t.Errorf("after the interval comes %v, want a heartbeat", r)
	}
}

func TestOnlyOneReportIsOnItsWay(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	first := s.Report(t)
	a.machine.change(func(m *machine) { m.pending = 7 }, "patch")
	a.machine.change(func(m *machine) { m.kernel = "6.1.0-2" }, "platform")
	if !s.Silent(100 * time.Millisecond) {
		t.Fatal("a second report before the first was acknowledged")
	}
	s.Acknowledge(t, first)
	r := s.Report(t)
	if d := r.GetDelta(); d.GetPatch().GetPendingSecurity() != 7 || d.GetPlatform().GetKernelRelease() != "6.1.0-2" {
		t.Errorf("what changed meanwhile is not in one delta: %v", r)
	}
}

func TestRepeatedAcknowledgementCountsOnce(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	r := s.Report(t)
	for range 3 {
		s.Acknowledge(t, r)
	}
	a.machine.change(func(m *machine) { m.pending = 1 }, "patch")
	s.Acknowledge(t, s.Report(t))
	a.board.await(t, "second acknowledgement", func() bool { return a.board.contacts >= 2 })
	a.board.mu.Lock()
	defer a.board.mu.Unlock()
	if a.board.contacts != 2 {
		t.Errorf("%d acknowledgements counted, want 2", a.board.contacts)
	}
}

func TestResyncIsAnsweredWithFullEvidence(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	a.machine.change(func(m *machine) { m.pending = 3 }, "patch")
	if r := s.Report(t); r.GetDelta() == nil {
		t.Fatalf("want a delta, got %v", r)
	}
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Resync{Resync: &agentv1.Resync{Reason: "digest"}}})
	r := s.Report(t)
	if r.GetFull().GetPatch().GetPendingSecurity() != 3 || r.GetSequence() != 3 {
		t.Errorf("answer to resync is %v", r)
	}
}

// A collector that does not keep to the protocol loses its stream, and gets
// full evidence on the next one.
func TestMessagesOutOfOrderEndTheStream(t *testing.T) {
	welcome := &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{Nonce: make([]byte, 16)}}}
	for _, c := range []struct {
		name    string
		welcome bool // say the message after a proper opening
		message *agentv1.ConnectResponse
	}{
		{"result before welcome", false, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Result{Result: &posturev1.Result{}}}},
		{"nothing before welcome", false, &agentv1.ConnectResponse{}},
		{"welcome without nonce", false, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{}}}},
		{"welcome twice", true, welcome},
		{"acknowledgement of the future", true, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Acknowledgement{
			Acknowledgement: &agentv1.Acknowledgement{Sequence: 99}}}},
		{"challenge unasked", true, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RenewalChallenge{
			RenewalChallenge: &agentv1.RenewalChallenge{Nonce: make([]byte, 32)}}}},
		{"certificate unasked", true, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Issued{Issued: &agentv1.Issued{}}}},
		{"too long a text", true, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Collect{
			Collect: &agentv1.Collect{Reason: string(make([]byte, posture.MaxStringBytes+1))}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			collector := testcollector.Start(t)
			start(t, collector, collector.Enrolled(t, time.Hour))
			s := collector.Next(t)
			if c.welcome {
				s.Welcome(t, time.Hour)
				s.Acknowledge(t, s.Report(t))
			}
			s.Say(t, c.message)
			opened(t, collector)
		})
	}
}

func TestAcknowledgementOfOtherEvidenceIsNotBelieved(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	r := s.Report(t)
	r.Digest = make([]byte, 32)
	s.Acknowledge(t, r)
	opened(t, c)
	a.board.mu.Lock()
	defer a.board.mu.Unlock()
	if a.board.contacts > 1 {
		t.Error("the wrong acknowledgement was counted")
	}
}

func TestUnknownMessagesOfNewerCollectorsAreIgnored(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	s.Say(t, &agentv1.ConnectResponse{})
	a.machine.change(func(m *machine) { m.pending = 1 }, "patch")
	if r := s.Report(t); r.GetDelta() == nil {
		t.Errorf("reported %v", r)
	}
}

func TestDeadCollectorLeavesOnlyTheNewestEvidence(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour), func(a *agent) { a.readings.sections["patch"].budget.SetBurst(1 << 30) })
	opened(t, c)
	c.Stop()
	a.board.shows(t, status.Unreachable)

	changes := func(from, to uint32) {
		for i := from; i < to; i++ {
			a.machine.change(func(m *machine) { m.pending = i }, "patch")
		}
	}
	changes(1, 200)
	before := heap()
	changes(200, 5000)
	if after := heap(); after > before+1<<20 {
		t.Errorf("heap grew from %d to %d bytes over 4,800 changes", before, after)
	}

	c.Listen()
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	r := s.Report(t)
	for r.GetFull() == nil || r.GetFull().GetPatch().GetPendingSecurity() != 4999 {
		// The collection of the last change may have come after the hello.
		if r.GetSequence() > 1 && r.GetDelta().GetPatch().GetPendingSecurity() == 4999 {
			break
		}
		if r.GetSequence() > 2 {
			t.Fatalf("old evidence was kept: %v", r)
		}
		s.Acknowledge(t, r)
		r = s.Report(t)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestRefusedDeviceAsksLessOften(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	s.End(grpcstatus.Error(codes.PermissionDenied, "suspended"))
	a.board.shows(t, status.Refused)
	if !c.Quiet(300 * time.Millisecond) {
		t.Error("a refused agent came back as fast as one whose collector was away")
	}
}

func TestChangedNetworkCutsTheWaitShort(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	s.End(grpcstatus.Error(codes.PermissionDenied, "suspended"))
	a.board.shows(t, status.Refused)
	a.machine.change(func(*machine) {}, "vpn")
	opened(t, c)
}

func TestDeviceTurnedDownInTheHandshakeIsShownAsRefused(t *testing.T) {
	c := testcollector.New(t)
	c.Check = func(*x509.Certificate) error { return errors.New("suspended") }
	c.Listen()
	a := start(t, c, c.Enrolled(t, time.Hour))
	a.board.shows(t, status.Refused)
}

func TestConnectionOverAPathThatHasMovedIsReplacedAtOnce(t *testing.T) {
	c := testcollector.Start(t)
	var moved atomic.Bool
	a := start(t, c, c.Enrolled(t, time.Hour), func(a *agent) {
		a.moved = func(uplink.Path) bool { return moved.Load() }
		a.retry = &uplink.Backoff{Floor: time.Hour} // waiting would fail the test
	})
	s, _ := opened(t, c)
	a.machine.change(func(m *machine) { m.pending = 1 }, "patch", "vpn")
	s.Acknowledge(t, s.Report(t)) // the path is good: the stream stays
	moved.Store(true)
	a.machine.change(func(*machine) {}, "vpn")
	opened(t, c)
}

func TestResumeReadsEverythingAgain(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	a.machine.change(func(m *machine) { m.pending = 5 })
	if r := s.Report(t); r.GetDelta().GetPatch().GetPendingSecurity() != 5 {
		t.Errorf("reported %v", r)
	}
	for _, section := range posture.Sections() {
		for a.machine.reads(section) < 2 {
			runtime.Gosched()
		}
	}
}

func TestCollectorThatNeverAnswersIsLeft(t *testing.T) {
	c := testcollector.Start(t)
	start(t, c, c.Enrolled(t, time.Hour), func(a *agent) { a.patience = 100 * time.Millisecond })
	c.Next(t) // no welcome
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	s.Report(t) // no acknowledgement
	opened(t, c)
}

func TestResultReachesTheBoard(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, time.Hour))
	s, _ := opened(t, c)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Result{Result: &posturev1.Result{Code: "7K4-QX2"}}})
	a.board.await(t, "result", func() bool { return len(a.board.results) == 1 && a.board.results[0].GetCode() == "7K4-QX2" })
}

func TestCertificateIsRenewedOverTheStream(t *testing.T) {
	c := testcollector.Start(t)
	state := c.Enrolled(t, time.Hour)
	old, err := state.Load()
	if err != nil {
		t.Fatal(err)
	}
	start(t, c, state)
	s := c.Next(t)
	nonce := make([]byte, 16)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		Nonce: nonce, RenewAfter: durationpb.New(0),
	}}})
	csr := takeRenewal(t, s)
	key, err := attest.ParseRequest(csr)
	if err != nil {
		t.Fatal(err)
	}
	challenge := bytes.Repeat([]byte{7}, attest.NonceBytes)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_RenewalChallenge{RenewalChallenge: &agentv1.RenewalChallenge{Nonce: challenge}}})
	proof := s.Take(t)
	for proof.GetReport() != nil {
		proof = s.Take(t)
	}
	exporter, err := mtls.Exporter(s.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.Verify(key, attest.RenewDigest(challenge, exporter, csr), proof.GetRenewalProof().GetSignature()); err != nil {
		t.Errorf("proof of the new key: %v", err)
	}
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Issued{Issued: c.Issued(key, old.DeviceID)}})

	next, _ := opened(t, c)
	_, cert, err := mtls.Peer(next.Context(), mtls.RoleDevice)
	if err != nil || !key.Equal(cert.PublicKey) {
		t.Errorf("the next stream does not use the renewed key (%v)", err)
	}
	stored, err := state.Load()
	if err != nil || !key.Equal(stored.Key.Public()) {
		t.Errorf("the renewed key is not on disk (%v)", err)
	}
}

// takeRenewal takes messages up to the request for a certificate.
func takeRenewal(t *testing.T, s *testcollector.Stream) []byte {
	t.Helper()
	for {
		m := s.Take(t)
		if m.GetRenewal() != nil {
			return m.GetRenewal().GetCsr()
		}
		if m.GetReport() == nil {
			t.Fatalf("instead of a renewal: %v", m)
		}
	}
}

func TestCertificateOfAnotherDeviceIsNotTaken(t *testing.T) {
	c := testcollector.Start(t)
	state := c.Enrolled(t, time.Hour)
	old, err := state.Load()
	if err != nil {
		t.Fatal(err)
	}
	start(t, c, state)
	s := c.Next(t)
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		Nonce: make([]byte, 16), RenewAfter: durationpb.New(0),
	}}})
	key, err := attest.ParseRequest(takeRenewal(t, s))
	if err != nil {
		t.Fatal(err)
	}
	s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Issued{
		Issued: c.Issued(key, "11111111-2222-4333-8444-555555555555")}})
	opened(t, c)
	if stored, err := state.Load(); err != nil || stored.DeviceID != old.DeviceID {
		t.Errorf("stored identity is now %v, %v", stored, err)
	}
}

func TestCollectorUnderAnotherAuthorityIsRefused(t *testing.T) {
	c := testcollector.New(t)
	state := c.Enrolled(t, time.Hour)
	c.Servers = testcollector.NewAuthority(t, "somebody else")
	c.Listen()
	a := start(t, c, state)
	a.board.shows(t, status.Untrusted)
	if !c.Quiet(200 * time.Millisecond) {
		t.Error("the agent speaks to a server under another CA")
	}
}

func TestServerThatIsNoCollectorIsRefused(t *testing.T) {
	c := testcollector.New(t)
	c.ServerURI = "urn:pfoertner:gate:vpn1"
	c.Listen()
	a := start(t, c, c.Enrolled(t, time.Hour))
	a.board.shows(t, status.Unreachable)
	if !c.Quiet(200 * time.Millisecond) {
		t.Error("the agent speaks to a server of another role")
	}
}

func TestExpiredCertificateIsSaidAndNotUsed(t *testing.T) {
	c := testcollector.Start(t)
	a := start(t, c, c.Enrolled(t, -time.Minute))
	a.board.shows(t, status.Expired)
	if !c.Quiet(100 * time.Millisecond) {
		t.Error("the agent connects with an expired certificate")
	}
}

func TestBrokenIdentityEndsTheAgent(t *testing.T) {
	c := testcollector.Start(t)
	state := c.Enrolled(t, time.Hour)
	if err := os.Truncate(state.Path(), 100); err != nil {
		t.Fatal(err)
	}
	a := start(t, c, state)
	select {
	case err := <-a.ended:
		if !errors.Is(err, identity.ErrBroken) {
			t.Errorf("ended with %v, want ErrBroken", err)
		}
	case <-testcollector.Within(t).Done():
		t.Error("the agent goes on with a broken identity")
	}
}
