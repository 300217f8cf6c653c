package store

import (
	"bytes"
	"errors"
	"io/fs"
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	"pfoertner/internal/attest"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// The behaviours of TestConformance that concern TPMs and what operators decide.

func allTPMs(t *testing.T, s *Store) (all []attestation.Known) {
	t.Helper()
	check(t, s.EachTPM(t.Context(), func(k attestation.Known) error {
		all = append(all, k)
		return nil
	}))
	return all
}

// sameTPM compares what is known of two TPMs.
func sameTPM(a, b attestation.Known) bool {
	return a.DeviceID == b.DeviceID && bytes.Equal(a.EndorsementKey, b.EndorsementKey) && bytes.Equal(a.AttestationKey, b.AttestationKey) &&
		a.Since.Equal(b.Since) && a.Clock == b.Clock && bytes.Equal(a.PreviousAttestationKey, b.PreviousAttestationKey) &&
		a.PreviousClock == b.PreviousClock && a.Virtual == b.Virtual && proto.Equal(a.Attestation, b.Attestation) && a.Failure == b.Failure
}

func wantTPMs(t *testing.T, s *Store, want ...attestation.Known) {
	t.Helper()
	if got := allTPMs(t, s); !slices.EqualFunc(got, want, sameTPM) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func known(id string) attestation.Known {
	return attestation.Known{DeviceID: id, EndorsementKey: []byte("ek " + id), AttestationKey: []byte("ak " + id), Since: morning}
}

// knows makes TPMs known, as enrolments do.
func knows(t *testing.T, s *Store, all ...attestation.Known) {
	t.Helper()
	for _, d := range allDevices(t, s) {
		for _, k := range all {
			if d.GetId() == k.DeviceID {
				check(t, s.SaveEnrolment(t.Context(), d, []byte("key"), "01", morning, &k))
			}
		}
	}
}

func tpms(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 3)
	plain, full := known(deviceID(0)), known(deviceID(1))
	knows(t, s, full, plain)
	was := full.AttestationKey
	full.AttestationKey = []byte("new")
	full.Clock = attest.Clock{Milliseconds: math.MaxUint64, ResetCount: math.MaxUint32, RestartCount: 7, Safe: true, Firmware: math.MaxUint64 - 1}
	full.PreviousAttestationKey, full.PreviousClock = was, attest.Clock{Milliseconds: 5, Firmware: 1 << 63}
	full.Virtual, full.Failure = true, "no answer"
	full.Attestation = &posturev1.Attestation{QuotedAt: timestamppb.New(morning), BootLoaders: [][]byte{{1, 2}}}
	check(t, s.SaveTPM(ctx, was, full))
	wantTPMs(t, s, plain, full)
	check(t, s.Close())
	s = open()
	wantTPMs(t, s, plain, full)
	full.PreviousAttestationKey, full.PreviousClock = nil, attest.Clock{}
	check(t, s.SaveTPM(ctx, full.AttestationKey, full))
	wantTPMs(t, s, plain, full)
}

// What was known before an enrolment or a dismissal is not brought back by a
// statement that is stored after it.
func overtakenTPMs(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	id := deviceID(0)
	before, other := known(id), known(deviceID(1))
	wants(t, s.SaveTPM(ctx, before.AttestationKey, before), fs.ErrNotExist)
	wants(t, s.SaveTPM(ctx, nil, before), fs.ErrNotExist)
	wantTPMs(t, s)
	knows(t, s, before, other)
	after := before
	after.AttestationKey = []byte("anew")
	knows(t, s, after)
	before.Clock.Milliseconds = 1
	wants(t, s.SaveTPM(ctx, before.AttestationKey, before), fs.ErrNotExist)
	wantTPMs(t, s, after, other)
	check(t, s.SaveDecision(ctx, nil, []string{id}, nil))
	wants(t, s.SaveTPM(ctx, after.AttestationKey, after), fs.ErrNotExist)
	wantTPMs(t, s, other)
}

func enrolments(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	id, end := deviceID(1), morning.Add(72*time.Hour)
	check(t, s.SaveCredential(ctx, id, []byte("one"), "01", morning))
	check(t, s.RenewCredential(ctx, id, []byte("one"), []byte("two"), "02", morning))
	d, tpm := device(1), known(id)
	d.Key = &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_TPM, Fingerprint: "AAAA"}
	d.Pending = &fleetv1.PendingEnrolment{Fingerprint: "BBBB"}
	d.VpnCertificates = []*fleetv1.VpnCertificate{{Serial: "09"}}
	check(t, s.SaveEnrolment(ctx, d, []byte("three"), "03", end, &tpm, audit.Record{At: morning, Kind: "device.enrolled"}))
	wantKeys(t, s, id, "three03", "")
	wantTPMs(t, s, tpm)
	if got := allDevices(t, s)[1]; !proto.Equal(got, d) {
		t.Errorf("got %v, want %v", got, d)
	}

	// A part that is refused takes the rest with it.
	d.Asset.VpnCertificatesSha256 = [][]byte{bytes.Repeat([]byte{1}, 32)}
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{d}))
	other := device(0)
	other.Asset.Model, other.Asset.VpnCertificatesSha256 = "changed", d.Asset.VpnCertificatesSha256
	wants(t, s.SaveEnrolment(ctx, other, []byte("four"), "04", end, &tpm, audit.Record{At: morning, Kind: "device.enrolled"}), fs.ErrExist)
	other.Asset.VpnCertificatesSha256 = nil
	stray := known("unknown")
	wants(t, s.SaveEnrolment(ctx, other, []byte("four"), "04", end, &stray, audit.Record{At: morning, Kind: "device.enrolled"}), fs.ErrNotExist)
	wantKeys(t, s, deviceID(0), "", "")
	if got := allDevices(t, s)[0]; got.GetAsset().GetModel() == "changed" {
		t.Error("a part of a refused enrolment is there")
	}
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 1 {
		t.Errorf("%d audit records, want 1", head.Sequence)
	}

	// A software key leaves nothing of the TPM.
	check(t, s.SaveEnrolment(ctx, d, []byte("five"), "05", end, nil))
	wantTPMs(t, s)
	wantKeys(t, s, id, "five05", "")
}

