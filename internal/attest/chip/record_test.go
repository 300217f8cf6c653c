//go:build linux && record

package chip_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"google.golang.org/protobuf/proto"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog/bootlogtest"
)

// transcript is an enrolment as the collector sees it, and the secret that it
// chose; the tests of package attest read it.
type transcript struct {
	Hello, Challenge, Proof []byte
	Exporter, Secret        []byte
}

// TestRecordTranscripts writes what the tests of package attest verify: go test
// -tags record -run Record ./internal/attest/chip.
func TestRecordTranscripts(t *testing.T) {
	for name, template := range map[string]attest.Template{"rsa": attest.EndorsementKeys()[0], "ecc": attest.EndorsementKeys()[1]} {
		p, m := newPC(t), newMaker(t, "ACME")
		primary := raw(t, p, tpm2.CreatePrimary{
			PrimaryHandle: password(tpm2.TPMRHEndorsement), InPublic: tpm2.BytesAs2B[tpm2.TPMTPublic](template.Area),
		})
		raw(t, p, tpm2.FlushContext{FlushHandle: primary.ObjectHandle})
		ek := must(attest.ParseEndorsementKey(primary.OutPublic.Bytes()))(t)
		p.store(t, tpm2.TPMHandle(template.Certificate), m.certificate(t, ek, "id:49465800"))
		log := bootlogtest.SecureBoot()
		for range 80 { // as long as logs are: 30 kB
			log.Raw(5, 0x80000006, make([]byte, 300))
		}
		p.boot(t, log)
		e := newEnrolment(t, p)
		a := e.answer(t)
		must(e.verify(a))(t)
		out := must(json.MarshalIndent(transcript{
			Hello: e.transcript, Challenge: must(proto.Marshal(e.challenge))(t), Proof: must(proto.Marshal(a))(t),
			Exporter: e.exporter,
			Secret:   must(p.Activate(e.ak, e.ek, e.challenge.GetCredentialBlob(), e.challenge.GetEncryptedSecret()))(t),
		}, "", "\t"))(t)
		if err := os.WriteFile("../testdata/enrolment-"+name+".json", append(out, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
