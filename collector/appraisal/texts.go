package appraisal

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/interpreter"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// The ids of the findings that every policy has, whatever its rules.
const (
	// RuleKnownDevice: the device is in the inventory and its asset active.
	RuleKnownDevice = "known-device"
	// RuleEvidenceFresh: the evidence is not older than the policy allows.
	RuleEvidenceFresh = "evidence-fresh"
	// RuleHardwareBound: the device key cannot leave the device.
	RuleHardwareBound = "hardware-bound"
)

func local(de, en string) *posturev1.LocalText { return &posturev1.LocalText{De: de, En: en} }

// builtin are the texts of the findings that every policy has. They are made
// once per policy and shared by its results.
type builtin struct {
	knownTitle, knownRemedy, unknownDevice, inactiveAsset *posturev1.LocalText
	freshTitle, freshRemedy, neverReported                *posturev1.LocalText
	boundTitle, boundRemedy, keyUnknown                   *posturev1.LocalText
	virtualTPM, softwareKeyForbidden                      *posturev1.LocalText
	conditionFails, contradicted                          *posturev1.LocalText
}

func newBuiltin() *builtin {
	return &builtin{
		knownTitle: local("Bekanntes und freigegebenes Dienstgerät", "Known and active service device"),
		knownRemedy: local("Wenden Sie sich an Ihre IT-Stelle. Nur sie kann das Gerät freigeben.",
			"Please contact your IT service desk. Only they can activate the device."),
		unknownDevice: local("Dieses Gerät ist nicht als Dienstgerät verzeichnet.", "This device is not on record as a service device."),
		inactiveAsset: local("Dieses Gerät ist zurzeit nicht freigegeben.", "This device is not active at present."),
		freshTitle:    local("Aktueller Nachweis", "Fresh evidence"),
		freshRemedy: local("Verbinden Sie das Gerät mit dem Internet und warten Sie einige Minuten. Hilft das nicht, starten Sie es neu.",
			"Connect the device to the internet and wait a few minutes. If that does not help, restart it."),
		neverReported: local("Das Gerät hat noch keinen Nachweis gesendet.", "The device has not sent evidence yet."),
		boundTitle:    local("Der Schlüssel ist an das Gerät gebunden", "The key is bound to the hardware"),
		boundRemedy: local("Wenden Sie sich an Ihre IT-Stelle. Sie prüft, ob der Sicherheitschip (TPM) des Geräts genutzt werden kann.",
			"Please contact your IT service desk. They check whether the security chip (TPM) of the device can be used."),
		keyUnknown: local("Ob der Schlüssel des Geräts im Sicherheitschip (TPM) liegt, ist nicht feststellbar.",
			"Whether the key of the device is in the security chip (TPM) is unknown."),
		virtualTPM: local("Nicht an das Gerät gebunden: Der Sicherheitschip (TPM) ist ein Programm und könnte kopiert werden.",
			"Not hardware-bound: the security chip (TPM) is a program and could be copied."),
		softwareKeyForbidden: local("Nicht an das Gerät gebunden: Der Schlüssel liegt nicht im Sicherheitschip (TPM), und das ist nicht oder nicht mehr erlaubt.",
			"Not hardware-bound: the key is not in the security chip (TPM), and that is not permitted, or not any more."),
		conditionFails: local("Die Bedingung der Regel ist nicht erfüllt.", "The condition of the rule is not met."),
		contradicted:   local("Zwei Messwerte widersprechen sich.", "Two readings contradict each other."),
	}
}

// textNotRead says that a section of evidence is missing, with the reason that
// the notebook gave.
func textNotRead(section, reason string) *posturev1.LocalText {
	reason = strings.TrimSuffix(short(reason), ".")
	return local(
		fmt.Sprintf("%s nicht feststellbar: %s.", sectionName(section, "de"), orElse(inGerman(reason), "ohne Angabe von Gründen")),
		fmt.Sprintf("%s could not be read: %s.", sectionName(section, "en"), orElse(reason, "no reason given")))
}

// textDoesNotApply is for sections that a rule insists on.
func textDoesNotApply(section, reason string) *posturev1.LocalText {
	reason = strings.TrimSuffix(short(reason), ".")
	return local(
		fmt.Sprintf("%s: vom Gerät als nicht zutreffend gemeldet (%s).", sectionName(section, "de"), orElse(inGerman(reason), "ohne Angabe von Gründen")),
		fmt.Sprintf("%s: reported as not applicable (%s).", sectionName(section, "en"), orElse(reason, "no reason given")))
}

// textStale says how old the evidence is.
func textStale(minutes int) *posturev1.LocalText {
	if minutes < 120 {
		return local(fmt.Sprintf("Der letzte Nachweis des Geräts ist %d Minuten alt.", minutes),
			fmt.Sprintf("The last evidence of the device is %d minutes old.", minutes))
	}
	if hours := minutes / 60; hours < 48 {
		return local(fmt.Sprintf("Der letzte Nachweis des Geräts ist %d Stunden alt.", hours),
			fmt.Sprintf("The last evidence of the device is %d hours old.", hours))
	}
	return local(fmt.Sprintf("Der letzte Nachweis des Geräts ist %d Tage alt.", minutes/60/24),
		fmt.Sprintf("The last evidence of the device is %d days old.", minutes/60/24))
}

// textBrokeOff is for errors that no function of ours explains.
func textBrokeOff(err error) *posturev1.LocalText {
	if cancelled, ok := errors.AsType[interpreter.EvalCancelledError](err); ok && cancelled.Cause == interpreter.CostLimitExceeded {
		return local("Die Regel ist für diesen Nachweis zu aufwendig.", "The rule is too expensive for this evidence.")
	}
	return local("Die Regel konnte nicht ausgewertet werden: "+short(err.Error())+".", "The rule could not be evaluated: "+short(err.Error())+".")
}

// sectionName is a section of evidence in words.
func sectionName(section, lang string) string {
	de, en := section, section
	switch section {
	case "platform":
		de, en = "Betriebssystem", "Operating system"
	case "volumes":
		de, en = "Laufwerke", "Volumes"
	case "patch":
		de, en = "Aktualisierungsstand", "Patch level"
	case "vpn":
		de, en = "VPN-Programm", "VPN client"
	case "tpm":
		de, en = "Sicherheitschip (TPM)", "Security chip (TPM)"
	case "secure_boot":
		de, en = "Gesicherter Start (Secure Boot)", "Secure Boot"
	case "firewall":
		de, en = "Firewall", "Firewall"
	case "antivirus":
		de, en = "Virenschutz", "Antivirus"
	case "screen_lock":
		de, en = "Bildschirmsperre", "Screen lock"
	case "attested":
		de, en = "Bestätigung durch den Sicherheitschip (TPM)", "Attestation by the security chip (TPM)"
	}
	if lang == "de" {
		return de
	}
	return en
}
