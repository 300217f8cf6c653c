package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/status"
	"pfoertner/internal/attest/chip"
)

// idWords are the texts of `id` in one language.
type idWords struct {
	vendor, model, serial, fingerprint           string
	deviceKey, inTPM, inFile                     string
	tpm, endorsementKey, endorsement             string
	issuedBy, unreadable, none                   string
	device, asset, unit, until, date, problem    string
	notEnrolled, expired, copied, noTPM, another string
}

func idWordsFor(locale string) *idWords {
	if status.German(locale) {
		return &idWords{
			vendor: "Hersteller", model: "Modell", serial: "Seriennummer", fingerprint: "Fingerabdruck (Prüfzahl)",
			deviceKey: "Geräteschlüssel", inTPM: "im Sicherheitschip (TPM)", inFile: "in einer Datei, nicht an das Gerät gebunden",
			tpm: "Sicherheitschip (TPM)", endorsementKey: "Schlüssel des Chips (EK, SHA-256)", endorsement: "Zertifikat des Chips",
			issuedBy: "vorhanden, ausgestellt von %s", unreadable: "vorhanden, nicht lesbar", none: "keines im Chip: zwei Personen vergleichen den Fingerabdruck",
			device: "Gerät", asset: "Inventarnummer", unit: "Organisationseinheit laut Installation",
			until: "Aufnahme gültig bis", date: "02.01.2006, 15:04 Uhr", problem: "Hinweis",
			notEnrolled: "Das Gerät ist noch nicht aufgenommen.",
			expired:     "Die Aufnahme ist nach der Uhr dieses Geräts abgelaufen.",
			copied:      "Schlüssel und Zertifikat auf diesem Gerät gehören zu einem anderen Gerät oder zu einem früheren Zustand des Sicherheitschips. Sie werden nicht benutzt; das Gerät braucht eine eigene Aufnahme.",
			noTPM:       "Der Sicherheitschip antwortet nicht (%s). Administratorrechte sind nötig; ist er in der Firmware (UEFI) eingeschaltet?",
			another:     "Der vorhandene Schlüssel ist anders geschützt, als device_key sagt, und wird nicht benutzt.",
		}
	}
	return &idWords{
		vendor: "vendor", model: "model", serial: "serial", fingerprint: "fingerprint to compare",
		deviceKey: "device key", inTPM: "in the TPM", inFile: "in a file, not bound to the device",
		tpm: "TPM", endorsementKey: "endorsement key (SHA-256)", endorsement: "endorsement certificate",
		issuedBy: "there, issued by %s", unreadable: "there, not readable", none: "none in the TPM: two persons compare the fingerprint",
		device: "device", asset: "asset number", unit: "unit, as installed",
		until: "enrolled until", date: time.DateTime, problem: "note",
		notEnrolled: "This device is not enrolled yet.",
		expired:     "The enrolment has expired by the clock of this device.",
		copied:      "Key and certificate on this device are another device's, or of its TPM before it was cleared. They are not used; this device needs an enrolment of its own.",
		noTPM:       "The TPM does not answer (%s). That needs an administrator; is it switched on in the firmware (UEFI)?",
		another:     "The key that is there is protected otherwise than device_key says, and is not used.",
	}
}

// show is the card for people, with times of a zone.
func (card *idCard) show(w *idWords, zone *time.Location) string {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, value)
		}
	}
	line(w.vendor, card.Vendor)
	line(w.model, card.Model)
	line(w.serial, card.Serial)
	line(w.deviceKey, w.place(card.DeviceKey))
	line(w.fingerprint, card.Fingerprint)
	if card.TPM != nil {
		line(w.tpm, strings.TrimSpace(card.TPM.Manufacturer+" "+card.TPM.Firmware))
		line(w.endorsementKey, card.TPM.EndorsementKey)
		line(w.endorsement, w.certificate(card.TPM))
	}
	line(w.device, card.DeviceID)
	line(w.asset, card.Asset)
	line(w.unit, card.Unit)
	if !card.Expires.IsZero() {
		line(w.until, card.Expires.In(zone).Format(w.date))
	}
	if card.TPMProblem != "" && card.DeviceKey == identity.KindTPM {
		line(w.problem, fmt.Sprintf(w.noTPM, card.TPMProblem))
	}
	line(w.problem, w.trouble(card))
	_ = table.Flush() // into memory
	return text.String()
}

func (w *idWords) place(kind string) string {
	if kind == identity.KindSoftware {
		return w.inFile
	}
	return w.inTPM
}

func (w *idWords) certificate(t *tpmCard) string {
	switch {
	case !t.Certificate:
		return w.none
	case t.Issuer == "":
		return w.unreadable
	}
	return fmt.Sprintf(w.issuedBy, t.Issuer)
}

// trouble says what keeps this notebook from being a device.
func (w *idWords) trouble(card *idCard) string {
	switch err := card.problem; {
	case errors.Is(err, chip.ErrUnavailable):
		return "" // said already, where the TPM is
	case errors.Is(err, errCopied):
		return w.copied
	case errors.Is(err, identity.ErrNotEnrolled):
		return w.notEnrolled
	case errors.Is(err, identity.ErrExpired):
		return w.expired
	case errors.Is(err, identity.ErrOtherKind):
		return w.another
	}
	return card.Problem
}
