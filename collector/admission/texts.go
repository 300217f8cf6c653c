package admission

import (
	"pfoertner/collector/appraisal"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// codeOf is the refusal code of a cause that lies outside the result, for one
// device or, when that is unknown, one certificate: the same cause keeps its
// code.
func codeOf(c Cause, subject string) string { return appraisal.Code("refusal", c.String(), subject) }

// causeTexts say why, for causes outside the result, without the code.
var causeTexts = [...]struct{ De, En string }{
	Unknown: {
		De: "Kein Zugang: Dieses Gerät ist nicht als Dienstgerät bekannt.",
		En: "No access: this device is not known as a service device.",
	},
	NotEnrolled: {
		De: "Kein Zugang: Die Aufnahme dieses Dienst-Notebooks ist noch nicht abgeschlossen.",
		En: "No access: this service notebook has not been enrolled completely.",
	},
	Suspended: {
		De: "Kein Zugang: Dieses Dienst-Notebook ist gesperrt.",
		En: "No access: this service notebook is suspended.",
	},
	Retired: {
		De: "Kein Zugang: Dieses Dienst-Notebook ist ausgemustert.",
		En: "No access: this service notebook is retired.",
	},
	NeverReported: {
		De: "Quarantäne: Von diesem Dienst-Notebook liegt noch kein Nachweis vor. Bitte warten Sie einige Minuten.",
		En: "Quarantine: no evidence has arrived from this service notebook yet. Please wait a few minutes.",
	},
	Stale: {
		De: "Quarantäne: Der Nachweis dieses Dienst-Notebooks ist zu alt. Bitte warten Sie einige Minuten.",
		En: "Quarantine: the evidence of this service notebook is too old. Please wait a few minutes.",
	},
	Appraised: {
		De: "Kein Zugang: Dieses Dienst-Notebook erfüllt die Richtlinie nicht.",
		En: "No access: this service notebook does not meet the policy.",
	},
	Unproven: {
		De: "Quarantäne: Ihr Dienst-Notebook weist diese Verbindung noch nach. Bitte warten Sie eine Minute.",
		En: "Quarantine: your service notebook is still proving this connection. Please wait a minute.",
	},
	NotProven: {
		De: "Kein Zugang: Ihr Dienst-Notebook hat diese Verbindung nicht als seine eigene nachgewiesen.",
		En: "No access: your service notebook has not proven this connection to be its own.",
	},
}

// message is what the user reads: one line of at most 200 bytes in each
// language, which every gateway can show. Nil when nothing is refused.
func message(f *Facts, d Decision, code string) *posturev1.LocalText {
	if d.Verdict == posturev1.Verdict_VERDICT_ADMIT {
		return nil
	}
	if d.Cause == Appraised && f.Text != nil {
		return f.Text
	}
	why := causeTexts[d.Cause]
	return &posturev1.LocalText{
		De: why.De + " Vorgangsnummer für Ihre IT-Stelle: " + code,
		En: why.En + " Reference for your IT service: " + code,
	}
}

// refusalCode is the code that goes with a decision; empty when it admits.
func refusalCode(f *Facts, d Decision, certificate fingerprint) string {
	switch {
	case d.Verdict == posturev1.Verdict_VERDICT_ADMIT:
		return ""
	case f == nil:
		return codeOf(d.Cause, string(certificate[:]))
	case d.Cause == Appraised && f.Code != "":
		return f.Code
	case f.DeviceID == "":
		return codeOf(d.Cause, f.AssetNumber)
	}
	return codeOf(d.Cause, f.DeviceID)
}
