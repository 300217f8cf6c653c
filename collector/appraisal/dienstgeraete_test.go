package appraisal

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	ternaryYes     = posturev1.Ternary_TERNARY_YES
	ternaryNo      = posturev1.Ternary_TERNARY_NO
	ternaryUnknown = posturev1.Ternary_TERNARY_UNSPECIFIED
)

func TestACompliantNotebookIsAdmittedByTheShippedPolicy(t *testing.T) {
	res := Appraise(inputOf(t, shipped(t), goodEvidence()))
	inapplicable := []string{"no-split-tunnel", "antivirus"} // and all that is for Windows
	for _, f := range res.GetFindings() {
		if f.GetOutcome() != passes && !slices.Contains(inapplicable, f.GetRule()) && !strings.HasPrefix(f.GetRule(), "windows-") {
			t.Errorf("%s: %v: %s", f.GetRule(), f.GetOutcome(), f.GetReason().GetEn())
		}
	}
	if res.GetVerdict() != admit || res.GetEnforcedVerdict() != admit || res.GetCode() != "" {
		t.Errorf("verdict %v, enforced %v, code %q", res.GetVerdict(), res.GetEnforcedVerdict(), res.GetCode())
	}
}

// Each case is evidence that some product, or a first draft of ours, judged
// wrongly.
func TestTheShippedPolicy(t *testing.T) {
	fullTunnel := strings.Replace(string(DefaultPolicy()), "require_full_tunnel: false", "require_full_tunnel: true", 1)
	policies := map[string]*Policy{"": shipped(t), "full tunnel": mustCompile(t, fullTunnel)}
	tests := []struct {
		name    string
		policy  string
		rule    string
		change  func(*posturev1.Evidence)
		outcome posturev1.Outcome
		verdict posturev1.Verdict
		reason  string // part of the English reason
	}{
		// Encryption.
		{"one plain member of a volume group", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			root := ev.Volumes.Volumes[0]
			root.Paths = append(root.Paths, path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR)))
		}, fails, deny, "system volume"},
		{"swap left plain", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[2].Paths = []*posturev1.StoragePath{path()}
		}, fails, deny, "swap space"},
		{"a data disk beside the encrypted system", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes = append(ev.Volumes.Volumes, volume(posturev1.MountClass_MOUNT_CLASS_DATA, path()))
		}, fails, deny, "data volume"},
		{"null cipher behind a LUKS2 name", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[0].Paths[0].Layers[1].Cipher = "cipher_null-ecb"
		}, fails, deny, "null cipher"},
		{"key file on the plain boot partition", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[0].Paths[0].Layers[1].KeyFile = posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT
		}, fails, deny, "its key lies beside it in clear"},
		{"dm-integrity taken for encryption", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[0].Paths[0].Layers[1] = layer(posturev1.LayerType_LAYER_TYPE_INTEGRITY)
		}, fails, deny, "protected against change only"},
		{"home folders encrypted, the rest plain", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[0].Paths = []*posturev1.StoragePath{path()}
			ev.Volumes.Volumes[0].FileEncryption = []*posturev1.FileEncryption{{System: "ecryptfs", HomeOnly: true}}
		}, fails, deny, "only home folders"},
		{"ZFS native encryption missed", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			root := ev.Volumes.Volumes[0]
			root.Filesystem, root.Paths = "zfs", []*posturev1.StoragePath{path(layer(posturev1.LayerType_LAYER_TYPE_ZFS))}
			root.FileEncryption = []*posturev1.FileEncryption{{System: "zfs", Cipher: "aes-256-gcm"}}
		}, passes, admit, ""},
		{"OPAL missed", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			l := ev.Volumes.Volumes[0].Paths[0].Layers[1]
			l.Type, l.Cipher = posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL, ""
		}, passes, admit, ""},
		{"judged while encrypting", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[0].Paths[0].Layers[1].Requirements = []string{"online-reencrypt-v2"}
		}, isUnknown, deny, "being encrypted"},
		{"detached header read as off", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			l := ev.Volumes.Volumes[0].Paths[0].Layers[1]
			l.VerifiedBy, l.Cipher, l.Reason = posturev1.VerifiedBy_VERIFIED_BY_NONE, "", "no LUKS magic on the device"
		}, isUnknown, deny, "no LUKS magic"},
		{"one volume unreadable", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes[1].Reading = failed("permission denied")
		}, isUnknown, deny, "permission denied"},
		{"needs root, so reads as unencrypted", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes = &posturev1.Volumes{Reading: failed("not running as root")}
		}, isUnknown, deny, "not running as root"},
		{"volume table empty", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes = nil
		}, isUnknown, deny, "does not list its system volume"},
		{"volumes not applicable", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes = &posturev1.Volumes{Reading: notApplicable("container")}
		}, isUnknown, deny, "not applicable"},
		{"volumes section left out", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes = nil
		}, isUnknown, deny, "not reported"},
		{"boot and a plain USB stick do not count", "", "disks-encrypted", func(ev *posturev1.Evidence) {
			ev.Volumes.Volumes = append(ev.Volumes.Volumes, volume(posturev1.MountClass_MOUNT_CLASS_REMOVABLE, path()))
		}, passes, admit, ""},

		// Patch level.
		{"fourteen days are still in time", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.Pending[0].FirstSeenAt = ago(15*day - time.Second)
		}, passes, admit, ""},
		{"fifteen days are late", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.Pending[0].FirstSeenAt = ago(15 * day)
		}, fails, quarantine, "for 15 days"},
		{"a held package counts as well", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.Pending[1].FirstSeenAt, ev.Patch.Pending[1].Held, ev.Patch.Held = ago(30*day), true, 1
		}, fails, quarantine, "for 30 days"},
		{"both tables empty despite pending", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.InstalledPackages, ev.Patch.Pending, ev.Patch.PendingSecurity = 0, nil, 0
		}, isUnknown, quarantine, "not a single installed package"},
		{"the list cut short", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.PendingSecurity = 1200
		}, isUnknown, quarantine, "Of 1200 pending security updates 2 are listed"},
		{"no first-seen date", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.Pending[0].FirstSeenAt = nil
		}, isUnknown, quarantine, "unknown since when"},
		{"clock set ahead to look patched", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.Pending[0].FirstSeenAt = ago(-40 * day)
		}, isUnknown, quarantine, "clock"},
		{"unsupported package system", "", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch = &posturev1.Patch{Reading: failed("pacman is not supported")}
		}, isUnknown, quarantine, "pacman is not supported"},
		{"warned before it is too late", "", "security-updates-soon", func(ev *posturev1.Evidence) {
			ev.Patch.Pending[0].FirstSeenAt = ago(8 * day)
		}, fails, admit, "access ends after 14 days"},
		{"no security source is no clean bill", "", "security-feed-configured", func(ev *posturev1.Evidence) {
			ev.Patch.SecurityFeedConfigured = ternaryNo
			ev.Patch.Pending, ev.Patch.PendingSecurity, ev.Patch.Feeds = nil, 0, ev.Patch.Feeds[:1]
		}, fails, quarantine, "No source"},
		{"not said whether there is a source", "", "security-feed-configured", func(ev *posturev1.Evidence) {
			ev.Patch.SecurityFeedConfigured = ternaryUnknown
		}, isUnknown, quarantine, "unknown"},
		{"lists never fetched again", "", "security-feed-fresh", func(ev *posturev1.Evidence) {
			ev.Patch.Feeds[1].FetchedAt = ago(8 * day)
		}, fails, quarantine, "more than 7 days"},
		{"frozen mirror past Valid-Until", "", "security-feed-fresh", func(ev *posturev1.Evidence) {
			ev.Patch.Feeds[1].ReleasedAt, ev.Patch.Feeds[1].ValidUntil = ago(9*day), ago(2*day)
		}, fails, quarantine, "out of date"},
		{"frozen mirror without Valid-Until", "", "security-feed-fresh", func(ev *posturev1.Evidence) {
			ev.Patch.Feeds[1].ReleasedAt, ev.Patch.Feeds[1].ValidUntil = ago(40*day), nil
		}, fails, quarantine, "out of date"},
		{"source configured, none listed", "", "security-feed-fresh", func(ev *posturev1.Evidence) {
			ev.Patch.Feeds = ev.Patch.Feeds[:1]
		}, isUnknown, quarantine, "lists no source"},
		{"installed but not in use", "", "restart-pending", func(ev *posturev1.Evidence) {
			ev.Patch.RebootPending.Pending = ternaryYes
		}, fails, admit, "after a restart"},
		{"absence of a file proves no restart", "", "restart-pending", func(ev *posturev1.Evidence) {
			ev.Patch.KernelReading = failed("no installed kernel found")
		}, isUnknown, admit, "no installed kernel found"},

		// Operating system.
		{"end of life reached", "", "system-supported", func(ev *posturev1.Evidence) {
			ev.Platform.Version = "11"
		}, fails, deny, "debian 11"},
		{"long-term support counts", "", "system-supported", func(ev *posturev1.Evidence) {
			ev.Platform.Version = "12"
		}, passes, admit, ""},
		{"paid support that nobody proved", "", "system-supported", func(ev *posturev1.Evidence) {
			ev.Platform.Distribution, ev.Platform.Version = "ubuntu", "20.04"
		}, fails, deny, "ubuntu 20.04"},
		{"unknown system let in", "", "system-supported", func(ev *posturev1.Evidence) {
			ev.Platform.Distribution, ev.Platform.Version = "arch", ""
		}, isUnknown, deny, "No end of support is on record"},

		// VPN.
		{"no VPN client at all", "", "vpn-client-approved", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients = nil
		}, fails, deny, "No approved VPN client"},
		{"only a foreign client", "", "vpn-client-approved", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].Product = "hotel-vpn"
		}, fails, deny, "No approved VPN client"},
		{"leftovers of a removed client", "", "vpn-client-approved", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].Installed = ternaryNo
		}, fails, deny, "No approved VPN client"},
		{"client that could not be read", "", "vpn-client-approved", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].Installed, ev.Vpn.Clients[0].Reading = ternaryUnknown, failed("D-Bus: no answer")
		}, isUnknown, deny, "unknown"},
		{"outdated client", "", "vpn-client-current", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].Version = "2.4.12"
		}, fails, admit, "outdated"},
		{"2.10 is newer than 2.5", "", "vpn-client-current", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].Version = "2.10.0-rc1"
		}, passes, admit, ""},
		{"split tunnel where it is not forbidden", "", "no-split-tunnel", func(*posturev1.Evidence) {}, doesNotApply, admit, ""},
		{"routes unreadable where nobody asks", "", "no-split-tunnel", func(ev *posturev1.Evidence) {
			ev.Vpn.RoutingReading = failed("netlink: permission denied")
		}, doesNotApply, admit, ""},
		{"split tunnel", "full tunnel", "no-split-tunnel", func(*posturev1.Evidence) {}, fails, deny, "past the VPN"},
		{"v6 leak beside a full v4 tunnel", "full tunnel", "no-split-tunnel", func(ev *posturev1.Evidence) {
			ev.Vpn.ScopeV4 = posturev1.RoutingScope_ROUTING_SCOPE_FULL
		}, fails, deny, "past the VPN"},
		{"full tunnel on a network without v6", "full tunnel", "no-split-tunnel", func(ev *posturev1.Evidence) {
			ev.Vpn.ScopeV4, ev.Vpn.ScopeV6 = posturev1.RoutingScope_ROUTING_SCOPE_FULL, posturev1.RoutingScope_ROUTING_SCOPE_NO_CONNECTIVITY
		}, passes, admit, ""},
		{"no session, no split tunnel", "full tunnel", "no-split-tunnel", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].SessionAlive = ternaryNo
		}, doesNotApply, admit, ""},
		{"not known whether a session is alive", "full tunnel", "no-split-tunnel", func(ev *posturev1.Evidence) {
			ev.Vpn.Clients[0].SessionAlive = ternaryUnknown
		}, isUnknown, deny, "unknown"},
		{"routes unreadable", "full tunnel", "no-split-tunnel", func(ev *posturev1.Evidence) {
			ev.Vpn.RoutingReading = failed("netlink: permission denied")
		}, isUnknown, deny, "netlink"},

		// Warnings.
		{"Secure Boot off", "", "secure-boot", func(ev *posturev1.Evidence) { ev.SecureBoot.Enabled = ternaryNo }, fails, quarantine, "switched off"},
		{"Secure Boot in setup mode", "", "secure-boot", func(ev *posturev1.Evidence) { ev.SecureBoot.SetupMode = ternaryYes }, fails, quarantine, "not set up"},
		{"legacy BIOS", "", "secure-boot", func(ev *posturev1.Evidence) {
			ev.SecureBoot = &posturev1.SecureBoot{Reading: notApplicable("legacy BIOS")}
		}, doesNotApply, admit, ""},
		{"firewall service active, no rules loaded", "", "firewall", func(ev *posturev1.Evidence) {
			ev.Firewall.Engines[0].RulesLoaded = ternaryNo
		}, fails, admit, "not active"},
		{"no firewall engine at all", "", "firewall", func(ev *posturev1.Evidence) { ev.Firewall.Engines = nil }, fails, admit, "not active"},
		{"firewall unreadable", "", "firewall", func(ev *posturev1.Evidence) {
			ev.Firewall = &posturev1.Firewall{Reading: failed("nft: operation not permitted")}
		}, isUnknown, admit, "operation not permitted"},
		{"TPM 1.2", "", "tpm", func(ev *posturev1.Evidence) { ev.Tpm.Version = "1.2" }, fails, admit, "no security chip"},
		{"TPM unreadable", "", "tpm", func(ev *posturev1.Evidence) { ev.Tpm.Reading = failed("sysfs: no such file") }, isUnknown, admit, "sysfs"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := inputOf(t, policies[tt.policy], with(tt.change))
			in.Attested = attestationBeside(in.Evidence, noon)
			res := Appraise(in)
			f := findingOf(t, res, tt.rule)
			if f.GetOutcome() != tt.outcome || !strings.Contains(f.GetReason().GetEn(), tt.reason) {
				t.Errorf("%s: %v (%s), want %v (%s)", tt.rule, f.GetOutcome(), f.GetReason().GetEn(), tt.outcome, tt.reason)
			}
			if res.GetVerdict() != tt.verdict {
				t.Errorf("verdict %v, want %v", res.GetVerdict(), tt.verdict)
			}
			if bad := tt.outcome == fails || tt.outcome == isUnknown; bad && (f.GetReason().GetDe() == "" || f.GetRemedy().GetDe() == "" || f.GetFailingSince() == nil) {
				t.Errorf("finding does not explain itself: %v", f)
			}
		})
	}
}

