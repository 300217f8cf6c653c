package main

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// wait lets a notebook with a TPM of its own wait for approval, as enrolment
// does.
func (h *house) wait(t *testing.T, asset, fingerprint string) {
	t.Helper()
	ek := sha256.Sum256([]byte(fingerprint))
	err := h.registry.SetPending(t.Context(), asset, &fleetv1.PendingEnrolment{
		Fingerprint: fingerprint, EndorsementKeySha256: ek[:], Manufacturer: "STM", Reason: "endorsement_unknown",
		RequestedAt: timestamppb.Now(), ExpiresAt: timestamppb.New(time.Now().AddDate(0, 0, 14)), Vendor: "Dell", Model: "7450", Serial: "D2",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func (h *house) importCSV(t *testing.T, csv string) {
	t.Helper()
	if answer, err := h.registry.Import(t.Context(), "anna", []byte(csv)); err != nil || len(answer.GetErrors()) > 0 {
		t.Fatalf("importing: %v %v", err, answer.GetErrors())
	}
}

func TestANotebookThatWaitsIsApprovedByTwo(t *testing.T) {
	h := newHouse(t)
	h.importCSV(t, "asset_number;unit\nNB-1;inneres/it\nNB-2;inneres/it\n")
	const fingerprint = "0123-4567-89AB-CDEF-GHJK-MNPQ"
	h.wait(t, "NB-1", fingerprint)
	h.wait(t, "NB-2", "QPNM-KJHG-FEDC-BA98-7654-3210")
	s := h.terminal(t)
	h.as(s, "anna")
	s.run("devices")
	s.run("approve", "NB-1")
	s.run("approve", "NB-1", "--fingerprint", fingerprint)
	s.run("approve", "NB-1", "--fingerprint", "0123-4567-89AB-CDEF-GHJK-MNPR", "--reason", "read out by Mr K.")
	s.run("approve", "NB-1", "--fingerprint", fingerprint, "--reason", "read out by Mr K.")
	s.run("approve", "NB-1", "--fingerprint", fingerprint, "--reason", "once more")
	s.run("proposals")
	h.as(s, "bernd")
	s.run("approve", "NB-1", "--fingerprint", strings.ToLower(strings.ReplaceAll(fingerprint, "-", "")), "--reason", "I saw it")
	s.run("approve", "NB-1", "--fingerprint", fingerprint, "--reason", "I saw it")
	s.run("reject", "NB-2", "--reason", "nobody has such a notebook")
	s.run("reject", "NB-2", "--reason", "nobody has such a notebook")
	s.run("proposals")
	s.run("devices")
	s.run("events", "NB-1", "--limit", "3")
	s.run("events", "NB-2", "--limit", "1")
	s.shows("approve.txt")
}

func TestASoftwareKeyIsAllowedByTwoUntilADay(t *testing.T) {
	h := newHouse(t)
	h.importCSV(t, "asset_number;unit\nNB-1;inneres/it\n")
	today := time.Now().UTC()
	day := func(months int) string { return today.AddDate(0, months, 0).Format(time.DateOnly) }
	s := h.terminal(t)
	h.as(s, "anna")
	s.run("software-key", "allow", "NB-1", "--reason", "no TPM")
	s.run("software-key", "allow", "NB-1", "--until", "31.01.2027", "--reason", "no TPM")
	s.run("software-key", "allow", "NB-1", "--until", day(-1), "--reason", "no TPM")
	s.run("software-key", "allow", "NB-1", "--until", day(14), "--reason", "no TPM")
	s.run("software-key", "allow", "NB-1", "--until", day(3), "--reason", "no TPM")
	h.as(s, "bernd")
	s.run("software-key", "allow", "NB-1", "--until", day(4), "--reason", "rather longer")
	s.run("proposals")
	s.run("proposals", "withdraw", h.registry.Proposals()[1].GetId())
	s.run("proposals", "withdraw", "nonsense")
	s.run("software-key", "allow", "NB-1", "--until", day(3), "--reason", "I have seen it")
	s.run("devices", "NB-1")
	s.run("software-key", "revoke", "NB-1", "--reason", "has a TPM now")
	s.run("software-key", "revoke", "NB-1", "--reason", "has a TPM now")
	s.run("proposals")
	s.conceal(day(-1), "A MONTH AGO")
	s.conceal(day(14), "IN 14 MONTHS")
	s.conceal(day(3), "IN-3-MON--")
	s.conceal(day(4), "IN-4-MON--")
	s.shows("software-key.txt")
}

func TestADeviceIsSuspendedResumedAndRetired(t *testing.T) {
	h := newHouse(t)
	h.enrol(t, 2)
	s := h.terminal(t)
	h.as(s, "anna")
	s.run("suspend", "NB-00000")
	s.run("suspend", "NB-00000", "--reason", "lost on a train")
	s.run("resume", "NB-00000", "--reason", "found")
	if d, _ := h.registry.Find("NB-00001"); d != nil {
		if err := h.registry.Alarm(t.Context(), d.GetId(), "cloned", "two live streams answered"); err != nil {
			t.Fatal(err)
		}
	}
	s.run("devices")
	s.run("explain", "NB-00001", "--lang", "en")
	s.run("state", "NB-00001", "resume", "--reason", "found the copy")
	s.run("resume", "NB-00001", "--reason", "found the copy")
	h.as(s, "bernd")
	s.run("resume", "NB-00001", "--reason", "seen both")
	s.run("devices")
	s.run("retire", "NB-00000", "--reason", "sold")
	s.run("resume", "NB-00000", "--reason", "bought back")
	s.run("suspend", "NB-99", "--reason", "lost")
	s.shows("suspend.txt")
}

func TestANotebookIsSetUpAnewOrGetsAnotherTPM(t *testing.T) {
	h := newHouse(t)
	h.importCSV(t, "asset_number;unit;endorsement_key_sha256\nNB-1;inneres/it;\nNB-2;inneres/it;"+strings.Repeat("ab", 32)+"\n")
	s := h.terminal(t)
	h.as(s, "anna")
	s.run("reimage-window", "NB-1", "--reason", "new disk")
	s.run("reimage-window", "NB-2", "--for", "0s", "--reason", "new disk")
	s.run("reimage-window", "NB-2", "--for", "169h", "--reason", "new disk")
	s.run("reimage-window", "NB-2", "--for", "48h", "--reason", "new disk")
	s.run("devices", "NB-2")
	s.run("tpm-exchange", "NB-1", "--reason", "new mainboard")
	s.run("tpm-exchange", "NB-2", "--reason", "new mainboard")
	h.as(s, "bernd")
	s.run("tpm-exchange", "NB-2", "--reason", "seen the invoice")
	s.run("devices", "NB-2")
	s.shows("tpm.txt")
}

func TestAuthoritiesOfTPMsAreAddedAtTheCommandLine(t *testing.T) {
	root := newMaker(t, "Our Hypervisor", nil)
	roots := writeFile(t, "roots.pem", root.pem())
	h := newHouse(t, func(c *Config) { c.TPM.VirtualRoots = []string{roots} })
	between := newMaker(t, "Between", root)
	s := h.terminal(t)
	good := s.file("good.pem", string(append(newMaker(t, "Below", between).pem(), between.pem()...)))
	s.run("endorsement", "add", s.file("stranger.pem", string(newMaker(t, "Stranger", nil).pem())))
	s.run("endorsement", "add", s.file("empty.pem", ""))
	s.run("endorsement", "add", "--dry-run", good)
	s.run("endorsement", "add", good)
	s.run("endorsement", "add", good)
	s.conceal(root.cert.NotAfter.Format(time.DateOnly), "IN-20-YEAR")
	s.shows("endorsement.txt")

	s.screen.Reset()
	s.run("endorsement", "list")
	said := s.screen.String()
	for _, want := range []string{"shipped", "IFX ", "virtual root ", "configured", "virtual intermediate ", "by anna"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is missing:\n%s", want, said)
		}
	}
}

func TestBootValuesAreDecidedAtTheCommandLine(t *testing.T) {
	h := newHouse(t)
	for i, r := range []*fleetv1.BootReference{
		{Vendor: "Dell", Model: "7450", Pcr: 7}, {Vendor: "Lenovo", Model: "T14", Pcr: 0}, {Vendor: "Lenovo", Model: "T14", Pcr: 7},
	} {
		r.Sha256 = bytes.Repeat([]byte{0xa0 + byte(r.GetPcr())}, 32)
		// Nobody has quoted anything here: known by a decision that is taken back.
		for _, r.State = range []posturev1.PcrReference{posturev1.PcrReference_PCR_REFERENCE_APPROVED, posturev1.PcrReference_PCR_REFERENCE_LEARNED} {
			if _, err := h.tpms.SetBootReference(t.Context(), "anna", r); err != nil {
				t.Fatal(i, err)
			}
		}
	}
	s := h.terminal(t)
	s.run("boot-references", "list")
	s.run("boot-references", "list", "--model", "7450")
	s.run("boot-references", "approve", "7:a7a7a7a7a7a7a7a7")
	s.run("boot-references", "approve", "7:a7a7a7a7a7a7a7a7", "--model", "T14")
	s.run("boot-references", "reject", "0:A0A0A0A0")
	s.run("boot-references", "approve", "0:a0a0a0a0a0a0a0a0", "7:b7b7b7b7")
	s.run("boot-references", "approve", "7")
	s.run("boot-references", "approve", "7:a7")
	s.run("boot-references", "undecide", "7:a7a7a7a7", "--model", "T14")
	s.run("boot-references", "list")
	s.shows("boot.txt")
}

func TestOnlyWhoIsThereIsAskedToReport(t *testing.T) {
	h := newHouse(t)
	book := h.enrol(t, 1)[0]
	h.importCSV(t, "asset_number;unit\nNB-1;inneres/it\n")
	s := h.terminal(t)
	s.run("collect", "NB-00000")
	agent := book.connect(t)
	agent.report(t, unencrypted(time.Now()))
	done := make(chan error, 1)
	go func() { done <- agent.reportWhenAsked(prepare(t, compliant(time.Now()))) }()
	s.run("collect", "NB-00000")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.run("collect", "NB-00000", "--quote")
	s.run("collect", "NB-1")
	s.run("collect", "NB-99")
	s.shows("collect.txt")
}

// reportWhenAsked waits until the collector asks for a collection, and answers.
func (r *reporter) reportWhenAsked(p prepared) error {
	for {
		message, err := r.stream.Recv()
		if err != nil {
			return err
		}
		if message.GetCollect() != nil {
			return r.send(p)
		}
	}
}

// Two who write the same day give the same order, wherever their clocks are set.
func TestTheLastDayIsTheSameEverywhere(t *testing.T) {
	for _, zone := range []string{"Pacific/Auckland", "Pacific/Honolulu", "Europe/Berlin"} {
		place, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		local := time.Local
		time.Local = place
		end, err := endOfDay("2027-01-31")
		time.Local = local
		if err != nil || !end.Equal(time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC)) || lastDay(timestamppb.New(end)) != "2027-01-31" {
			t.Errorf("%s: %v %v, shown as %s", zone, end, err, lastDay(timestamppb.New(end)))
		}
	}
}
