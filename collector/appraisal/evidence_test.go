package appraisal

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// noon is the moment at which the tests judge.
var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(noon.Add(-d)) }

func observed() *posturev1.Reading {
	return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, Source: "test", ObservedAt: ago(time.Minute)}
}

func failed(reason string) *posturev1.Reading {
	return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_FAILED, Reason: reason}
}

func notApplicable(reason string) *posturev1.Reading {
	return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_NOT_APPLICABLE, Reason: reason}
}

func luks2() *posturev1.StorageLayer {
	return &posturev1.StorageLayer{
		Type: posturev1.LayerType_LAYER_TYPE_LUKS2, Cipher: "aes-xts-plain64", KeyBits: 512, Kdfs: []string{"argon2id"},
		Keyslots: 1, VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_HEADER, KeyFile: posturev1.KeyFile_KEY_FILE_NONE,
	}
}

func layer(t posturev1.LayerType) *posturev1.StorageLayer { return &posturev1.StorageLayer{Type: t} }

func path(layers ...*posturev1.StorageLayer) *posturev1.StoragePath {
	return &posturev1.StoragePath{Layers: append(layers,
		layer(posturev1.LayerType_LAYER_TYPE_PARTITION), layer(posturev1.LayerType_LAYER_TYPE_DISK))}
}

func volume(class posturev1.MountClass, paths ...*posturev1.StoragePath) *posturev1.Volume {
	return &posturev1.Volume{Reading: observed(), MountClass: class, Filesystem: "ext4", Paths: paths}
}

// goodEvidence is a notebook that passes every rule of the shipped policy.
func goodEvidence() *posturev1.Evidence {
	yes := posturev1.Ternary_TERNARY_YES
	no := posturev1.Ternary_TERNARY_NO
	return &posturev1.Evidence{
		Platform: &posturev1.Platform{
			Reading: observed(), OperatingSystem: posturev1.OperatingSystem_OPERATING_SYSTEM_LINUX,
			Distribution: "debian", Version: "13", Codename: "trixie", KernelRelease: "6.12.48+deb13-amd64",
			Architecture: "amd64", FormFactor: posturev1.FormFactor_FORM_FACTOR_NOTEBOOK, AgentVersion: "1.0.0",
		},
		Volumes: &posturev1.Volumes{Reading: observed(), Volumes: []*posturev1.Volume{
			volume(posturev1.MountClass_MOUNT_CLASS_ROOT, path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR), luks2())),
			volume(posturev1.MountClass_MOUNT_CLASS_HOME, path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR), luks2())),
			volume(posturev1.MountClass_MOUNT_CLASS_SWAP, path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR), luks2())),
			volume(posturev1.MountClass_MOUNT_CLASS_BOOT, path()),
		}},
		Patch: &posturev1.Patch{
			Reading: observed(), PackageSystem: "apt", InstalledPackages: 1903, PendingSecurity: 2,
			Pending: []*posturev1.PendingUpdate{
				{Package: "openssl", Architecture: "amd64", InstalledVersion: "3.5.1-1", FixedVersion: "3.5.1-1+deb13u1", FirstSeenAt: ago(3 * day), Origin: "Debian-Security"},
				{Package: "libssl3t64", Architecture: "amd64", InstalledVersion: "3.5.1-1", FixedVersion: "3.5.1-1+deb13u1", FirstSeenAt: ago(2 * day), Origin: "Debian-Security"},
			},
			Feeds: []*posturev1.Feed{
				{Origin: "Debian", Codename: "trixie", ReleasedAt: ago(20 * day), FetchedAt: ago(time.Hour)},
				{Origin: "Debian-Security", Codename: "trixie-security", Security: true, ReleasedAt: ago(day), ValidUntil: ago(-6 * day), FetchedAt: ago(time.Hour)},
			},
			SecurityFeedConfigured: yes,
			Kernel:                 &posturev1.Kernel{Running: "6.12.48+deb13-amd64", NewestInstalled: "6.12.48+deb13-amd64"},
			RebootPending:          &posturev1.RebootPending{Pending: no},
			KernelReading:          observed(),
		},
		Vpn: &posturev1.Vpn{
			Reading: observed(), RoutingReading: observed(),
			Clients: []*posturev1.VpnClient{{
				Reading: observed(), Product: "openvpn", Version: "2.6.14", Installed: yes, ServiceRunning: yes,
				InterfaceOperational: yes, SessionAlive: yes,
				ScopeV4: posturev1.RoutingScope_ROUTING_SCOPE_SPLIT, ScopeV6: posturev1.RoutingScope_ROUTING_SCOPE_NONE,
			}},
			ScopeV4: posturev1.RoutingScope_ROUTING_SCOPE_SPLIT, ScopeV6: posturev1.RoutingScope_ROUTING_SCOPE_NONE,
		},
		Tpm:        &posturev1.Tpm{Reading: observed(), Present: yes, Version: "2.0"},
		SecureBoot: &posturev1.SecureBoot{Reading: observed(), Enabled: yes, SetupMode: no},
		Firewall: &posturev1.Firewall{Reading: observed(), Engines: []*posturev1.FirewallEngine{
			{Engine: "nftables", ServiceActive: yes, RulesLoaded: yes, InboundDefaultDrop: yes},
		}},
		Antivirus:  &posturev1.Antivirus{Reading: notApplicable("no antivirus is known here")},
		ScreenLock: &posturev1.ScreenLock{Reading: observed(), Enforced: yes, IdleSeconds: 600},
	}
}

