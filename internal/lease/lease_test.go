package lease_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// keyPair is the same in every run, so that fuzz seeds stay valid.
func keyPair() (ed25519.PublicKey, *lease.Signer) {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	return key.Public().(ed25519.PublicKey), lease.NewSigner(key)
}

func newLease(n int) *gatev1.Lease {
	return &gatev1.Lease{
		Gateway:   "vpn1",
		SessionId: fmt.Sprintf("ovpn/1763720000/4711/%d", n),
		Verdict:   posturev1.Verdict_VERDICT_ADMIT,
		DeviceId:  "0b7e6c1e-7a52-4c35-9a6e-3f3f6d8f3a11",
		IssuedAt:  timestamppb.New(time.Unix(1_795_000_000, 42)),
		Ttl:       durationpb.New(15 * time.Second),
		Epoch:     3, Sequence: uint64(n + 1),
		CertificateSha256: bytes.Repeat([]byte{byte(n)}, sha256.Size),
	}
}

// signTogether signs n leases by as many callers at a time and returns them in
// the order of the leases.
func signTogether(t testing.TB, s *lease.Signer, n int) []*gatev1.SignedLease {
	t.Helper()
	signed := make([]*gatev1.SignedLease, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			var err error
			if signed[i], err = s.Sign(t.Context(), newLease(i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	return signed
}

func TestWhatIsSignedVerifies(t *testing.T) {
	pub, s := keyPair()
	for i, signed := range signTogether(t, s, 300) {
		got, err := lease.VerifyLease(pub, signed)
		if err != nil {
			t.Fatalf("lease %d of a tree of %d: %v", signed.GetLeafIndex(), signed.GetTreeSize(), err)
		}
		if !proto.Equal(got, newLease(i)) {
			t.Errorf("got %v, signed %v", got, newLease(i))
		}
	}
}

func TestCallersThatComeTogetherShareASignature(t *testing.T) {
	_, s := keyPair()
	signatures := map[string]int{}
	for _, signed := range signTogether(t, s, 1000) {
		signatures[string(signed.GetSignature())]++
	}
	if len(signatures) > 500 {
		t.Errorf("%d signatures for 1000 leases: callers that wait are not gathered", len(signatures))
	}
}

func TestALoneCallerGetsATreeOfOne(t *testing.T) {
	_, s := keyPair()
	signed, err := s.Sign(t.Context(), newLease(0))
	if err != nil {
		t.Fatal(err)
	}
	if signed.GetTreeSize() != 1 || len(signed.GetAuditPath()) != 0 || signed.GetLeafIndex() != 0 {
		t.Errorf("tree of %d, index %d, path of %d", signed.GetTreeSize(), signed.GetLeafIndex(), len(signed.GetAuditPath()))
	}
}

func TestAppendedLeaseIsTheMarshalledOne(t *testing.T) {
	pub, s := keyPair()
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			b, err := s.AppendSigned(t.Context(), nil, newLease(i))
			if err != nil {
				t.Error(err)
				return
			}
			signed := &gatev1.SignedLease{}
			if err := proto.Unmarshal(b, signed); err != nil {
				t.Error(err)
				return
			}
			if again, err := proto.Marshal(signed); err != nil || !bytes.Equal(again, b) {
				t.Errorf("appended %x, marshalled %x (%v)", b, again, err)
			}
			if got, err := lease.VerifyLease(pub, signed); err != nil || !proto.Equal(got, newLease(i)) {
				t.Errorf("%v: %v", got, err)
			}
		})
	}
	all.Wait()
}

func TestACallThatIsOverSignsNothing(t *testing.T) {
	_, s := keyPair()
	gone := errors.New("gateway went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if _, err := s.Sign(ctx, newLease(0)); !errors.Is(err, gone) {
		t.Errorf("Sign: %v", err)
	}
	if _, err := s.AppendSigned(ctx, nil, newLease(0)); !errors.Is(err, gone) {
		t.Errorf("AppendSigned: %v", err)
	}
}

