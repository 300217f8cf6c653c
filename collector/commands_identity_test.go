package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// bench are notebooks whose identities rest on different ground.
func bench() []*fleetv1.Explanation {
	sum := func(n byte) []byte { return []byte(strings.Repeat(string(rune(n)), 32)) }
	on := func(day int) *timestamppb.Timestamp {
		return timestamppb.New(time.Date(2026, 11, day, 8, 30, 0, 0, time.Local))
	}
	const yes, no = posturev1.Ternary_TERNARY_YES, posturev1.Ternary_TERNARY_NO
	notebook := func(number string, state fleetv1.AssetState) *fleetv1.Device {
		d := &fleetv1.Device{
			Asset: &fleetv1.Asset{AssetNumber: number, Vendor: "Lenovo", Model: "T14", Serial: "PF1", Unit: "inneres/it", State: state},
		}
		if state != fleetv1.AssetState_ASSET_STATE_EXPECTED {
			d.Id, d.EnrolledAt = "0197f3a0-0000-7000-8000-000000000001", on(1)
		}
		return d
	}
	const (
		expected  = fleetv1.AssetState_ASSET_STATE_EXPECTED
		active    = fleetv1.AssetState_ASSET_STATE_ACTIVE
		suspended = fleetv1.AssetState_ASSET_STATE_SUSPENDED
		pending   = fleetv1.AssetState_ASSET_STATE_PENDING
	)
	const fingerprint = "0123-4567-89AB-CDEF-GHJK-MNPQ"

	genuine := notebook("NB-1-genuine", active)
	genuine.Key = &fleetv1.DeviceKey{
		Protection: fleetv1.KeyProtection_KEY_PROTECTION_TPM, Fingerprint: fingerprint, AttestationKeySince: on(1),
		Manufacturer: "IFX", Model: "SLB9672", Firmware: "15.22", EndorsedBy: "Infineon OPTIGA(TM) ECC Root CA",
	}
	genuine.Asset.VpnCertificatesSha256 = [][]byte{sum('a'), sum('b')}
	genuine.VpnCertificates = []*fleetv1.VpnCertificate{{Sha256: sum('b'), ExpiresAt: on(30)}}
	genuine.Evidence = &posturev1.Evidence{SecureBoot: &posturev1.SecureBoot{Enabled: yes, SetupMode: no}}
	genuine.Attested = &posturev1.Attestation{
		Reading:  &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED},
		QuotedAt: on(21), ValidUntil: on(22), SecureBoot: no, SetupMode: no,
		Keys:        []*posturev1.BootKey{{Name: "PK", Sha256: sum('1')}, {Name: "db", Sha256: sum('2')}},
		BootLoaders: [][]byte{sum('3'), sum('4')}, Authorities: []string{"db", "SbatLevel"}, BootLoadersChangedAt: on(20),
		Pcrs: []*posturev1.Pcr{
			{Index: 0, Reference: posturev1.PcrReference_PCR_REFERENCE_APPROVED},
			{Index: 2, Reference: posturev1.PcrReference_PCR_REFERENCE_APPROVED},
			{Index: 4, Reference: posturev1.PcrReference_PCR_REFERENCE_LEARNED},
			{Index: 7, Reference: posturev1.PcrReference_PCR_REFERENCE_REJECTED},
			{Index: 11},
		},
		Warnings: []string{"UEFI Debug Mode"}, Incomplete: "the event log does not lead to PCR 11",
	}

	virtual := notebook("NB-2-virtual", active)
	virtual.Key = &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_TPM, Fingerprint: fingerprint, Manufacturer: "IBM", Model: "swtpm", Virtual: true}
	virtual.Asset.ReimageUntil = on(22)
	virtual.Attested = &posturev1.Attestation{Reading: &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_FAILED, Reason: "no quote within 2m0s"}}

	software := notebook("NB-3-software", active)
	software.Key = &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE}
	software.Asset.SoftwareKey = &fleetv1.SoftwareKeyPermission{
		Reason: "TPM is broken, replacement ordered", AllowedBy: []string{"anna", "bernd"}, AllowedAt: on(2),
		Until: timestamppb.New(time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC)),
	}
	software.Attested = &posturev1.Attestation{Reading: &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_NOT_APPLICABLE}}

	waiting := notebook("NB-4-waiting", pending)
	waiting.Id, waiting.EnrolledAt = "", nil
	waiting.Pending = &fleetv1.PendingEnrolment{
		Fingerprint: fingerprint, Manufacturer: "STM", Reason: "endorsement_unknown", RequestedAt: on(21), ExpiresAt: on(30),
		Vendor: "Dell", Model: "7450", Serial: "D2",
	}

	cloned := notebook("NB-5-cloned", suspended)
	cloned.Key = software.Key
	cloned.Asset.EndorsementKeysSha256 = [][]byte{sum('c'), sum('d'), sum('e')}
	cloned.Asset.ApprovedEndorsementKeysSha256 = [][]byte{sum('d'), sum('e')}
	cloned.Asset.BlockedEndorsementKeysSha256 = [][]byte{sum('e'), sum('f')}
	cloned.Asset.Alarm = &fleetv1.Alarm{Kind: "cloned", Detail: "two live streams answered", At: on(21)}

	allowed := notebook("NB-6-allowed", expected)
	allowed.Asset.SoftwareKey = software.Asset.SoftwareKey

	sessions := []*fleetv1.Session{
		{Gateway: "vpn1", TunnelProof: fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_PROVEN, Since: on(21)},
		{Gateway: "vpn2", TunnelProof: fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_MISSING, TunnelProofDueAt: on(22), Since: on(21)},
		{Gateway: "vpn3", TunnelProof: fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_NOT_REQUIRED, Since: on(21)},
	}
	var all []*fleetv1.Explanation
	for _, d := range []*fleetv1.Device{genuine, virtual, software, waiting, cloned, allowed, notebook("NB-7-expected", expected)} {
		e := &fleetv1.Explanation{Device: d}
		if d == genuine {
			e.Sessions = sessions
		}
		all = append(all, e)
	}
	return all
}

