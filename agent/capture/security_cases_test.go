package capture

import (
	"fmt"
	"strings"
	"testing"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// TestSecurityOfCaptures tells the supporting facts: TPM, Secure Boot, firewall,
// antivirus and screen lock.
func TestSecurityOfCaptures(t *testing.T) {
	for _, c := range []struct{ name, section, want, contradictions string }{
		{"windows-11-24h2", "tpm", "OBSERVED yes 2.0", ""},
		{"tpm-1-2", "tpm", "OBSERVED yes 1.2", ""},
		{"tpm-none", "tpm", "OBSERVED no ", ""},
		{"tpm-service-stopped", "tpm", "FAILED ? ", ""},

		{"windows-11-24h2", "secure_boot", "OBSERVED yes, setup no", ""},
		{"secureboot-registry-disagrees", "secure_boot", "OBSERVED no, setup no", "secure_boot.enabled"},
		{"secureboot-setup-mode", "secure_boot", "OBSERVED no, setup yes", ""},
		{"secureboot-legacy-bios", "secure_boot", "NOT_APPLICABLE ?, setup ?", ""},
		{"secureboot-denied", "secure_boot", "FAILED ?, setup ?", ""},

		{"windows-11-24h2", "firewall", "OBSERVED domain yes/yes/yes", ""},
		{"firewall-two-profiles-one-off", "firewall", "OBSERVED domain yes/yes/yes; public yes/no/no", ""},
		{"firewall-inbound-allowed", "firewall", "OBSERVED private yes/yes/no", ""},
		{"firewall-service-stopped", "firewall", "FAILED domain no/?/?", ""},
		{"firewall-stopped-and-on", "firewall", "OBSERVED domain no/yes/yes", "firewall.engines[windows-firewall domain]"},
		{"firewall-policy-disagrees", "firewall", "OBSERVED domain yes/no/no", "firewall.engines[windows-firewall domain]"},

		{"windows-11-24h2", "antivirus", "OBSERVED yes: Microsoft Defender Antivirus ON yes", ""},
		{"antivirus-defguard-0x20000", "antivirus", "OBSERVED no: Microsoft Defender Antivirus OFF yes", ""},
		{"antivirus-outdated", "antivirus", "OBSERVED no: Microsoft Defender Antivirus ON no", ""},
		{"antivirus-snoozed", "antivirus", "OBSERVED no: Example Endpoint Security SNOOZED yes; Microsoft Defender Antivirus OFF yes", ""},
		{"antivirus-expired", "antivirus", "OBSERVED no: Example Endpoint Security EXPIRED no; Microsoft Defender Antivirus OFF yes", ""},
		{"antivirus-sources-disagree", "antivirus", "OBSERVED yes: Microsoft Defender Antivirus UNSPECIFIED yes", "antivirus.products[Microsoft Defender Antivirus].state"},
		{"antivirus-good-without-a-product", "antivirus", "OBSERVED yes: ", "antivirus.healthy"},
		{"antivirus-security-center-down", "antivirus", "FAILED ?: ", ""},
		{"antivirus-server-defender-on", "antivirus", "OBSERVED ?: Microsoft Defender Antivirus ON ?", ""},
		{"antivirus-server-real-time-off", "antivirus", "OBSERVED ?: Microsoft Defender Antivirus OFF ?", ""},

		{"windows-11-24h2", "screen_lock", "OBSERVED yes 600", ""},
		{"screenlock-none", "screen_lock", "OBSERVED no 0", ""},
		{"screenlock-zero", "screen_lock", "OBSERVED no 0", ""},
		{"screenlock-no-number", "screen_lock", "FAILED ? 0", ""},
	} {
		t.Run(c.name+"/"+c.section, func(t *testing.T) {
			got, contradictions := inShort(replayed(t, c.name, c.section), c.section)
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if contradictions != c.contradictions {
				t.Errorf("contradicted: %s\nwant:         %s", contradictions, c.contradictions)
			}
		})
	}
}

// inShort writes a section on one line.
func inShort(ev *posturev1.Evidence, section string) (facts, contradictions string) {
	state := func(r *posturev1.Reading) string { return strings.TrimPrefix(r.GetState().String(), "READING_STATE_") }
	w := ternaryWord
	switch section {
	case "tpm":
		p := ev.Tpm
		return fmt.Sprintf("%s %s %s", state(p.Reading), w(p.Present), p.Version), ""
	case "secure_boot":
		p := ev.SecureBoot
		return fmt.Sprintf("%s %s, setup %s", state(p.Reading), w(p.Enabled), w(p.SetupMode)), contradicted(p.Contradictions)
	case "firewall":
		p := ev.Firewall
		var engines []string
		for _, e := range p.Engines {
			engines = append(engines, fmt.Sprintf("%s %s/%s/%s", e.Profile, w(e.ServiceActive), w(e.RulesLoaded), w(e.InboundDefaultDrop)))
		}
		return state(p.Reading) + " " + strings.Join(engines, "; "), contradicted(p.Contradictions)
	case "antivirus":
		p := ev.Antivirus
		var products []string
		for _, a := range p.Products {
			products = append(products, fmt.Sprintf("%s %s %s", a.Name, strings.TrimPrefix(a.State.String(), "ANTIVIRUS_STATE_"), w(a.UpToDate)))
		}
		return fmt.Sprintf("%s %s: %s", state(p.Reading), w(p.Healthy), strings.Join(products, "; ")), contradicted(p.Contradictions)
	default:
		p := ev.ScreenLock
		return fmt.Sprintf("%s %s %d", state(p.Reading), w(p.Enforced), p.IdleSeconds), ""
	}
}
