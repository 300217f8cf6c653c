package identity

import (
	"testing"
	"time"

	"pfoertner/internal/attest/chip"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(``))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"format":1,"key_kind":"software","key":"AAAA","chain":null,"servers":null,"asset_number":"","renew_after":"0001-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"format":1,"key_kind":"software","chain":["MIIB"]}`))
	f.Add([]byte(`{"format":1,"key_kind":"tpm","key":"MIIB","attestation_key":"MIIB","key_since":"2026-11-22T00:00:00Z"}`))
	// Reading a file asks no TPM: this one would be missed.
	inTPM := TPM{Chip: chip.New(nil, nil)}
	f.Fuzz(func(t *testing.T, content []byte) {
		for _, keys := range []Keys{Software{}, inTPM} {
			id, err := parse(content, keys)
			if err != nil {
				continue
			}
			if id.Key == nil || id.InTPM() != (keys.Kind() == KindTPM) {
				t.Error("an identity without its keys")
			}
			if _, err := id.Certificate(time.Now()); !id.Enrolled() && err == nil {
				t.Error("a certificate out of nothing")
			}
		}
	})
}

// Whatever the file says of the machine: what is read from it can be written, and
// an identity is never taken as copied without two values that differ.
func FuzzBinding(f *testing.F) {
	f.Add([]byte(`{"salt":"AAAAAAAAAAAAAAAAAAAAAA==","serial":"AAAA"}`))
	f.Add([]byte(`{"salt":"AAAAAAAAAAAAAAAAAAAAAA=="}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, content []byte) {
		b := parseBinding(content)
		if b == nil {
			return
		}
		if !b.of(Traits{}) {
			t.Error("a machine of which nothing is known is taken for another one")
		}
		here := Traits{Model: "a", Serial: "b", Install: "c"}
		if known := b.with(here); !known.of(here) {
			t.Error("a machine that was learned is taken for another one")
		}
	})
}
