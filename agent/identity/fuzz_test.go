package identity

import (
	"testing"
	"time"
)

func FuzzParse(f *testing.F) {
	f.Add([]byte(``))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"format":1,"key_kind":"software","key":"AAAA","chain":null,"servers":null,"asset_number":"","renew_after":"0001-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"format":1,"key_kind":"software","chain":["MIIB"]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		id, err := parse(content, Software{})
		if err != nil {
			return
		}
		if id.Key == nil {
			t.Error("an identity without a key")
		}
		if _, err := id.Certificate(time.Now()); !id.Enrolled() && err == nil {
			t.Error("a certificate out of nothing")
		}
	})
}