func TestALeaseThatWasTouchedIsRefused(t *testing.T) {
	pub, s := keyPair()
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	standings, err := s.SignStandings(&gatev1.Standings{Gateway: "vpn1"})
	if err != nil {
		t.Fatal(err)
	}
	whole := together(t, s, 7)
	for name, change := range map[string]func(*gatev1.SignedLease) ed25519.PublicKey{
		"another lease":     func(l *gatev1.SignedLease) ed25519.PublicKey { l.Lease = whole[1].Lease; return pub },
		"no lease":          func(l *gatev1.SignedLease) ed25519.PublicKey { l.Lease = nil; return pub },
		"lease with a tail": func(l *gatev1.SignedLease) ed25519.PublicKey { l.Lease = append(l.Lease, 0); return pub },
		"wrong index":       func(l *gatev1.SignedLease) ed25519.PublicKey { l.LeafIndex ^= 1; return pub },
		"index out of tree": func(l *gatev1.SignedLease) ed25519.PublicKey { l.LeafIndex = 7; return pub },
		"smaller tree":      func(l *gatev1.SignedLease) ed25519.PublicKey { l.TreeSize--; return pub },
		"larger tree":       func(l *gatev1.SignedLease) ed25519.PublicKey { l.TreeSize++; return pub },
		"empty tree":        func(l *gatev1.SignedLease) ed25519.PublicKey { l.TreeSize = 0; return pub },
		"immense tree":      func(l *gatev1.SignedLease) ed25519.PublicKey { l.TreeSize = 1 << 63; return pub },
		"no path":           func(l *gatev1.SignedLease) ed25519.PublicKey { l.AuditPath = nil; return pub },
		"shorter path":      func(l *gatev1.SignedLease) ed25519.PublicKey { l.AuditPath = l.AuditPath[1:]; return pub },
		"longer path": func(l *gatev1.SignedLease) ed25519.PublicKey {
			l.AuditPath = append(l.AuditPath, make([]byte, 32))
			return pub
		},
		"path turned round": func(l *gatev1.SignedLease) ed25519.PublicKey { slices.Reverse(l.AuditPath); return pub },
		"truncated node":    func(l *gatev1.SignedLease) ed25519.PublicKey { l.AuditPath[1] = l.AuditPath[1][:31]; return pub },
		"changed node":      func(l *gatev1.SignedLease) ed25519.PublicKey { l.AuditPath[1][5] ^= 1; return pub },
		"another's path":    func(l *gatev1.SignedLease) ed25519.PublicKey { l.AuditPath = whole[5].AuditPath; return pub },
		"changed signature": func(l *gatev1.SignedLease) ed25519.PublicKey { l.Signature[0] ^= 1; return pub },
		"no signature":      func(l *gatev1.SignedLease) ed25519.PublicKey { l.Signature = nil; return pub },
		"another key":       func(*gatev1.SignedLease) ed25519.PublicKey { return other },
		"no key":            func(*gatev1.SignedLease) ed25519.PublicKey { return nil },
		"signature of another purpose": func(l *gatev1.SignedLease) ed25519.PublicKey {
			l.Lease, l.Signature, l.LeafIndex, l.TreeSize, l.AuditPath = standings.Standings, standings.Signature, 0, 1, nil
			return pub
		},
		"empty message": func(l *gatev1.SignedLease) ed25519.PublicKey { proto.Reset(l); return pub },
	} {
		t.Run(name, func(t *testing.T) {
			l := proto.CloneOf(whole[2])
			if l.GetTreeSize() != 7 || l.GetLeafIndex() != 2 {
				t.Fatalf("leaf %d of %d: the test wants leaf 2 of 7", l.GetLeafIndex(), l.GetTreeSize())
			}
			if got, err := lease.VerifyLease(change(l), l); err == nil || got != nil {
				t.Errorf("taken: %v", got)
			}
		})
	}
}

// together makes one tree of exactly n leases, in order: as a renewal, whose
// tree is the same.
func together(t testing.TB, s *lease.Signer, n int) []*gatev1.SignedLease {
	t.Helper()
	leases := make([]*gatev1.Lease, n)
	for i := range leases {
		leases[i] = newLease(i)
	}
	renewal, err := s.SignBatch(leases)
	if err != nil {
		t.Fatal(err)
	}
	signed := make([]*gatev1.SignedLease, n)
	for i := range signed {
		signed[i] = &gatev1.SignedLease{
			Lease: renewal.Leases[i], Signature: renewal.Signature,
			LeafIndex: uint64(i), TreeSize: uint64(n), AuditPath: auditPath(i, renewal.Leases),
		}
	}
	return signed
}

