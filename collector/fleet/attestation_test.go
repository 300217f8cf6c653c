package fleet

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/attestation"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const softwareKey = fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE

func TestADeviceIsShownWithWhatBindsItToItsHardware(t *testing.T) {
	h := build(t)
	soft := device(1, "inneres")
	soft.Key = &fleetv1.DeviceKey{Protection: softwareKey}
	waits := expected(2)
	waits.Asset.State = fleetv1.AssetState_ASSET_STATE_PENDING
	waits.Pending = &fleetv1.PendingEnrolment{Fingerprint: "0000-0000-0000-0000-0000-0000", Reason: "endorsement_bare"}
	h.add(t, soft, waits, device(3, "inneres"))
	h.openBook(t)
	h.serve(t)
	fleet := fleetv1.NewFleetServiceClient(h.operator(t, "anna"))
	page, err := fleet.ListDevices(t.Context(), &fleetv1.ListDevicesRequest{Summary: true})
	check(t, err)
	for i, want := range []struct {
		protection fleetv1.KeyProtection
		waits      bool
		attested   posturev1.ReadingState
	}{
		{softwareKey, false, posturev1.ReadingState_READING_STATE_NOT_APPLICABLE},
		{0, true, posturev1.ReadingState_READING_STATE_UNSPECIFIED},
		{0, false, posturev1.ReadingState_READING_STATE_FAILED},
	} {
		d := page.GetDevices()[i]
		if d.GetKey().GetProtection() != want.protection || (d.GetPending() != nil) != want.waits || d.GetAttested().GetReading().GetState() != want.attested {
			t.Errorf("%s: key %v, pending %v, attested %v", d.GetAsset().GetAssetNumber(), d.GetKey(), d.GetPending(), d.GetAttested())
		}
	}
	explained, err := fleet.Explain(t.Context(), byDevice(assetNumber(3)))
	check(t, err)
	if a := explained.GetExplanations()[0].GetDevice().GetAttested(); a.GetReading().GetState() != posturev1.ReadingState_READING_STATE_FAILED {
		t.Errorf("explained with %v", a)
	}
}

// The attestation key is replaced once a year, which is no new enrolment.
func TestAReplacedAttestationKeyIsShownWithItsAge(t *testing.T) {
	h := build(t)
	d := device(1, "inneres")
	d.Key = &fleetv1.DeviceKey{Protection: fleetv1.KeyProtection_KEY_PROTECTION_TPM}
	known := attestation.Known{DeviceID: d.GetId(), EndorsementKey: []byte("ek"), AttestationKey: []byte("ak"), Since: morning}
	check(t, h.store.SaveEnrolment(t.Context(), d, []byte("key"), "01", morning, &known))
	h.add(t, d)
	h.openBook(t)
	h.serve(t)
	fleet := fleetv1.NewFleetServiceClient(h.operator(t, "anna"))
	since := func(want time.Time) {
		t.Helper()
		answer, err := fleet.GetDevice(t.Context(), &fleetv1.GetDeviceRequest{Device: d.GetId()})
		check(t, err)
		if got := answer.GetDevice().GetKey().GetAttestationKeySince().AsTime(); !got.Equal(want) {
			t.Errorf("since %s, want %s", got, want)
		}
	}
	since(morning)
	h.pass(time.Hour)
	check(t, h.book.Replace(t.Context(), d.GetId(), []byte("new")))
	since(morning.Add(time.Hour))
}