func TestEveryUnreadableSectionIsUnknownForTheRulesThatReadIt(t *testing.T) {
	reads := map[string][]string{
		"platform": {"system-supported", "system-support-ends-soon", "security-feed-configured", "security-feed-fresh", "antivirus",
			"windows-behind-vendor", "windows-update-search", "windows-update-source"},
		"volumes": {"disks-encrypted"},
		"patch": {"security-updates", "security-updates-soon", "security-feed-configured", "security-feed-fresh",
			"restart-pending"},
		"vpn":         {"vpn-client-approved", "vpn-client-current", "vpn-client-foreign"},
		"tpm":         {"tpm"},
		"secure_boot": {"secure-boot"},
		"firewall":    {"firewall"},
		"screen_lock": {"screen-lock"},
	}
	p := shipped(t)
	for section, rules := range reads {
		t.Run(section, func(t *testing.T) {
			ev := goodEvidence()
			field := ev.ProtoReflect().Descriptor().Fields().ByName(protoName(section))
			reading := ev.ProtoReflect().Get(field).Message()
			reading.Set(reading.Descriptor().Fields().ByName("reading"), protoMessage(failed("I/O error")))
			res := Appraise(inputOf(t, p, ev))
			unknown := map[string]bool{}
			for _, f := range res.GetFindings() {
				if f.GetOutcome() == isUnknown {
					unknown[f.GetRule()] = true
					if f.GetFailedSection() != section || !strings.Contains(f.GetReason().GetEn(), "I/O error") {
						t.Errorf("%s: section %q, reason %q", f.GetRule(), f.GetFailedSection(), f.GetReason().GetEn())
					}
				}
			}
			for _, r := range rules {
				if !unknown[r] {
					t.Errorf("%s is not UNKNOWN", r)
				}
				delete(unknown, r)
			}
			for r := range unknown {
				t.Errorf("%s is UNKNOWN without reading %s", r, section)
			}
		})
	}
}