// auditPath is PATH(m, D_n) word for word as RFC 9162, 2.1.3.1 defines it.
func auditPath(m int, leaves [][]byte) [][]byte {
	if len(leaves) == 1 {
		return nil
	}
	k := split(len(leaves))
	if m < k {
		return append(auditPath(m, leaves[:k]), treeHash(leaves[k:]))
	}
	return append(auditPath(m-k, leaves[k:]), treeHash(leaves[:k]))
}

// treeHash is MTH(D_n) word for word as RFC 9162, 2.1.1 defines it.
func treeHash(leaves [][]byte) []byte {
	if len(leaves) == 1 {
		sum := sha256.Sum256(append([]byte{0}, leaves[0]...))
		return sum[:]
	}
	k := split(len(leaves))
	sum := sha256.Sum256(slices.Concat([]byte{1}, treeHash(leaves[:k]), treeHash(leaves[k:])))
	return sum[:]
}

// split is the largest power of two smaller than n.
func split(n int) int {
	k := 1
	for k*2 < n {
		k *= 2
	}
	return k
}

func TestTreesAreThoseOfRFC9162(t *testing.T) {
	pub, s := keyPair()
	for n := 1; n <= 70; n++ {
		for i, signed := range together(t, s, n) {
			if _, err := lease.VerifyLease(pub, signed); err != nil {
				t.Fatalf("leaf %d of %d: %v", i, n, err)
			}
		}
	}
}

func TestRenewalsAreTakenWholeOrNotAtAll(t *testing.T) {
	pub, s := keyPair()
	leases := []*gatev1.Lease{newLease(0), newLease(1), newLease(2), newLease(3), newLease(4)}
	renewal, err := s.SignBatch(leases)
	if err != nil {
		t.Fatal(err)
	}
	got, err := lease.VerifyRenewal(pub, renewal)
	if err != nil || !slices.EqualFunc(got, leases, func(a, b *gatev1.Lease) bool { return proto.Equal(a, b) }) {
		t.Fatalf("%v: %v", got, err)
	}
	for name, change := range map[string]func(*gatev1.LeaseRenewal){
		"one missing":   func(r *gatev1.LeaseRenewal) { r.Leases = r.Leases[:4] },
		"one twice":     func(r *gatev1.LeaseRenewal) { r.Leases = append(r.Leases, r.Leases[4]) },
		"swapped":       func(r *gatev1.LeaseRenewal) { slices.Reverse(r.Leases) },
		"changed":       func(r *gatev1.LeaseRenewal) { r.Leases[3][4] ^= 1 },
		"none":          func(r *gatev1.LeaseRenewal) { r.Leases = nil },
		"too many":      func(r *gatev1.LeaseRenewal) { r.Leases = make([][]byte, lease.MaxTree+1) },
		"cut signature": func(r *gatev1.LeaseRenewal) { r.Signature = r.Signature[:63] },
		"two as one": func(r *gatev1.LeaseRenewal) {
			r.Leases[3] = slices.Concat(r.Leases[3], r.Leases[4])
			r.Leases = r.Leases[:4]
		},
		"other's wholly": func(r *gatev1.LeaseRenewal) { r.Leases = [][]byte{r.Leases[0]} },
	} {
		t.Run(name, func(t *testing.T) {
			r := proto.CloneOf(renewal)
			change(r)
			if got, err := lease.VerifyRenewal(pub, r); err == nil || got != nil {
				t.Errorf("taken: %v", got)
			}
		})
	}
}

func TestBatchesHaveABound(t *testing.T) {
	_, s := keyPair()
	for _, n := range []int{0, lease.MaxTree + 1} {
		if _, err := s.SignBatch(make([]*gatev1.Lease, n)); err == nil {
			t.Errorf("a batch of %d was signed", n)
		}
	}
}

