package main

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/internal/attest/chip"
)

func TestIDReadsInBothLanguages(t *testing.T) {
	tpm := &tpmCard{
		EndorsementKey: "3b6a1f0c55d2e87f90114c6de2a8b3f7705c1e99d24ab86f13570cde42f6a981",
		Manufacturer:   "IFX", Firmware: "7.85.4555.0", Certificate: true,
		Issuer: "CN=Infineon OPTIGA(TM) ECC Manufacturing CA 042,OU=OPTIGA(TM),O=Infineon Technologies AG,C=DE",
	}
	bare := &tpmCard{EndorsementKey: tpm.EndorsementKey, Manufacturer: "AMD", Firmware: "3.92.0.5"}
	base := idCard{
		Vendor: "LENOVO", Model: "21HES00000", Serial: "PF-0001", DeviceKey: identity.KindTPM,
		Fingerprint: "3F7K-9QX2-00AB-CDEF-GH12-3456", TPM: tpm,
	}
	with := func(change func(c *idCard)) idCard {
		c := base
		change(&c)
		if c.problem != nil {
			c.Problem = c.problem.Error()
		}
		return c
	}
	ends := time.Date(2026, 11, 24, 13, 5, 0, 0, time.UTC)
	for name, card := range map[string]idCard{
		"enrolled": with(func(c *idCard) {
			c.DeviceID, c.Asset, c.Unit, c.Expires = "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21", "NB-0001", "Amt Nord", ends
		}),
		"not-enrolled": with(func(c *idCard) { c.TPM, c.problem = bare, identity.ErrNotEnrolled }),
		"expired": with(func(c *idCard) {
			c.DeviceID, c.Asset, c.Expires = "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21", "NB-0001", ends
			c.problem = fmt.Errorf("%w on some day", identity.ErrExpired)
		}),
		"copied": with(func(c *idCard) { c.problem = errCopied }),
		"no-tpm": with(func(c *idCard) {
			c.TPM, c.Fingerprint, c.TPMProblem = nil, "", "reading endorsement key: TPM is not available"
			c.problem = fmt.Errorf("identity: %w", chip.ErrUnavailable)
		}),
		"software": with(func(c *idCard) {
			c.DeviceKey, c.TPM, c.TPMProblem = identity.KindSoftware, nil, "no such file"
			c.DeviceID, c.Asset, c.Expires = "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21", "NB-0002", ends
		}),
		"other-protection": with(func(c *idCard) { c.problem = fmt.Errorf("state: %w: software", identity.ErrOtherKind) }),
		"other-problem":    with(func(c *idCard) { c.problem = errors.New("opening state directory: permission denied") }),
	} {
		for _, lang := range []string{"de", "en"} {
			golden(t, "id-"+name+"."+lang, card.show(idWordsFor(lang), time.UTC))
		}
	}
}

func TestIDIsALineOfTheInventory(t *testing.T) {
	card := idCard{
		Vendor: "Dell Inc.", Model: "Latitude; 5440", Serial: "ABC-1",
		TPM: &tpmCard{EndorsementKey: "3b6a1f0c55d2e87f90114c6de2a8b3f7705c1e99d24ab86f13570cde42f6a981"},
	}
	var out bytes.Buffer
	if err := card.csv(&out); err != nil {
		t.Fatal(err)
	}
	golden(t, "id.csv", out.String())
	out.Reset()
	if err := printJSON(&out, card); err != nil {
		t.Fatal(err)
	}
	golden(t, "id.json", out.String())
}
