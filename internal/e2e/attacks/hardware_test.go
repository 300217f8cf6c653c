//go:build linux

package attacks_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/e2e"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	pending   = fleetv1.AssetState_ASSET_STATE_PENDING
	active    = fleetv1.AssetState_ASSET_STATE_ACTIVE
	suspended = fleetv1.AssetState_ASSET_STATE_SUSPENDED
)

// delivered is a city with one service notebook whose TPM is on the delivery
// list. It needs nothing but to be switched on.
func delivered(t *testing.T) (*city, *pc) {
	t.Helper()
	c := newCity(t)
	notebook := c.newPC(t, "notebook", c.maker)
	c.deliver(t, asset, notebook)
	notebook.start(t, "")
	c.awaitReport(t, asset, time.Time{})
	return c, notebook
}

func TestDeliveredNotebookIsInWithoutAnybodyDoingAnything(t *testing.T) {
	t.Parallel()
	c, notebook := delivered(t)
	d := c.awaitState(t, asset, active)
	if d.GetKey().GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM || d.GetKey().GetFingerprint() != notebook.fingerprint {
		t.Errorf("the collector says of its key: %v", d.GetKey())
	}
	if got := d.GetAttested().GetReading().GetState().String(); got != "READING_STATE_OBSERVED" {
		t.Errorf("the TPM vouches for nothing: %v", d.GetAttested())
	}
}

// The disk of a notebook, copied onto a private PC with a genuine TPM of its
// own.
func TestCopiedStateDirectoryCannotConnect(t *testing.T) {
	t.Parallel()
	c, notebook := delivered(t)
	private := c.newPC(t, "private PC", c.maker)
	private.copyDisk(t, notebook)
	before := c.device(t, asset)

	private.start(t, "")
	private.says(t, "not enrolled yet")
	if e := c.awaitEvent(t, "enrolment.refused", ""); e.GetDetails()["reason"] == "" {
		t.Errorf("refused without a reason: %v", e)
	}
	d := c.device(t, asset)
	if d.GetAsset().GetState() != active || !d.GetOnline() || d.GetKey().GetFingerprint() != before.GetKey().GetFingerprint() {
		t.Errorf("the notebook itself suffers: %v", d)
	}
}

func TestStolenTokenOnAPrivatePCStaysPending(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.deliver(t, asset, nil)
	private := c.newPC(t, "private PC", c.maker)
	private.start(t, c.token(t, asset))

	d := c.awaitState(t, asset, pending)
	if d.GetPending().GetFingerprint() != private.fingerprint {
		t.Errorf("operators are shown %q, the PC shows %q", d.GetPending().GetFingerprint(), private.fingerprint)
	}
	private.stop()
	private.start(t, "")
	private.says(t, "not enrolled yet")
	c.Operator(t, "reject", asset, "--reason", "nobody has this PC")
	if d := c.device(t, asset); d.GetId() != "" && d.GetAsset().GetState() == active {
		t.Errorf("a private PC has become %v", d)
	}
}

// With a token and two operators who have compared the fingerprint, a notebook
// that is on no list becomes a device; one operator twice is not enough.
func TestUnlistedNotebookIsApprovedByTwo(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.deliver(t, asset, nil)
	notebook := c.newPC(t, "notebook", c.maker)
	notebook.start(t, c.token(t, asset))
	c.awaitState(t, asset, pending)

	order := []string{"approve", asset, "--fingerprint", notebook.fingerprint, "--reason", "compared on the telephone"}
	c.Operator(t, order...)
	c.Operator(t, order...)
	if state := c.device(t, asset).GetAsset().GetState(); state != pending {
		t.Fatalf("one operator made it %s", state)
	}
	c.SecondOperator(t, order...)
	notebook.stop()
	notebook.start(t, "")
	c.awaitReport(t, asset, time.Time{})
	c.awaitState(t, asset, active)
}

func TestSpoofedSerialRaisesAnAlarm(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.importCSV(t, "asset_number;unit;serial\n"+asset+";inneres/it;PF-SERVICE-1\n")
	private := c.newPC(t, "private PC", c.maker)
	private.start(t, c.token(t, asset))
	c.awaitEvent(t, "device.serial_mismatch", "serial")
	if state := c.device(t, asset).GetAsset().GetState(); state == active || state == pending {
		t.Errorf("it has become %s", state)
	}
}

// A TPM whose certificate somebody has signed himself.
func TestForgedEndorsementCertificateIsRefused(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	forger := e2e.NewTPMMaker(t)
	private := c.newPC(t, "private PC", forger)
	c.deliver(t, asset, private) // even where its key is on the list
	private.start(t, c.token(t, asset))
	c.awaitEvent(t, "alarm.endorsement", "")
	if state := c.device(t, asset).GetAsset().GetState(); state == active || state == pending {
		t.Errorf("it has become %s", state)
	}
}

// A virtual machine, copied with its virtual TPM: everything is there twice.
func TestCopiedVirtualTPMSuspendsBoth(t *testing.T) {
	t.Parallel()
	c, notebook := delivered(t)
	notebook.stop()
	twin := c.newPC(t, "copy", nil)
	twin.tree = notebook.tree
	twin.copyDisk(t, notebook)
	twin.tpm = notebook.tpm.Copy(t)

	notebook.start(t, "")
	c.awaitReport(t, asset, time.Now())
	twin.start(t, "")
	d := c.awaitState(t, asset, suspended)
	if d.GetAsset().GetAlarm().GetKind() != "cloned" {
		t.Errorf("suspended with the alarm %v", d.GetAsset().GetAlarm())
	}
	c.awaitEvent(t, "alarm.cloned", "")
	c.await(t, asset, "offline", func(d *fleetv1.Device) bool { return !d.GetOnline() })
}

