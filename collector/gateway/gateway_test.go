package gateway_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/admission"
	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	admit      = posturev1.Verdict_VERDICT_ADMIT
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	deny       = posturev1.Verdict_VERDICT_DENY
)

// signer is the lease-signing key as a gateway gets to know it.
func signer(t testing.TB, h *house) []byte {
	t.Helper()
	_, chain := h.authority.LeaseSigner()
	return h.signerKey(chain)
}

func TestASessionIsAnsweredWithASignedLease(t *testing.T) {
	h := newHouse(t, admission.Options{})
	h.admit(1)
	h.admit(2)
	h.result(2, deny)
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	for n, want := range map[int]posturev1.Verdict{1: admit, 2: deny, 3: deny} {
		got, err := gate.Admit(t.Context(), &gatev1.AdmitRequest{Session: session(n)})
		if err != nil {
			t.Fatal(err)
		}
		l, err := lease.VerifyLease(signer(t, h), got.GetLease())
		if err != nil {
			t.Fatal(err)
		}
		if l.GetVerdict() != want || l.GetGateway() != "vpn1" || l.GetSessionId() != session(n).GetSessionId() ||
			!bytesEqual(l.GetCertificateSha256(), certificateOf(n)) || l.GetEpoch() != 1 || l.GetIssuedAt() == nil {
			t.Errorf("notebook %d: %v", n, l)
		}
		refused := want == deny
		if (l.GetTtl().AsDuration() > 0) == refused || (l.GetCode() == "") == refused {
			t.Errorf("notebook %d: time to live %v, code %q", n, l.GetTtl(), l.GetCode())
		}
		if got.GetCode() != l.GetCode() || (got.GetMessage().GetDe() != "") != refused || refused && !strings.Contains(got.GetMessage().GetDe(), got.GetCode()) {
			t.Errorf("notebook %d: code %q, text %v", n, got.GetCode(), got.GetMessage())
		}
		if (l.GetDeviceId() == "") != (n == 3) {
			t.Errorf("notebook %d: device %q", n, l.GetDeviceId())
		}
	}
}

func bytesEqual(a, b []byte) bool { return string(a) == string(b) }