func dismissals(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 2)
	for i := range 2 {
		tpm := known(deviceID(i))
		check(t, s.SaveEnrolment(ctx, device(i), []byte("key"), "01", morning, &tpm))
	}
	p := &fleetv1.Proposal{Id: "p", AssetNumber: assetNumber(1)}
	check(t, s.SaveProposal(ctx, p))
	later := morning.Add(time.Hour)
	for i := range 2 {
		check(t, s.SaveToken(ctx, []byte{byte(i)}, assetNumber(i), later))
	}
	d := device(1)
	d.Asset.State = fleetv1.AssetState_ASSET_STATE_EXPECTED
	twice := device(5)
	twice.Id = deviceID(0)
	wants(t, s.SaveDecision(ctx, []*fleetv1.Device{d, twice}, []string{d.GetId()}, []string{"p"}), fs.ErrExist)
	wantKeys(t, s, d.GetId(), "key01", "")
	wantProposals(t, s, p)

	check(t, s.SaveDecision(ctx, []*fleetv1.Device{d}, []string{d.GetId(), "unknown"}, []string{"p", "unknown"}, audit.Record{At: morning, Kind: "device.resumed"}))
	wantKeys(t, s, d.GetId(), "", "")
	wantKeys(t, s, deviceID(0), "key01", "")
	wantTPMs(t, s, known(deviceID(0)))
	wantProposals(t, s)
	if asset, err := s.UseToken(ctx, []byte{1}, morning); asset != assetNumber(1) || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("its token: %q, %v", asset, err)
	}
	if asset, err := s.UseToken(ctx, []byte{0}, morning); asset != assetNumber(0) || err != nil {
		t.Errorf("the token of another: %q, %v", asset, err)
	}
	if got := allDevices(t, s)[1]; got.GetId() != d.GetId() || got.GetAsset().GetState() != d.GetAsset().GetState() {
		t.Errorf("got %v", got)
	}
	// A new device id leaves nothing of the old one's TPM.
	again := device(0)
	again.Id = deviceID(9)
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{again}))
	wantTPMs(t, s)
}

func endorsementKeys(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	one, two := device(1), device(2)
	one.Asset.EndorsementKeysSha256 = [][]byte{bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)}
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{one, two}))
	two.Asset.EndorsementKeysSha256 = [][]byte{bytes.Repeat([]byte{2}, 32)}
	wants(t, s.SaveDevices(ctx, []*fleetv1.Device{two}), fs.ErrExist)
	// Also after that is retired.
	one.Asset.State = fleetv1.AssetState_ASSET_STATE_RETIRED
	check(t, s.SaveDevices(ctx, []*fleetv1.Device{one}))
	check(t, s.Close())
	s = open()
	wants(t, s.SaveDevices(ctx, []*fleetv1.Device{two}), fs.ErrExist)
	wants(t, s.SaveEnrolment(ctx, two, []byte("key"), "01", morning, nil), fs.ErrExist)
	if got := allDevices(t, s)[0]; !proto.Equal(got, one) {
		t.Errorf("got %v, want %v", got, one)
	}
}