func TestSupportEndsIsSaidAheadOfTime(t *testing.T) {
	in := inputOf(t, shipped(t), with(func(ev *posturev1.Evidence) {
		ev.Platform.Version = "12"
	}))
	end := time.Date(2028, 7, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		at        time.Time
		ends      posturev1.Outcome
		supported posturev1.Outcome
	}{
		{end.Add(-61 * day), passes, passes},
		{end.Add(-60 * day), fails, passes},
		{end.Add(-time.Second), fails, passes},
		{end, doesNotApply, fails},
	} {
		in.Now, in.CollectedAt = tt.at, tt.at
		res := Appraise(in)
		if got := findingOf(t, res, "system-support-ends-soon").GetOutcome(); got != tt.ends {
			t.Errorf("%v: ends soon: %v, want %v", tt.at, got, tt.ends)
		}
		if got := findingOf(t, res, "system-supported").GetOutcome(); got != tt.supported {
			t.Errorf("%v: supported: %v, want %v", tt.at, got, tt.supported)
		}
	}
}

func TestFindingsShowTheValuesRead(t *testing.T) {
	res := Appraise(inputOf(t, shipped(t), goodEvidence()))
	for rule, want := range map[string]string{
		"disks-encrypted":  "evidence.volumes.volumes[0] = ROOT ext4: encrypted, linear > luks2 aes-xts-plain64 > partition > disk",
		"security-updates": "evidence.patch = 2 security updates pending, 1903 packages",
		"restart-pending":  "evidence.patch.reboot_pending.pending = NO",
		"tpm":              "evidence.tpm.version = 2.0",
		"system-supported": "evidence.platform = debian 13",
		RuleKnownDevice:    "asset.state = ACTIVE",
		RuleEvidenceFresh:  "evidence_age = 1m0s",
	} {
		var got []string
		for _, v := range findingOf(t, res, rule).GetValues() {
			got = append(got, v.GetPath()+" = "+v.GetValue())
		}
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("%s shows\n%s\nwithout\n%s", rule, strings.Join(got, "\n"), want)
		}
	}
}