// Drafts are used again: nothing of one answer may be left in another.
func TestAnswersDoNotMix(t *testing.T) {
	h := newHouse(t, admission.Options{})
	for n := range 50 {
		h.admit(n)
	}
	h.desk.Ready()
	key := signer(t, h)
	gates := []gatev1.GateServiceClient{gatev1.NewGateServiceClient(h.connect("vpn1")), gatev1.NewGateServiceClient(h.connect("gateway-with-a-long-name"))}
	names := []string{"vpn1", "gateway-with-a-long-name"}
	done := make(chan error)
	const callers = 16
	for c := range callers {
		go func() {
			done <- func() error {
				for i := range 200 {
					n := (c*31 + i) % 60 // ten of them unknown
					g := (c + i) % 2
					got, err := gates[g].Admit(t.Context(), &gatev1.AdmitRequest{Session: session(n)})
					if err != nil {
						return err
					}
					l, err := lease.VerifyLease(key, got.GetLease())
					if err != nil {
						return err
					}
					known := n < 50
					if l.GetGateway() != names[g] || l.GetSessionId() != session(n).GetSessionId() ||
						(l.GetVerdict() == admit) != known || (l.GetCode() == "") != known || (got.GetMessage() == nil) != known ||
						(l.GetDeviceId() == "") == known || !bytesEqual(l.GetCertificateSha256(), certificateOf(n)) {
						return fmt.Errorf("notebook %d on %s: %v, %v", n, names[g], l, got.GetMessage())
					}
				}
				return nil
			}()
		}()
	}
	for range callers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestOnlyGatewaysAreAnswered(t *testing.T) {
	h := newHouse(t, admission.Options{})
	h.desk.Ready()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	operator, err := h.authority.IssueOperator("anna", &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	device, err := h.authority.IssueDevice("0b7e6c1e-7a52-4c35-9a6e-3f3f6d8f3a11", &key.PublicKey, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, cert := range map[string]*tls.Certificate{
		"operator": {Certificate: operator.Chain, PrivateKey: key},
		"notebook": {Certificate: device.Chain, PrivateKey: key},
		"nobody":   {},
	} {
		_, err := gatev1.NewGateServiceClient(h.dial(cert)).Admit(t.Context(), &gatev1.AdmitRequest{Session: session(1)})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBeforeTheStateIsLoadedThereIsNoAnswer(t *testing.T) {
	h := newHouse(t, admission.Options{})
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	if _, err := gate.Admit(t.Context(), &gatev1.AdmitRequest{Session: session(1)}); status.Code(err) != codes.Unavailable {
		t.Errorf("Admit: %v", err)
	}
	if _, err := gate.Report(t.Context(), &gatev1.ReportRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("Report: %v", err)
	}
	stream, err := gate.Watch(t.Context(), &gatev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("Watch: %v", err)
	}
}

func TestWhatIsTooLongOrMalformedIsRefused(t *testing.T) {
	h := newHouse(t, admission.Options{})
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	long := strings.Repeat("x", 5000)
	for name, change := range map[string]func(*gatev1.SessionFacts){
		"no session id":        func(s *gatev1.SessionFacts) { s.SessionId = "" },
		"long session id":      func(s *gatev1.SessionFacts) { s.SessionId = long },
		"long fingerprint":     func(s *gatev1.SessionFacts) { s.CertificateSha256 = []byte(long) },
		"long name":            func(s *gatev1.SessionFacts) { s.PeerName = long },
		"long outer address":   func(s *gatev1.SessionFacts) { s.OuterAddress = long },
		"long tunnel address":  func(s *gatev1.SessionFacts) { s.TunnelAddresses = []string{long} },
		"too many addresses":   func(s *gatev1.SessionFacts) { s.TunnelAddresses = make([]string, 17) },
		"nothing but defaults": func(s *gatev1.SessionFacts) { proto.Reset(s) },
	} {
		s := session(1)
		change(s)
		if _, err := gate.Admit(t.Context(), &gatev1.AdmitRequest{Session: s}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("Admit, %s: %v", name, err)
		}
		up := &gatev1.SessionEvent{Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: s}}}
		if _, err := gate.Report(t.Context(), &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{up}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("Report, %s: %v", name, err)
		}
	}
	for name, req := range map[string]*gatev1.ReportRequest{
		"too many events": {Events: make([]*gatev1.SessionEvent, 70_000)},
		"no such time":    {Events: []*gatev1.SessionEvent{{At: &timestamppb.Timestamp{Nanos: -5}}}},
		"no such time span": {Events: []*gatev1.SessionEvent{{Event: &gatev1.SessionEvent_CutConfirmed{
			CutConfirmed: &gatev1.CutConfirmed{PacketsCutAfter: durationpb.New(-time.Second)},
		}}}},
		"long alarm": {Events: []*gatev1.SessionEvent{{Event: &gatev1.SessionEvent_Alarm{Alarm: &gatev1.GateAlarm{Detail: long}}}}},
	} {
		if _, err := gate.Report(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCutsAndAlarmsAreRecordedBeforeTheAnswer(t *testing.T) {
	h := newHouse(t, admission.Options{})
	h.admit(1)
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	report := &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{
		{Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: session(1), Verdict: admit}}},
		{Event: &gatev1.SessionEvent_Alarm{Alarm: &gatev1.GateAlarm{Kind: "not_admitted", SessionId: session(1).GetSessionId()}}},
		{Event: &gatev1.SessionEvent_CutConfirmed{CutConfirmed: &gatev1.CutConfirmed{SessionId: session(1).GetSessionId()}}},
	}}
	h.records.mu.Lock()
	h.records.fail = errors.New("disk is full: /var/lib/secret")
	h.records.mu.Unlock()
	_, err := gate.Report(t.Context(), report)
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "secret") {
		t.Errorf("a report that cannot be recorded: %v", err)
	}
	h.records.mu.Lock()
	h.records.fail = nil
	h.records.mu.Unlock()
	if _, err := gate.Report(t.Context(), report); err != nil {
		t.Fatal(err)
	}
	kinds := h.records.kinds()
	if kinds["gate.alarm"] != 1 || kinds["session.cut"] != 1 {
		t.Errorf("recorded: %v", kinds)
	}
	for _, r := range h.records.audited {
		if r.Actor != "vpn1" || r.DeviceID != deviceID(1) || r.AssetNumber != "NB-000001" {
			t.Errorf("record: %+v", r)
		}
	}
}

func TestAWatchTellsEverythingSigned(t *testing.T) {
	h := newHouse(t, admission.Options{Heartbeat: 20 * time.Millisecond})
	const fleet = 1500
	for n := range fleet {
		h.admit(n)
	}
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	stream, err := gate.Watch(t.Context(), &gatev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next := func() *gatev1.WatchResponse {
		t.Helper()
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	start := next().GetStart()
	if start == nil || start.GetResumed() || start.GetEpoch() != 1 || start.GetHeartbeatInterval().AsDuration() != 20*time.Millisecond ||
		start.GetLeaseTtl().AsDuration() != 15*time.Second {
		t.Fatalf("start: %v", start)
	}
	key := h.signerKey(start.GetSignerChain())
	standings := func(signed *gatev1.SignedStandings) *gatev1.Standings {
		t.Helper()
		s, err := lease.VerifyStandings(key, signed)
		if err != nil || s.GetGateway() != "vpn1" {
			t.Fatalf("%v: %v", s.GetGateway(), err)
		}
		return s
	}
	identities := 0
	for last := false; !last; {
		s := standings(next().GetSnapshot())
		identities, last = identities+len(s.GetStandings()), s.GetLast()
	}
	if identities != fleet {
		t.Errorf("snapshot of %d identities, want %d", identities, fleet)
	}
	_, err = gate.Report(t.Context(), &gatev1.ReportRequest{Full: true, Events: []*gatev1.SessionEvent{
		{Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: session(7), Verdict: admit}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	// A heartbeat can come between any two.
	skip := func() *gatev1.WatchResponse {
		for {
			if m := next(); m.GetHeartbeat() == nil {
				return m
			}
		}
	}
	leases, err := lease.VerifyRenewal(key, skip().GetRenewal())
	if err != nil || len(leases) != 1 || leases[0].GetSessionId() != session(7).GetSessionId() {
		t.Fatalf("renewal: %v, %v", leases, err)
	}
	h.result(7, deny)
	change := standings(skip().GetChange())
	if len(change.GetStandings()) != 1 || change.GetStandings()[0].GetVerdict() != deny || !lease.At(change).After(lease.At(leases[0])) {
		t.Errorf("change: %v", change)
	}
	beat := next().GetHeartbeat()
	if beat == nil || lease.At(change).After(lease.At(beat)) {
		t.Errorf("heartbeat: %v", beat)
	}

	// The same gateway from another place: it goes on where it was, and the old
	// stream ends.
	again, err := gate.Watch(t.Context(), &gatev1.WatchRequest{Epoch: beat.GetEpoch(), Sequence: beat.GetSequence()})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := again.Recv(); err != nil || !m.GetStart().GetResumed() {
		t.Errorf("resumed: %v, %v", m, err)
	}
	for err = nil; err == nil; {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Aborted {
		t.Errorf("the old stream: %v", err)
	}
}

func TestAGatewayThatDoesNotReadIsSentAwayAndBeginsAgain(t *testing.T) {
	h := newHouse(t, admission.Options{LogSize: 64, Heartbeat: 10 * time.Millisecond})
	for n := range 2000 {
		h.admit(n)
	}
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := gate.Watch(ctx, &gatev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	// Nothing is read while the whole fleet flips again and again: the flow
	// control window fills, then the log runs over.
	for _, v := range []posturev1.Verdict{deny, admit, quarantine} {
		for n := range 2000 {
			h.result(n, v)
		}
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.ResourceExhausted {
		t.Fatalf("the slow stream: %v", err)
	}
	stream, err = gate.Watch(ctx, &gatev1.WatchRequest{Epoch: 1, Sequence: 2001})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || m.GetStart().GetResumed() {
		t.Errorf("after that: %v, %v", m, err)
	}
	if m, err = stream.Recv(); err != nil || m.GetSnapshot() == nil {
		t.Errorf("no snapshot: %v, %v", m, err)
	}
}

// FuzzAdmitRequest: whatever a gateway sends as a question is answered or
// refused.
func FuzzAdmitRequest(f *testing.F) {
	f.Add(encode(f, &gatev1.AdmitRequest{Session: session(1)}))
	f.Add(encode(f, &gatev1.AdmitRequest{Session: session(2)}))
	f.Add(encode(f, &gatev1.AdmitRequest{}))
	h := newHouse(f, admission.Options{})
	h.admit(1)
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	key := signer(f, h)
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &gatev1.AdmitRequest{}
		if proto.Unmarshal(b, req) != nil {
			return
		}
		got, err := gate.Admit(t.Context(), req)
		if err != nil {
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v", err)
			}
			return
		}
		l, err := lease.VerifyLease(key, got.GetLease())
		if err != nil {
			t.Fatal(err)
		}
		if known := bytesEqual(req.GetSession().GetCertificateSha256(), certificateOf(1)); (l.GetVerdict() != deny) != known {
			t.Errorf("%v is answered %v", req, l.GetVerdict())
		}
	})
}

// FuzzReportRequest: whatever a gateway reports is taken or refused, and admits
// nobody.
func FuzzReportRequest(f *testing.F) {
	up := func(n int, v posturev1.Verdict) *gatev1.SessionEvent {
		return &gatev1.SessionEvent{At: timestamppb.Now(), Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{Session: session(n), Verdict: v, Epoch: 1, Sequence: 4}}}
	}
	f.Add(encode(f, &gatev1.ReportRequest{Full: true, Events: []*gatev1.SessionEvent{up(1, admit), up(2, quarantine), up(9, admit)}}))
	f.Add(encode(f, &gatev1.ReportRequest{Events: []*gatev1.SessionEvent{
		{Event: &gatev1.SessionEvent_Down{Down: &gatev1.SessionDown{SessionId: session(1).GetSessionId()}}},
		{Event: &gatev1.SessionEvent_Roamed{Roamed: &gatev1.SessionRoamed{SessionId: session(2).GetSessionId(), TunnelAddresses: []string{"10.8.0.2"}}}},
		{Event: &gatev1.SessionEvent_CutConfirmed{CutConfirmed: &gatev1.CutConfirmed{SessionId: session(2).GetSessionId(), Epoch: 1, Sequence: 5, PacketsCutAfter: durationpb.New(1)}}},
		{Event: &gatev1.SessionEvent_Alarm{Alarm: &gatev1.GateAlarm{Kind: "not_admitted"}}},
	}}))
	h := newHouse(f, admission.Options{})
	h.admit(1)
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		req := &gatev1.ReportRequest{}
		if proto.Unmarshal(b, req) != nil {
			return
		}
		if _, err := gate.Report(t.Context(), req); err != nil && status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v", err)
		}
		for _, s := range h.desk.Sessions("") {
			if s.GetVerdict() != deny && !bytesEqual(s.GetCertificateSha256(), certificateOf(1)) {
				t.Errorf("listed: %v", s)
			}
		}
	})
}