// Setting a notebook up anew clears its TPM. Only what an operator has opened
// lets it in again.
func TestClearedTPMIsRefusedAndWorksWithinTheWindow(t *testing.T) {
	t.Parallel()
	c, notebook := delivered(t)
	id := c.device(t, asset).GetId()
	notebook.stop()
	notebook.tpm.On(t)
	notebook.tpm.Clear(t)

	notebook.start(t, "")
	c.awaitEvent(t, "enrolment.refused", "reimage")
	notebook.stop()
	c.Operator(t, "reimage-window", asset, "--for", "1h", "--reason", "set up anew")
	notebook.start(t, "")
	d := c.awaitReport(t, asset, time.Now())
	if d.GetId() != id {
		t.Errorf("device %s has become %s", id, d.GetId())
	}
}

// An agent that says it has no TPM, on an asset that had one.
func TestDowngradeToSoftwareIsRefused(t *testing.T) {
	t.Parallel()
	c, notebook := delivered(t)
	without := c.newPC(t, "notebook without a TPM", nil)
	without.tree = notebook.tree
	without.start(t, c.token(t, asset))
	c.awaitEvent(t, "alarm.downgrade", "")
	if d := c.device(t, asset); d.GetKey().GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM || !d.GetOnline() {
		t.Errorf("the notebook suffers: %v", d)
	}
}

// A software key, copied: whoever renews first makes the other one's stale.
func TestCopiedSoftwareKeySuspendsBoth(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.deliver(t, asset, nil)
	c.AllowSoftwareKey(t, asset)
	notebook := c.newPC(t, "notebook", nil)
	notebook.start(t, c.token(t, asset))
	c.awaitReport(t, asset, time.Time{})

	private := c.newPC(t, "private PC", nil)
	private.tree = notebook.tree
	private.copyDisk(t, notebook)
	private.start(t, "")
	d := c.awaitState(t, asset, suspended)
	if kind := d.GetAsset().GetAlarm().GetKind(); kind != "cloned" && kind != "stale_key" {
		t.Errorf("suspended with the alarm %q", kind)
	}
	if !strings.Contains(c.Operator(t, "devices", asset), "hardware") {
		t.Error("the report does not say that the key is not bound to hardware")
	}
}

func TestResumingAfterAnAlarmTakesTwoAndANewEnrolment(t *testing.T) {
	t.Parallel()
	c := newCity(t)
	c.deliver(t, asset, nil)
	c.AllowSoftwareKey(t, asset)
	notebook := c.newPC(t, "notebook", nil)
	notebook.start(t, c.token(t, asset))
	c.awaitReport(t, asset, time.Time{})
	private := c.newPC(t, "private PC", nil)
	private.tree = notebook.tree
	private.copyDisk(t, notebook)
	private.start(t, "")
	c.awaitState(t, asset, suspended)
	private.stop()
	notebook.stop()

	order := []string{"resume", asset, "--reason", "the copy was found and destroyed"}
	c.Operator(t, order...)
	if state := c.device(t, asset).GetAsset().GetState(); state != suspended {
		t.Fatalf("one operator made it %s", state)
	}
	c.SecondOperator(t, order...)
	notebook.start(t, "")
	notebook.says(t, "no connection") // its key is nobody's any more
	if c.device(t, asset).GetOnline() {
		t.Error("the old key still opens")
	}
}

// Operators ask a TPM at any time what it vouches for, and approve or reject the
// values of a model.
func TestOperatorsAskForQuotesAndDecideAboutBootValues(t *testing.T) {
	t.Parallel()
	c, _ := delivered(t)
	before := c.device(t, asset).GetAttested()
	c.Operator(t, "collect", asset, "--quote")
	after := c.device(t, asset).GetAttested()
	if !after.GetQuotedAt().AsTime().After(before.GetQuotedAt().AsTime()) {
		t.Errorf("quoted at %s, before at %s", after.GetQuotedAt().AsTime(), before.GetQuotedAt().AsTime())
	}

	first := after.GetPcrs()[0]
	value := fmt.Sprintf("%d:%x", first.GetIndex(), first.GetSha256())
	if first.GetReference() != posturev1.PcrReference_PCR_REFERENCE_LEARNED {
		t.Fatalf("PCR %s is %s", value, first.GetReference())
	}
	decide := func(decision string) { c.Operator(t, "boot-references", decision, value, "--model", "Notebook 14") }
	decide("reject")
	d := c.await(t, asset, "refused for its start", func(d *fleetv1.Device) bool {
		return d.GetResult().GetVerdict() == posturev1.Verdict_VERDICT_DENY
	})
	if d.GetAttested().GetPcrs()[0].GetReference() != posturev1.PcrReference_PCR_REFERENCE_REJECTED {
		t.Errorf("refused, but PCR %s is %s", value, d.GetAttested().GetPcrs()[0].GetReference())
	}
	decide("approve")
	c.await(t, asset, "in again", func(d *fleetv1.Device) bool { return d.GetResult().GetVerdict() != posturev1.Verdict_VERDICT_DENY })
}