func TestAThousandUpdatesStayAShortFinding(t *testing.T) {
	ev := goodEvidence()
	ev.Patch.Pending = nil
	for range 1000 {
		ev.Patch.Pending = append(ev.Patch.Pending, &posturev1.PendingUpdate{Package: strings.Repeat("x", 4000), FirstSeenAt: timestamppb.New(noon)})
	}
	for _, expr := range []string{"evidence.patch.pending.all(u, days_pending(u, now) > 3)", "evidence.patch.pending.all(u, u.package == 'x')"} {
		f := findingOf(t, Appraise(inputOf(t, onePolicy(t, expr, "", ""), ev)), "the-rule")
		if n := len(f.GetValues()); n != maxValues+1 || f.GetValues()[maxValues].GetValue() != "988 more" {
			t.Errorf("%s: %d values, the last %v", expr, n, f.GetValues()[n-1])
		}
	}
}

func TestListsOfTextsAreShown(t *testing.T) {
	in := withDevice(inputOf(t, onePolicy(t, "asset.groups.exists(g, g == 'x')", "", ""), goodEvidence()), func(d *fleetv1.Device) { d.Asset.Groups = []string{"a", "b"} })
	f := findingOf(t, Appraise(in), "the-rule")
	if len(f.GetValues()) != 2 || f.GetValues()[1].GetPath() != "asset.groups[1]" || f.GetValues()[1].GetValue() != "b" {
		t.Errorf("%v", f.GetValues())
	}
}