func wantProposals(t *testing.T, s *Store, want ...*fleetv1.Proposal) {
	t.Helper()
	var got []*fleetv1.Proposal
	check(t, s.EachProposal(t.Context(), func(p *fleetv1.Proposal) error {
		got = append(got, p)
		return nil
	}))
	slices.SortFunc(got, func(a, b *fleetv1.Proposal) int { return bytes.Compare([]byte(a.GetId()), []byte(b.GetId())) })
	if !slices.EqualFunc(got, want, func(a, b *fleetv1.Proposal) bool { return proto.Equal(a, b) }) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func proposals(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	enrol(t, s, 1)
	one := &fleetv1.Proposal{Id: "1", AssetNumber: assetNumber(0), ProposedBy: "anna", Order: &fleetv1.Order{Device: assetNumber(0), Reason: "lost"}}
	two := &fleetv1.Proposal{Id: "2", AssetNumber: assetNumber(0), ExpiresAt: timestamppb.New(morning)}
	check(t, s.SaveProposal(ctx, one, audit.Record{At: morning, Kind: "order.proposed"}))
	check(t, s.SaveProposal(ctx, two))
	wants(t, s.SaveProposal(ctx, one), fs.ErrExist)
	wants(t, s.SaveProposal(ctx, &fleetv1.Proposal{Id: "3", AssetNumber: "HB-NONE"}), fs.ErrNotExist)
	check(t, s.Close())
	s = open()
	wantProposals(t, s, one, two)
	check(t, s.SaveDecision(ctx, nil, nil, []string{"1"}, audit.Record{At: morning, Kind: "order.withdrawn"}))
	wantProposals(t, s, two)
	if head := must(s.AuditHead(ctx))(t); head.Sequence != 2 {
		t.Errorf("%d audit records, want 2", head.Sequence)
	}
}

func bootReferences(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	reference := func(model string, pcr uint32, value byte, devices uint32) *fleetv1.BootReference {
		return &fleetv1.BootReference{Vendor: "Lenovo", Model: model, Pcr: pcr, Sha256: bytes.Repeat([]byte{value}, 32), Devices: devices}
	}
	for _, r := range []*fleetv1.BootReference{
		reference("T14", 7, 1, 1), reference("T14", 7, 2, 1), reference("T14", 4, 1, 1), reference("T15", 7, 1, 1), reference("T14", 7, 1, 2),
	} {
		check(t, s.SaveBootReference(ctx, r, audit.Record{At: morning, Kind: "boot_reference.learned"}))
	}
	check(t, s.Close())
	s = open()
	var got []*fleetv1.BootReference
	check(t, s.EachBootReference(ctx, func(r *fleetv1.BootReference) error {
		got = append(got, r)
		return nil
	}))
	want := []*fleetv1.BootReference{reference("T14", 7, 1, 2), reference("T14", 7, 2, 1), reference("T14", 4, 1, 1), reference("T15", 7, 1, 1)}
	if !slices.EqualFunc(got, want, func(a, b *fleetv1.BootReference) bool { return proto.Equal(a, b) }) {
		t.Errorf("got %v, want %v", got, want)
	}
	stop := errors.New("enough")
	wants(t, s.EachBootReference(ctx, func(*fleetv1.BootReference) error { return stop }), stop)
}

func authorities(t *testing.T, open func() *Store) {
	s, ctx := open(), t.Context()
	if err := s.SaveAuthorities(ctx, []byte("pem"), "anna"); err == nil {
		t.Error("saved without an audit record")
	}
	check(t, s.SaveAuthorities(ctx, []byte("one"), "anna", audit.Record{At: morning, Kind: "endorsement.added"}))
	check(t, s.SaveAuthorities(ctx, []byte("two"), "bert", audit.Record{At: morning.Add(time.Hour), Kind: "endorsement.added"}))
	check(t, s.Close())
	s = open()
	var got []string
	check(t, s.EachAuthorities(ctx, func(pem []byte, actor string, at time.Time) error {
		got = append(got, string(pem)+" "+actor+" "+at.Sub(morning).String())
		return nil
	}))
	if want := []string{"one anna 0s", "two bert 1h0m0s"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
