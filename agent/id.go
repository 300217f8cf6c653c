package main

import (
	"context"
	"crypto/x509"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/internal/attest"
	"pfoertner/internal/attest/chip"
)

// idCard is what `id` prints.
type idCard struct {
	Vendor string `json:"vendor"`
	Model  string `json:"model"`
	Serial string `json:"serial"`
	// DeviceKey is where the configuration wants the key: "tpm" or "software".
	DeviceKey string `json:"device_key"`
	// Fingerprint is what two persons compare: of the TPM's endorsement key, or
	// of the software key.
	Fingerprint string   `json:"fingerprint,omitempty"`
	TPM         *tpmCard `json:"tpm,omitempty"`
	DeviceID    string   `json:"device_id,omitempty"`
	Asset       string   `json:"asset_number,omitempty"`
	// Unit is what the installation was told; the inventory decides.
	Unit    string    `json:"unit,omitempty"`
	Expires time.Time `json:"certificate_expires_at,omitzero"`
	// Problem is why there is no key or no certificate, TPMProblem why the TPM is
	// not known.
	Problem    string `json:"problem,omitempty"`
	TPMProblem string `json:"tpm_problem,omitempty"`

	problem error // behind Problem
}

// tpmCard is who the TPM is.
type tpmCard struct {
	// EndorsementKey is how the inventory lists it: SHA-256, hexadecimal.
	EndorsementKey string `json:"endorsement_key_sha256"`
	Manufacturer   string `json:"manufacturer"`
	Firmware       string `json:"firmware_version"`
	// Certificate says whether the TPM holds one for its endorsement key, Issuer
	// who issued that. Whether it is genuine, the collector finds out.
	Certificate bool   `json:"endorsement_certificate"`
	Issuer      string `json:"endorsement_certificate_issuer,omitempty"`
}

// newID shows who this notebook is: to prepare the inventory, and to compare
// fingerprints before an approval.
func newID(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	lang := f.String("lang", "", "`language`, de or en (default: that of the environment)")
	asJSON := f.Bool("json", false, "print JSON")
	asCSV := f.Bool("csv", false, "print this notebook as a line of the inventory; the asset number is left to fill in")
	return func(context.Context) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		h := probe.NewHost()
		m := identity.Stated(probe.Machine(h))
		card := idCard{Unit: c.Unit, DeviceKey: c.DeviceKey, Vendor: m.GetVendor(), Model: m.GetModel(), Serial: m.GetSerial()}
		tpm := chip.Open()
		defer tpm.Close()
		tpmErr := card.addTPM(tpm)
		if *asCSV {
			if tpmErr != nil {
				return tpmErr
			}
			return card.csv(out)
		}
		card.addKey(c, traits(h))
		if *asJSON {
			return printJSON(out, card)
		}
		_, err = io.WriteString(out, card.show(idWordsFor(locale(*lang)), time.Local))
		return err
	}
}

// addTPM reads who the TPM is. Nothing is made in it.
func (card *idCard) addTPM(tpm *chip.Chip) error {
	ek, err := tpm.Endorsement()
	if err == nil {
		err = card.describe(ek)
	}
	if err != nil {
		card.TPMProblem = err.Error()
	}
	return err
}

func (card *idCard) describe(ek *chip.Endorsement) error {
	key, err := ek.Key()
	if err != nil {
		return err
	}
	sum, err := attest.SPKI(key)
	if err != nil {
		return err
	}
	card.TPM = &tpmCard{
		EndorsementKey: hex.EncodeToString(sum), Manufacturer: ek.Manufacturer, Firmware: ek.Firmware,
		Certificate: len(ek.Certificates) > 0,
	}
	if len(ek.Certificates) > 0 {
		if c, err := x509.ParseCertificate(ek.Certificates[0]); err == nil {
			card.TPM.Issuer = c.Issuer.String()
		}
	}
	if card.DeviceKey == identity.KindTPM {
		card.Fingerprint, err = attest.Fingerprint(key)
	}
	return err
}

// addKey reads the identity of the machine with these traits, without making
// anything.
func (card *idCard) addKey(c config, machine identity.Traits) {
	if card.problem = card.readKey(c, machine); card.problem != nil {
		card.Problem = card.problem.Error()
	}
}

// errCopied says that what is here is another machine's.
var errCopied = errors.New("key and certificate here are another machine's: they are not used, this one needs an enrolment of its own")

func (card *idCard) readKey(c config, machine identity.Traits) error {
	if _, err := os.Stat(c.StateDir); errors.Is(err, fs.ErrNotExist) {
		return identity.ErrNotEnrolled
	}
	state, err := identity.Open(c.StateDir, c.keys())
	if err != nil {
		return err
	}
	defer state.Close()
	switch copied, err := state.Copied(machine); {
	case err != nil:
		return err
	case copied:
		return errCopied
	}
	id, err := state.Load()
	switch {
	case errors.Is(err, chip.ErrForeign):
		return errCopied
	case err != nil:
		return err
	}
	if !id.InTPM() {
		if card.Fingerprint, err = id.Fingerprint(); err != nil {
			return err
		}
	}
	card.DeviceID, card.Asset, card.Expires = id.DeviceID, id.AssetNumber, id.Expires()
	_, err = id.Certificate(time.Now())
	return err
}

// csv prints an inventory file of this notebook alone. Lines of many can be put
// below one header.
func (card *idCard) csv(out io.Writer) error {
	w := csv.NewWriter(out)
	w.Comma = ';'
	// Flush returns what went wrong with any line.
	_ = w.Write([]string{"asset_number", "vendor", "model", "serial", "endorsement_key_sha256"})
	_ = w.Write([]string{"", card.Vendor, card.Model, card.Serial, card.TPM.EndorsementKey})
	w.Flush()
	return w.Error()
}