func TestHardwareIdentityIsShown(t *testing.T) {
	s := &terminal{t: t, dir: "DIR", operator: "OPERATOR", collector: "COLLECTOR"}
	c := &client{out: &s.screen}
	var rows [][]string
	for _, e := range bench() {
		rows = append(rows, deviceRow(e.GetDevice()))
	}
	if err := c.table("ASSET UNIT STATE VERDICT CODE ONLINE LAST-SEEN MARKS", rows); err != nil {
		t.Fatal(err)
	}
	for _, e := range bench() {
		fmt.Fprintln(&s.screen)
		if err := c.showDevice(e.GetDevice()); err != nil {
			t.Fatal(err)
		}
	}
	s.shows("identity.txt")
}

func TestHardwareIdentityIsExplainedInBothLanguages(t *testing.T) {
	for _, lang := range []string{"de", "en"} {
		s := &terminal{t: t, dir: "DIR", operator: "OPERATOR", collector: "COLLECTOR"}
		for _, e := range bench() {
			fmt.Fprintf(&s.screen, "── %s\n%s\n", e.GetDevice().GetAsset().GetAssetNumber(), identityOf(e, lang))
		}
		s.shows("identity." + lang + ".txt")
	}
}

// Nothing that is not known is shown as good.
func TestUnknownIdentityIsNotShownAsGood(t *testing.T) {
	i := identity{when: at}
	if said := i.key(&fleetv1.Device{}); !strings.Contains(said, "none yet") {
		t.Errorf("no key: %q", said)
	}
	if said := i.key(&fleetv1.Device{Key: &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE}}); !strings.Contains(said, "not hardware-bound, and not allowed") {
		t.Errorf("a software key without permission: %q", said)
	}
	if said := i.attested(nil)[0].value; said != "none" {
		t.Errorf("no attestation: %q", said)
	}
	if said := i.secureBoot(0, 0); said != "unknown" {
		t.Errorf("no reading of Secure Boot: %q", said)
	}
	if said := i.bootValues([]*posturev1.Pcr{{Index: 7}}); said != "PCR 7 unknown" {
		t.Errorf("no reference: %q", said)
	}
	if said := identityOf(&fleetv1.Explanation{}, "en"); said != "" {
		t.Errorf("a stranger: %q", said)
	}
}
