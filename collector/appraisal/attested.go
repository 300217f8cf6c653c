package appraisal

import (
	"fmt"
	"slices"
	"time"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Why nothing that a TPM vouches for counts.
const (
	whyNeverQuoted   = "the TPM has never vouched for this device"
	whyTooOld        = "the last quote of the TPM is too old"
	whyNotPermitted  = "the key of the device is not in a TPM, and nobody has permitted that"
	whyOtherKey      = "the key of the device is in a TPM that does not vouch for it"
	whyNotInATPM     = "the key of the device is not in a TPM"
	whyNotInEventLog = "the event log does not show it"
)

// longList is from what length on a list of which something is missing may have
// been cut: what a rule demands of all entries must not hold because of that.
const longList = 64

// inGerman translates the reasons above; others are shown as they are.
func inGerman(reason string) string {
	switch reason {
	case whyNeverQuoted:
		return "der Sicherheitschip hat dieses Gerät noch nie bestätigt"
	case whyTooOld:
		return "die letzte Bestätigung durch den Sicherheitschip ist zu alt"
	case whyNotPermitted:
		return "der Schlüssel des Geräts liegt nicht im Sicherheitschip, und niemand hat das erlaubt"
	case whyOtherKey:
		return "der Schlüssel des Geräts liegt in einem Sicherheitschip, der es nicht bestätigt"
	case whyNotInATPM:
		return "der Schlüssel des Geräts liegt nicht im Sicherheitschip"
	case whyNotInEventLog:
		return "das Startprotokoll zeigt es nicht"
	}
	return reason
}

// vouched is what the TPM vouches for as far as it counts now. What does not
// count is left out altogether, so that no rule can see it; the reading says
// why.
//
// The key in use decides: what another key's TPM once stated says nothing of
// it, and that nothing is to be attested has to be permitted.
func vouched(in Input) *posturev1.Attestation {
	a, state := in.Attested, in.Attested.GetReading().GetState()
	protection := in.Device.GetKey().GetProtection()
	switch {
	case protection == fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE,
		state == posturev1.ReadingState_READING_STATE_NOT_APPLICABLE:
		switch {
		case protection == fleetv1.KeyProtection_KEY_PROTECTION_TPM:
			return notVouched(posturev1.ReadingState_READING_STATE_FAILED, whyOtherKey)
		case !softwareKeyPermitted(in):
			return notVouched(posturev1.ReadingState_READING_STATE_FAILED, whyNotPermitted)
		}
		return notVouched(posturev1.ReadingState_READING_STATE_NOT_APPLICABLE, whyNotInATPM)
	case a == nil:
		return notVouched(posturev1.ReadingState_READING_STATE_FAILED, whyNeverQuoted)
	case state != posturev1.ReadingState_READING_STATE_OBSERVED:
		return notVouched(state, a.GetReading().GetReason())
	case !a.GetValidUntil().IsValid() || !in.Now.Before(a.GetValidUntil().AsTime()):
		return notVouched(posturev1.ReadingState_READING_STATE_FAILED, whyTooOld)
	}
	return a
}

func notVouched(state posturev1.ReadingState, reason string) *posturev1.Attestation {
	return &posturev1.Attestation{Reading: &posturev1.Reading{State: state, Reason: reason}}
}

// softwareKeyPermitted says whether the asset may use a key outside a TPM now.
// A permission without an end has ended.
func softwareKeyPermitted(in Input) bool {
	until := in.Device.GetAsset().GetSoftwareKey().GetUntil()
	return until.IsValid() && in.Now.Before(until.AsTime())
}

// readAttested finds what of the attestation is known. The quote vouches for
// the values of the PCRs; all else comes from the event log, as far as they
// confirm it, and is unknown where they do not.
func (f *facts) readAttested() {
	a := f.vouched
	whole := newState(a.GetReading())
	switch {
	case whole.observed:
		f.ends = a.GetValidUntil().AsTime()
	case whole.notApplicable:
		f.ends = f.Device.GetAsset().GetSoftwareKey().GetUntil().AsTime()
	}
	part := func(known bool) state {
		if known || !whole.observed {
			return whole
		}
		return state{reason: orElse(a.GetIncomplete(), whyNotInEventLog)}
	}
	secureBoot, setupMode := known(a.GetSecureBoot()), known(a.GetSetupMode())
	f.states[sourceAttested] = whole
	f.states[sourceStart] = whole
	f.states[sourceStartSecureBoot] = part(secureBoot)
	f.states[sourceStartSetupMode] = part(setupMode)
	f.states[sourceStartKeys] = part(hasAllKeys(a))
	uncut := a.GetIncomplete() == "" || len(a.GetBootLoaders()) < longList
	f.states[sourceStartLoaders] = part(len(a.GetBootLoaders()) > 0 && uncut)
	// An empty list of warnings is good news: it counts only where the PCR that
	// they are measured into is confirmed, and nothing was left out.
	f.states[sourceStartEvents] = part(secureBoot && setupMode && a.GetIncomplete() == "")
	f.states[sourcePcrs] = part(len(a.GetPcrs()) > 0)
	f.compareSecureBoot()
}

func known(t posturev1.Ternary) bool {
	return t == posturev1.Ternary_TERNARY_YES || t == posturev1.Ternary_TERNARY_NO
}

// hasAllKeys says whether the keys of Secure Boot are known, all four: what a
// rule demands of every key must not hold because one is missing.
func hasAllKeys(a *posturev1.Attestation) bool {
	for _, name := range [...]string{"PK", "KEK", "db", "dbx"} {
		if !slices.ContainsFunc(a.GetKeys(), func(k *posturev1.BootKey) bool {
			return k.GetName() == name && len(k.GetSha256()) > 0
		}) {
			return false
		}
	}
	return true
}

// compareSecureBoot notes where the notebook and its TPM contradict each other.
// Rules that read either see both.
func (f *facts) compareSecureBoot() {
	if !f.states[sourceSecureBoot].observed || !f.states[sourceAttested].observed {
		return
	}
	f.compare("secure_boot.enabled", sourceStartSecureBoot, f.Evidence.GetSecureBoot().GetEnabled(), f.vouched.GetSecureBoot())
	f.compare("secure_boot.setup_mode", sourceStartSetupMode, f.Evidence.GetSecureBoot().GetSetupMode(), f.vouched.GetSetupMode())
}

func (f *facts) compare(subject string, part source, reported, attested posturev1.Ternary) {
	if !known(reported) || !known(attested) || reported == attested {
		return
	}
	c := &posturev1.Contradiction{
		Subject: subject,
		SourceA: orElse(f.Evidence.GetSecureBoot().GetReading().GetSource(), "evidence"), SaysA: ternaryWord(reported),
		SourceB: "TPM", SaysB: ternaryWord(attested),
	}
	for _, s := range []source{sourceSecureBoot, part, sourceStart} {
		list := f.states[s].contradictions
		f.states[s].contradictions = append(list[:len(list):len(list)], c)
	}
}

// secureBootOn says whether the TPM vouches that firmware starts only what its
// keys have signed, and that not everybody can replace these keys. One of the
// two that is surely bad is enough.
func secureBootOn(a *posturev1.Attestation) (bool, error) {
	switch on, setup := a.GetSecureBoot(), a.GetSetupMode(); {
	case on == posturev1.Ternary_TERNARY_NO, setup == posturev1.Ternary_TERNARY_YES:
		return false, nil
	case known(on) && known(setup):
		return true, nil
	}
	why := textNotRead("attested", orElse(a.GetIncomplete(), whyNotInEventLog))
	return false, cannotTell(why.GetDe(), why.GetEn())
}

// anyPCR says whether the value of any quoted PCR is known like this.
func anyPCR(a *posturev1.Attestation, reference posturev1.PcrReference) bool {
	return slices.ContainsFunc(a.GetPcrs(), func(p *posturev1.Pcr) bool { return p.GetReference() == reference })
}

// approved says whether all of these PCRs are quoted, with values that were
// approved.
func approved(a *posturev1.Attestation, pcrs []int64) (bool, error) {
	for _, index := range pcrs {
		if !slices.ContainsFunc(a.GetPcrs(), func(p *posturev1.Pcr) bool {
			return int64(p.GetIndex()) == index && p.GetReference() == posturev1.PcrReference_PCR_REFERENCE_APPROVED
		}) {
			return false, nil
		}
	}
	if len(pcrs) == 0 {
		return false, cannotTell("Die Regel nennt keinen Messwert des Starts.", "The rule names no PCR.")
	}
	return true, nil
}

// hardwareBound is the finding that every result has: can the key of this
// device leave it?
func (f *facts) hardwareBound() *posturev1.Finding {
	t, key := f.Policy.texts, f.Device.GetKey()
	out := &posturev1.Finding{
		Rule: RuleHardwareBound, Outcome: posturev1.Outcome_OUTCOME_FAIL, Title: t.boundTitle, Remedy: t.boundRemedy,
		Reference: "SYS.3.1.A8", Origin: posturev1.Origin_ORIGIN_INVENTORY,
		Values: []*posturev1.Value{{Path: "device.key.protection", Value: protectionWord(key)}},
	}
	effect := f.Policy.softwareKeys
	switch until := f.Device.GetAsset().GetSoftwareKey().GetUntil(); {
	case key.GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_TPM && !key.GetVirtual():
		out.Outcome = posturev1.Outcome_OUTCOME_PASS
	case key.GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_TPM:
		out.Reason = t.virtualTPM
	case key.GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE && softwareKeyPermitted(f.Input):
		out.Reason = textSoftwareKey(until.AsTime())
	case key.GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE:
		// Such a device is not ours to admit, like one that is unknown.
		out.Reason = t.softwareKeyForbidden
		f.weighAlways(out, posturev1.Effect_EFFECT_DENY)
		return out
	default:
		out.Outcome, out.Reason = posturev1.Outcome_OUTCOME_UNKNOWN, t.keyUnknown
	}
	f.weigh(out, effect, 0)
	return out
}

// protectionWord is where a key is, for findings.
func protectionWord(key *fleetv1.DeviceKey) string {
	switch key.GetProtection() {
	case fleetv1.KeyProtection_KEY_PROTECTION_TPM:
		if key.GetVirtual() {
			return "TPM, virtual"
		}
		return "TPM"
	case fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE:
		return "SOFTWARE"
	}
	return "not known"
}

// textSoftwareKey says until when a software key is permitted, by the last day
// on which it is: operators write that, and the permission ends with it.
func textSoftwareKey(until time.Time) *posturev1.LocalText {
	last := until.UTC().Add(-time.Nanosecond)
	return local(
		fmt.Sprintf("Nicht an das Gerät gebunden: Der Schlüssel liegt nicht im Sicherheitschip (TPM) und könnte kopiert werden. Das ist bis zum %s erlaubt.",
			last.Format("02.01.2006")),
		fmt.Sprintf("Not hardware-bound: the key is not in the security chip (TPM) and could be copied. That is permitted until %s.",
			last.Format("2 January 2006")))
}