func TestANotebookIsAskedToReportNow(t *testing.T) {
	h := build(t)
	soft := device(2, "inneres")
	soft.Key = &fleetv1.DeviceKey{Protection: softwareKey}
	h.add(t, device(1, "inneres"), soft, device(3, "inneres"), expected(4))
	h.presence[deviceID(1)], h.presence[deviceID(2)] = "1.1.0", "1.1.0"
	h.serve(t)
	fleet := fleetv1.NewFleetServiceClient(h.operator(t, "anna"))
	collect := func(ctx context.Context, asset string, quote bool) (*fleetv1.CollectResponse, error) {
		return fleet.Collect(ctx, &fleetv1.CollectRequest{Device: asset, Quote: quote})
	}

	h.notebook.answer = func(context.Context) error {
		h.report(t, deviceID(1), admit, 7, morning)
		return nil
	}
	answer, err := collect(t.Context(), assetNumber(1), true)
	check(t, err)
	if d := answer.GetDevice(); d.GetEvidence().GetPatch().GetPendingSecurity() != 7 || d.GetResult().GetVerdict() != admit {
		t.Errorf("the answer is not what was just reported: %v", d)
	}
	h.notebook.answer = nil
	_, err = collect(t.Context(), assetNumber(2), false)
	check(t, err)
	if want := []string{deviceID(1) + " true", deviceID(2) + " false"}; !slices.Equal(h.notebook.asked, want) {
		t.Errorf("asked %v, want %v", h.notebook.asked, want)
	}

	for _, tt := range []struct {
		asset string
		quote bool
		code  codes.Code
		text  string
	}{
		{"", false, codes.InvalidArgument, "no device named"},
		{"HB-0815", false, codes.NotFound, "HB-0815"},
		{assetNumber(2), true, codes.FailedPrecondition, "not in a TPM"},
		{assetNumber(3), false, codes.FailedPrecondition, "not connected"},
		{assetNumber(4), false, codes.FailedPrecondition, "not enrolled yet"},
	} {
		_, err := collect(t.Context(), tt.asset, tt.quote)
		refused(t, err, tt.code, tt.text)
	}
	if len(h.notebook.asked) != 2 {
		t.Errorf("asked %v", h.notebook.asked)
	}

	// Whoever waits is told when to stop, and stops waiting when he hangs up.
	h.notebook.answer = func(ctx context.Context) error {
		if end, ok := ctx.Deadline(); !ok || time.Until(end) > collectPatience {
			t.Error("the notebook is waited for without end")
		}
		return context.DeadlineExceeded
	}
	_, err = collect(t.Context(), assetNumber(1), false)
	refused(t, err, codes.DeadlineExceeded, "not answered within 30s")
	waiting, hungUp := make(chan struct{}), make(chan struct{})
	h.notebook.answer = func(ctx context.Context) error {
		close(waiting)
		<-ctx.Done()
		close(hungUp)
		return ctx.Err()
	}
	ctx, hangUp := context.WithCancel(t.Context())
	go func() {
		<-waiting
		hangUp()
	}()
	if _, err = collect(ctx, assetNumber(1), false); status.Code(err) != codes.Canceled {
		t.Errorf("got %v, want that the call was cancelled", err)
	}
	<-hungUp
	h.notebook.answer = func(context.Context) error { return status.Error(codes.Unavailable, "gone") }
	_, err = collect(t.Context(), assetNumber(1), false)
	refused(t, err, codes.FailedPrecondition, "no longer connected")
	h.notebook.answer = func(context.Context) error { return errors.New("the database is full") }
	_, err = collect(t.Context(), assetNumber(1), false)
	refused(t, err, codes.Internal, "the database is full")
}

func TestAuthoritiesAreListedAndAdded(t *testing.T) {
	h := build(t)
	h.serve(t)
	tpms := fleetv1.NewEndorsementServiceClient(h.operator(t, "anna"))
	add := func(file string, dryRun bool) (*fleetv1.AddAuthoritiesResponse, error) {
		return tpms.AddAuthorities(t.Context(), &fleetv1.AddAuthoritiesRequest{Certificates: []byte(file), DryRun: dryRun})
	}
	for _, dryRun := range []bool{true, false} {
		answer, err := add("CN=Zwischenstelle", dryRun)
		check(t, err)
		if a := answer.GetAdded(); len(a) != 1 || a[0].GetAddedBy() != "anna" {
			t.Errorf("dry run %t: added %v", dryRun, a)
		}
		all, err := tpms.ListAuthorities(t.Context(), &fleetv1.ListAuthoritiesRequest{})
		check(t, err)
		if kept := len(all.GetAuthorities()) == 1; kept == dryRun {
			t.Errorf("dry run %t: there are %v", dryRun, all.GetAuthorities())
		}
	}
	_, err := add("bad", false)
	refused(t, err, codes.InvalidArgument, "Bad Root: nobody reviewed it")
	if strings.Contains(status.Convert(err).Message(), "invalid argument") {
		t.Errorf("the reason is worded for programs: %v", err)
	}
	_, err = add("", false)
	refused(t, err, codes.InvalidArgument, "is empty")
	_, err = add(strings.Repeat("x", maxAuthorities+1), false)
	refused(t, err, codes.InvalidArgument, "at most")
}

func TestBootReferencesAreDecidedInTheOperatorsName(t *testing.T) {
	h := build(t)
	h.serve(t)
	boot := fleetv1.NewBootReferenceServiceClient(h.operator(t, "anna"))
	value := bytes.Repeat([]byte{7}, 32)
	set := func(pcr uint32, sum []byte, state posturev1.PcrReference) error {
		_, err := boot.SetBootReference(t.Context(), &fleetv1.SetBootReferenceRequest{Vendor: "Lenovo", Model: "T14", Pcr: pcr, Sha256: sum, State: state})
		return err
	}
	approved := posturev1.PcrReference_PCR_REFERENCE_APPROVED
	check(t, set(7, value, approved))
	for model, want := range map[string]int{"": 1, "T14": 1, "X1": 0} {
		list, err := boot.ListBootReferences(t.Context(), &fleetv1.ListBootReferencesRequest{Model: model})
		check(t, err)
		if len(list.GetReferences()) != want {
			t.Fatalf("model %q: %v", model, list.GetReferences())
		}
		for _, r := range list.GetReferences() {
			if r.GetDecidedBy() != "anna" || r.GetState() != approved || !r.GetDecidedAt().AsTime().Equal(morning) {
				t.Errorf("decided: %v", r)
			}
		}
	}
	refused(t, set(7, value[:31], approved), codes.InvalidArgument, "31 bytes")
	refused(t, set(24, value, approved), codes.InvalidArgument, "PCR 24")
	refused(t, set(7, value, 0), codes.InvalidArgument, "no decision named")
	refused(t, set(7, value, 17), codes.InvalidArgument, "no decision named")
}