func TestStandingsAreTakenAsTheyWereSigned(t *testing.T) {
	pub, s := keyPair()
	want := &gatev1.Standings{Gateway: "vpn1", Epoch: 3, Sequence: 9, Last: true, Standings: []*gatev1.Standing{
		{CertificateSha256: bytes.Repeat([]byte{1}, 32), DeviceId: "d", Verdict: posturev1.Verdict_VERDICT_QUARANTINE},
	}}
	signed, err := s.SignStandings(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := lease.VerifyStandings(pub, signed); err != nil || !proto.Equal(got, want) {
		t.Fatalf("%v: %v", got, err)
	}
	signed.Standings[0] ^= 1
	if got, err := lease.VerifyStandings(pub, signed); !errors.Is(err, lease.ErrSignature) || got != nil {
		t.Errorf("changed standings: %v, %v", got, err)
	}
	// A lease never passes for standings, whatever it contains.
	l, err := s.Sign(t.Context(), newLease(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lease.VerifyStandings(pub, &gatev1.SignedStandings{Standings: l.Lease, Signature: l.Signature}); !errors.Is(err, lease.ErrSignature) {
		t.Errorf("a lease was taken for standings: %v", err)
	}
}

func TestALeaseWithoutAProperTimeToLiveIsRefused(t *testing.T) {
	pub, s := keyPair()
	for _, ttl := range []*durationpb.Duration{{Seconds: -1}, {Nanos: -1}, {Seconds: 1, Nanos: -1}, {Seconds: 1 << 60}} {
		l := newLease(0)
		l.Ttl = ttl
		signed, err := s.Sign(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lease.VerifyLease(pub, signed); err == nil {
			t.Errorf("time to live %v was taken", ttl)
		}
	}
}

func TestNewerIsByEpochThenSequence(t *testing.T) {
	order := []lease.Position{{}, {0, 1}, {1, 0}, {1, 1}, {1, 1 << 63}, {2, 0}, {1 << 63, 1}}
	for i, p := range order {
		for j, q := range order {
			if p.After(q) != (i > j) {
				t.Errorf("%v after %v: %v", p, q, p.After(q))
			}
		}
	}
	if got := lease.At(newLease(4)); got != (lease.Position{Epoch: 3, Sequence: 5}) {
		t.Errorf("position of a lease: %v", got)
	}
	if got := lease.At((*gatev1.Lease)(nil)); got != (lease.Position{}) {
		t.Errorf("position of no lease: %v", got)
	}
}

// FuzzVerifyLease: whatever arrives, what is taken is what was signed.
func FuzzVerifyLease(f *testing.F) {
	pub, s := keyPair()
	for _, n := range []int{1, 2, 3, 7} {
		for _, signed := range together(f, s, n) {
			b, err := proto.Marshal(signed)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		signed := &gatev1.SignedLease{}
		if proto.Unmarshal(b, signed) != nil {
			return
		}
		got, err := lease.VerifyLease(pub, signed)
		if err != nil {
			return
		}
		if want := newLease(int(got.GetSequence()) - 1); !proto.Equal(got, want) {
			t.Errorf("taken: %v", got)
		}
	})
}

// FuzzVerifyRenewal: as FuzzVerifyLease, for batches.
func FuzzVerifyRenewal(f *testing.F) {
	pub, s := keyPair()
	for n := 1; n < 5; n++ {
		r, err := s.SignBatch([]*gatev1.Lease{newLease(0), newLease(1), newLease(2), newLease(3)}[:n])
		if err != nil {
			f.Fatal(err)
		}
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := &gatev1.LeaseRenewal{}
		if proto.Unmarshal(b, r) != nil {
			return
		}
		leases, err := lease.VerifyRenewal(pub, r)
		if err != nil {
			return
		}
		for i, l := range leases {
			if !proto.Equal(l, newLease(i)) {
				t.Errorf("taken: %v", l)
			}
		}
	})
}

// FuzzVerifyStandings: as FuzzVerifyLease, for standings.
func FuzzVerifyStandings(f *testing.F) {
	pub, s := keyPair()
	want := &gatev1.Standings{Gateway: "vpn1", Epoch: 1, Sequence: 2, Last: true}
	signed, err := s.SignStandings(want)
	if err != nil {
		f.Fatal(err)
	}
	b, err := proto.Marshal(signed)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &gatev1.SignedStandings{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		if got, err := lease.VerifyStandings(pub, m); err == nil && !proto.Equal(got, want) {
			t.Errorf("taken: %v", got)
		}
	})
}