// goodAttestation is what a TPM vouches for that passes every rule of the
// shipped policy: the quote is of an hour ago.
func goodAttestation() *posturev1.Attestation {
	a := &posturev1.Attestation{
		Reading: &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED}, QuotedAt: ago(time.Hour), ValidUntil: ago(-23 * time.Hour),
		SecureBoot: posturev1.Ternary_TERNARY_YES, SetupMode: posturev1.Ternary_TERNARY_NO,
		BootLoaders: [][]byte{sum("shim"), sum("grub")}, Authorities: []string{"db", "MokList"}, TpmFirmware: 7,
	}
	for _, name := range []string{"PK", "KEK", "db", "dbx"} {
		a.Keys = append(a.Keys, &posturev1.BootKey{Name: name, Sha256: sum(name)})
	}
	for _, i := range []uint32{0, 2, 4, 7, 11, 12, 13, 14} {
		reference := posturev1.PcrReference_PCR_REFERENCE_APPROVED
		if i == 4 || i > 7 {
			reference = posturev1.PcrReference_PCR_REFERENCE_LEARNED
		}
		a.Pcrs = append(a.Pcrs, &posturev1.Pcr{Index: i, Sha256: sum("PCR " + strconv.Itoa(int(i))), Reference: reference})
	}
	return a
}

func sum(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// activeDevice is a notebook whose key is in a TPM.
func activeDevice() *fleetv1.Device {
	return &fleetv1.Device{
		Key: &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_TPM},
		Id:  "6f1c2f3e-6a80-4b7e-9d0e-0c3a5f8e1b11",
		Asset: &fleetv1.Asset{
			AssetNumber: "NB-0042", Vendor: "Lenovo", Model: "ThinkPad T14", Unit: "inneres/polizei/it",
			State: fleetv1.AssetState_ASSET_STATE_ACTIVE,
		},
	}
}

func mustCompile(t testing.TB, yaml string) *Policy {
	t.Helper()
	p, errs := Compile([]byte(yaml))
	for _, e := range errs {
		t.Errorf("line %d, column %d, rule %q: %s", e.GetLine(), e.GetColumn(), e.GetRule(), e.GetMessage())
	}
	if p == nil {
		t.FailNow()
	}
	return p
}

func shipped(t testing.TB) *Policy { return mustCompile(t, string(DefaultPolicy())) }

func references(t testing.TB) *References {
	t.Helper()
	r, err := DefaultReferences()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// inputOf is evidence of a minute ago from an active device that its TPM
// vouches for.
func inputOf(t testing.TB, p *Policy, ev *posturev1.Evidence) Input {
	return Input{
		Policy: p, References: references(t), Device: activeDevice(), Evidence: ev, Attested: goodAttestation(),
		CollectedAt: noon.Add(-time.Minute), Now: noon,
	}
}

func findingOf(t testing.TB, res *posturev1.Result, rule string) *posturev1.Finding {
	t.Helper()
	for _, f := range res.GetFindings() {
		if f.GetRule() == rule {
			return f
		}
	}
	t.Fatalf("no finding of rule %q", rule)
	return nil
}

func with(change func(*posturev1.Evidence)) *posturev1.Evidence {
	ev := goodEvidence()
	change(ev)
	return ev
}

const (
	admit      = posturev1.Verdict_VERDICT_ADMIT
	quarantine = posturev1.Verdict_VERDICT_QUARANTINE
	deny       = posturev1.Verdict_VERDICT_DENY

	passes       = posturev1.Outcome_OUTCOME_PASS
	fails        = posturev1.Outcome_OUTCOME_FAIL
	isUnknown    = posturev1.Outcome_OUTCOME_UNKNOWN
	doesNotApply = posturev1.Outcome_OUTCOME_NOT_APPLICABLE
)

// onePolicy is a policy of one rule, for tests of what all rules share. more is
// put among the policy's keys, extra among the rule's.
func onePolicy(t testing.TB, require, extra, more string) *Policy {
	indent := func(s string, by string) string { return strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n"+by) }
	return mustCompile(t, "name: one\nfreshness: {max_age: 45m}\n"+more+`
rules:
  - id: the-rule
    title: {de: Titel, en: Title}
    remedy: {de: Abhilfe, en: Remedy}
    on_fail: deny
    require: |
      `+indent(require, "      ")+"\n    "+indent(extra, "    ")+"\n")
}

func withDevice(in Input, change func(*fleetv1.Device)) Input {
	in.Device = proto.CloneOf(in.Device)
	change(in.Device)
	return in
}

func protoName(s string) protoreflect.Name { return protoreflect.Name(s) }

func protoMessage(m proto.Message) protoreflect.Value {
	return protoreflect.ValueOfMessage(m.ProtoReflect())
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }
