package attest

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"
)

// What swtpm's manufacturing tool leaves in a TPM, in the forms of the TCG, as
// the TPM gave it out: two certificates, of which one is for another key.
func TestCertificateThatAToolMadeIsRead(t *testing.T) {
	raw, err := os.ReadFile("testdata/ek-swtpm.json")
	if err != nil {
		t.Fatal(err)
	}
	var made struct {
		Area               []byte
		Certificates       [][]byte
		Root, Intermediate []byte
	}
	if err := json.Unmarshal(raw, &made); err != nil {
		t.Fatal(err)
	}
	key, err := ParseEndorsementKey(made.Area)
	if err != nil {
		t.Fatal(err)
	}
	trust := Trust{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), Virtual: true}
	for pool, der := range map[*x509.CertPool][]byte{trust.Roots: made.Root, trust.Intermediates: made.Intermediate} {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		pool.AddCert(cert)
	}
	at := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	got, err := VerifyEndorsement(key, made.Certificates, trust, at)
	want := Maker{
		Manufacturer: "id:00001014", Model: "swtpm", Version: "id:20191023", Virtual: true,
		SerialNumber: "02", Issuer: "CN=swtpm-localca",
	}
	if err != nil || *got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := VerifyEndorsement(key, made.Certificates[1:], trust, at); !errors.Is(err, ErrEndorsement) {
		t.Errorf("the certificate of another key: %v", err)
	}
	trust.Virtual = false
	if _, err := VerifyEndorsement(key, made.Certificates, trust, at); !errors.Is(err, ErrVirtual) {
		t.Errorf("a virtual TPM: %v", err)
	}
}

func TestManufacturersByTheirRegisteredNames(t *testing.T) {
	for stated, want := range map[string]string{
		"id:494E5443": "INTC", "id:414D4400": "AMD", "id:4E534D20": "NSM", "id:53544D20": "STM",
		"id:00001014": "id:00001014", "id:494E54": "id:494E54", "INTC": "INTC", "id:zz": "id:zz", "": "",
	} {
		if got := vendor(stated); got != want {
			t.Errorf("%q: %q, want %q", stated, got, want)
		}
	}
	for name, want := range map[string]bool{"INTC": false, "AMD": false, "": false, "MSFT": true, "VMW": true, "GOOG": true, "id:00001014": true} {
		if IsVirtual(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
}
