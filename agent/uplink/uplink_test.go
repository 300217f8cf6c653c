package uplink_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/agent/testcollector"
	"pfoertner/agent/uplink"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

func TestWaitsGrowToTheCapWithFullJitter(t *testing.T) {
	b := &uplink.Backoff{Base: time.Second, Cap: time.Minute}
	for bound := time.Second; ; bound = min(2*bound, time.Minute) {
		if d := b.Next(); d < 0 || d >= bound {
			t.Errorf("wait %v, bound %v", d, bound)
		}
		if bound == time.Minute {
			break
		}
	}
	var longest, sum time.Duration
	const n = 2000
	for range n {
		d := b.Next()
		longest, sum = max(longest, d), sum+d
	}
	if longest >= time.Minute || longest < 55*time.Second {
		t.Errorf("longest wait %v, cap is 1 min", longest)
	}
	if mean := sum / n; mean < 27*time.Second || mean > 33*time.Second {
		t.Errorf("mean wait %v: full jitter has 30 s", mean)
	}
	b.Reset()
	if d := b.Next(); d >= time.Second {
		t.Errorf("after a reset %v, base is 1 s", d)
	}
}

func TestRefusedWaitsAreNeverShort(t *testing.T) {
	b := uplink.Refused()
	for range 100 {
		if d := b.Next(); d < 10*time.Second || d > 11*time.Minute {
			t.Errorf("wait %v", d)
		}
	}
}

func TestZeroBackoffDoesNotWait(t *testing.T) {
	if d := new(uplink.Backoff).Next(); d != 0 {
		t.Errorf("wait %v", d)
	}
}

func TestTargetsThatCannotBeDialled(t *testing.T) {
	for _, address := range []string{"", "host", "host:", ":7601", "host:0", "host:65536", "host:http", "a:b:c"} {
		if err := (uplink.Target{Address: address}).Check(); err == nil {
			t.Errorf("%q passes", address)
		}
	}
	for _, address := range []string{"collector.example.org:7601", "192.0.2.1:1", "[2001:db8::1]:443"} {
		if err := (uplink.Target{Address: address}).Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestFingerprintsAsPeopleWriteThem(t *testing.T) {
	const plain = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	for _, ok := range []string{plain, "00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF"} {
		if b, err := uplink.ParseFingerprint(ok); err != nil || len(b) != 32 {
			t.Errorf("%q: %x, %v", ok, b, err)
		}
	}
	for _, bad := range []string{"", plain[2:], plain + "00", "zz" + plain[2:]} {
		if _, err := uplink.ParseFingerprint(bad); err == nil {
			t.Errorf("%q passes", bad)
		}
	}
}

// reach opens a session without a certificate: TLS comes first, so the error
// tells whether the server was accepted.
func reach(ctx context.Context, t *testing.T, target uplink.Target, servers *x509.CertPool) error {
	t.Helper()
	conn, err := target.Dial(servers, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := agentv1.NewEnrolmentServiceClient(conn).Enrol(ctx)
	if err == nil {
		_, err = stream.Recv()
	}
	return err
}

func TestPinnedCollectorIsAccepted(t *testing.T) {
	c := testcollector.Start(t)
	for name, pin := range map[string]uplink.Pin{
		"by fingerprint": {Fingerprint: c.Servers.Fingerprint()},
		"by file":        {File: c.Servers.File(t)},
	} {
		servers, err := pin.Servers(t.Context(), c.Target())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := reach(t.Context(), t, c.Target(), servers); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOtherAuthorityThanThePinnedOneIsRefused(t *testing.T) {
	c := testcollector.Start(t)
	other := testcollector.NewAuthority(t, "other")
	if _, err := (uplink.Pin{Fingerprint: other.Fingerprint()}).Servers(t.Context(), c.Target()); !errors.Is(err, uplink.ErrPin) {
		t.Errorf("by fingerprint: %v, want ErrPin", err)
	}
	if err := reach(t.Context(), t, c.Target(), other.Pool()); status.Code(err) != codes.Unavailable {
		t.Errorf("by file: %v", err)
	}
}

// Whoever knows the CA's certificate, which is public, can show it; without its
// key he has no certificate under it.
func TestShowingThePinnedCertificateIsNotEnough(t *testing.T) {
	genuine, impostor := testcollector.New(t), testcollector.New(t)
	impostor.Shown = genuine.Servers.Certificate
	impostor.Listen()
	servers, err := (uplink.Pin{Fingerprint: genuine.Servers.Fingerprint()}).Servers(t.Context(), impostor.Target())
	if err != nil {
		t.Fatal(err)
	}
	if err := reach(t.Context(), t, impostor.Target(), servers); status.Code(err) != codes.Unavailable {
		t.Errorf("an impostor is accepted: %v", err)
	}
}

func TestNothingIsTrustedWithoutAPin(t *testing.T) {
	c := testcollector.Start(t)
	if _, err := (uplink.Pin{}).Servers(t.Context(), c.Target()); err == nil {
		t.Error("no pin, and yet there is something to trust")
	}
	if err := reach(t.Context(), t, c.Target(), nil); status.Code(err) != codes.Unavailable {
		t.Errorf("no pool, and yet: %v", err)
	}
}

func TestPathThatTheRoutingTableStillChoosesHasNotMoved(t *testing.T) {
	c := testcollector.Start(t)
	conn, err := c.Target().Dial(c.Servers.Pool(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := agentv1.NewEnrolmentServiceClient(conn).Enrol(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	path, err := uplink.PathOf(stream.Context())
	if err != nil {
		t.Fatal(err)
	}
	if path.Moved() {
		t.Errorf("%v has moved", path)
	}
	path.Local = netip.MustParseAddr("192.0.2.99")
	if !path.Moved() {
		t.Errorf("%v has not moved", path)
	}
}
