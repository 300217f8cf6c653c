package enrolment

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const fingerprint = "AAAA-BBBB-CCCC-DDDD-EEEE-FFFF"

func approve(asset, fingerprint string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "compared on the telephone", Action: &fleetv1.Order_Approve{Approve: &fleetv1.Approve{Fingerprint: fingerprint}}}
}

func exchangeTPM(asset string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "new mainboard", Action: &fleetv1.Order_ExchangeTpm{ExchangeTpm: &fleetv1.ExchangeTpm{}}}
}

func resume(asset string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "set up anew", Action: &fleetv1.Order_Resume{Resume: &fleetv1.Resume{}}}
}

func suspend(asset string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "lost", Action: &fleetv1.Order_Suspend{Suspend: &fleetv1.Suspend{}}}
}

func retire(asset string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "sold", Action: &fleetv1.Order_Retire{Retire: &fleetv1.Retire{}}}
}

func reject(asset string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Reason: "not ours", Action: &fleetv1.Order_Reject{Reject: &fleetv1.Reject{}}}
}

func revoke(asset string) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Action: &fleetv1.Order_RevokeSoftwareKey{RevokeSoftwareKey: &fleetv1.RevokeSoftwareKey{}}}
}

func reimage(asset string, lifetime time.Duration) *fleetv1.Order {
	return &fleetv1.Order{Device: asset, Action: &fleetv1.Order_OpenReimageWindow{OpenReimageWindow: &fleetv1.OpenReimageWindow{Lifetime: durationpb.New(lifetime)}}}
}

var (
	ekA = bytes.Repeat([]byte{0xa}, 32)
	ekB = bytes.Repeat([]byte{0xb}, 32)
)

// wait lets a notebook with an endorsement key wait for approval.
func (h *house) wait(t testing.TB, asset string, ek []byte, fingerprint string) {
	t.Helper()
	err := h.SetPending(t.Context(), asset, &fleetv1.PendingEnrolment{
		EndorsementKeySha256: ek, Fingerprint: fingerprint, Reason: "endorsement_unknown",
	}, map[string]string{"serial": "S1"})
	if err != nil {
		t.Fatal(err)
	}
}

// giveTPM makes an asset an enrolled device with oldKey in the TPM of ek.
func (h *house) giveTPM(t testing.TB, asset string, ek []byte) string {
	t.Helper()
	h.wait(t, asset, ek, fingerprint)
	h.order(t, approve(asset, fingerprint), "anna", "bert")
	if err := h.enrolTPM(t, asset, deviceA, oldKey, ek); err != nil {
		t.Fatal(err)
	}
	return deviceA
}

// again is the house after a restart.
func (h *house) again(t testing.TB) *house {
	return &house{Registry: h.reload(t), db: h.db, clock: h.clock, path: h.path}
}

func TestWhatWeakensTakesTwoOperators(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, h *house)
		order   func(h *house) *fleetv1.Order
		kind    string
		check   func(a *fleetv1.Asset) bool // of what it does
	}{
		"approve": {
			func(t *testing.T, h *house) { h.wait(t, "NB-1", ekA, fingerprint) },
			func(*house) *fleetv1.Order { return approve("NB-1", fingerprint) },
			"device.approved",
			func(a *fleetv1.Asset) bool { return approved(a, ekA) },
		},
		"exchange the TPM": {
			func(t *testing.T, h *house) { h.giveTPM(t, "NB-1", ekA) },
			func(*house) *fleetv1.Order { return exchangeTPM("NB-1") },
			"device.tpm_exchange",
			func(a *fleetv1.Asset) bool { return blocked(a, ekA) },
		},
		"allow a software key": {
			func(*testing.T, *house) {},
			func(h *house) *fleetv1.Order { return allowSoftware("NB-1", h.clock.Now().Add(1000*time.Hour)) },
			"software_key.allowed",
			func(a *fleetv1.Asset) bool { return a.GetSoftwareKey() != nil },
		},
		"resume after an alarm": {
			func(t *testing.T, h *house) {
				if err := h.Alarm(t.Context(), h.giveTPM(t, "NB-1", ekA), "cloned", "two streams"); err != nil {
					t.Fatal(err)
				}
			},
			func(*house) *fleetv1.Order { return resume("NB-1") },
			"device.resumed",
			func(a *fleetv1.Asset) bool { return a.GetState() == expected && a.GetAlarm() == nil },
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.stock(t, "NB-1;;;S1;;;;\n")
			tc.prepare(t, h)
			before, order := h.device(t, "NB-1"), tc.order(h)
			records := len(h.audited(t, tc.kind))

			// One operator, as often and however spelled, is one.
			first := h.order(t, order, "clara")
			for _, one := range []string{"clara", "Clara", " clara "} {
				answer := h.order(t, order, one)
				if answer.GetDone() || answer.GetProposal().GetId() != first.GetProposal().GetId() || !proto.Equal(answer.GetDevice(), before) {
					t.Fatalf("%q alone: %v", one, answer)
				}
			}
			if waiting := h.Proposals(); len(waiting) != 1 || waiting[0].GetProposedBy() != "clara" || waiting[0].GetAssetNumber() != "NB-1" {
				t.Fatalf("waiting: %v", waiting)
			}
			if r := h.lastAudit(t, "order.proposed"); r.Actor != "clara" || r.AssetNumber != "NB-1" || r.Details["proposal"] != first.GetProposal().GetId() {
				t.Errorf("audit: %+v", r)
			}
			if !proto.Equal(h.again(t).device(t, "NB-1"), before) || len(h.audited(t, tc.kind)) != records {
				t.Error("a proposal had an effect")
			}

			// Another one, who has other words for it, after a restart.
			h = h.again(t)
			second := proto.CloneOf(order)
			second.Reason = "I agree"
			answer := h.order(t, second, "dora")
			if !answer.GetDone() || answer.GetProposal().GetConfirmedBy() != "dora" || !tc.check(answer.GetDevice().GetAsset()) {
				t.Fatalf("confirmed: %v", answer)
			}
			for _, r := range []*Registry{h.Registry, h.reload(t)} {
				if d, _ := r.Find("NB-1"); !tc.check(d.GetAsset()) || len(r.Proposals()) != 0 {
					t.Errorf("afterwards: %v, waiting %v", d, r.Proposals())
				}
			}
			effect, confirmed := h.lastAudit(t, tc.kind), h.lastAudit(t, "order.confirmed")
			if effect.Details["proposed_by"] != "clara" || effect.Details["confirmed_by"] != "dora" || effect.Details["reason"] != order.GetReason() {
				t.Errorf("audit: %+v", effect)
			}
			if confirmed.Actor != "dora" || confirmed.Details["reason"] != "I agree" || confirmed.Details["proposal"] != first.GetProposal().GetId() {
				t.Errorf("audit: %+v", confirmed)
			}
		})
	}
}

func TestOneOperatorIsEnoughForWhatWeakensNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(t *testing.T, h *house)
		order   *fleetv1.Order
		kind    string
		check   func(d *fleetv1.Device) bool
	}{
		"suspend": {
			func(t *testing.T, h *house) { h.giveTPM(t, "NB-1", ekA) },
			suspend("NB-1"), "device.suspended",
			func(d *fleetv1.Device) bool { return d.GetAsset().GetState() == suspended },
		},
		"resume": {
			func(t *testing.T, h *house) { h.giveTPM(t, "NB-1", ekA); h.order(t, suspend("NB-1"), "anna") },
			resume("NB-1"), "device.resumed",
			func(d *fleetv1.Device) bool { return d.GetAsset().GetState() == active },
		},
		"resume what never enrolled": {
			func(t *testing.T, h *house) { h.order(t, suspend("NB-1"), "anna") },
			resume("NB-1"), "device.resumed",
			func(d *fleetv1.Device) bool { return d.GetAsset().GetState() == expected },
		},
		"resume what waits": {
			func(t *testing.T, h *house) { h.wait(t, "NB-1", ekA, fingerprint); h.order(t, suspend("NB-1"), "anna") },
			resume("NB-1"), "device.resumed",
			func(d *fleetv1.Device) bool { return d.GetAsset().GetState() == pending && d.GetPending() != nil },
		},
		"retire": {
			func(t *testing.T, h *house) { h.giveTPM(t, "NB-1", ekA) },
			retire("NB-1"), "device.retired",
			func(d *fleetv1.Device) bool {
				return d.GetAsset().GetState() == retired && d.GetKey() == nil && d.GetCertificateExpiresAt() == nil
			},
		},
		"reject": {
			func(t *testing.T, h *house) { h.wait(t, "NB-1", ekA, fingerprint) },
			reject("NB-1"), "device.rejected",
			func(d *fleetv1.Device) bool {
				return d.GetAsset().GetState() == expected && d.GetPending() == nil && blocked(d.GetAsset(), ekA)
			},
		},
		"open a re-image window": {
			func(t *testing.T, h *house) { h.giveTPM(t, "NB-1", ekA) },
			reimage("NB-1", 0), "device.reimage_window",
			func(d *fleetv1.Device) bool { return d.GetAsset().GetReimageUntil() != nil },
		},
		"revoke a software key": {
			func(t *testing.T, h *house) { h.give(t, "NB-1") },
			revoke("NB-1"), "software_key.revoked",
			func(d *fleetv1.Device) bool {
				return d.GetAsset().GetSoftwareKey() == nil && d.GetAsset().GetState() == suspended
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.stock(t, "NB-1;;;S1;;;;\n")
			tc.prepare(t, h)
			answer := h.order(t, tc.order, "clara")
			if !answer.GetDone() || answer.GetProposal() != nil || !tc.check(answer.GetDevice()) {
				t.Fatalf("got %v", answer)
			}
			if d := h.again(t).device(t, "NB-1"); !proto.Equal(d, answer.GetDevice()) {
				t.Errorf("after a restart %v, want %v", d, answer.GetDevice())
			}
			if r := h.lastAudit(t, tc.kind); r.Actor != "clara" || r.AssetNumber != "NB-1" || r.Details["reason"] != tc.order.GetReason() {
				t.Errorf("audit: %+v", r)
			}
		})
	}
}

func TestAnotherOrderDoesNotConfirm(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	until := h.clock.Now().Add(1000 * time.Hour)
	h.order(t, allowSoftware("NB-1", until), "anna")
	for name, other := range map[string]*fleetv1.Order{
		"a later end":   allowSoftware("NB-1", until.Add(time.Hour)),
		"another asset": allowSoftware("NB-2", until),
	} {
		if h.order(t, other, "bert").GetDone() {
			t.Errorf("%s was taken for the same", name)
		}
	}
	if n := len(h.Proposals()); n != 3 {
		t.Errorf("%d orders wait, want 3", n)
	}
	h.giveTPM(t, "NB-2", ekA)
	h.order(t, exchangeTPM("NB-2"), "anna")
	if h.order(t, allowSoftware("NB-2", until.Add(time.Minute)), "bert").GetDone() {
		t.Error("another action was taken for the same")
	}
	// By its device id it is the same asset.
	if !h.order(t, exchangeTPM(deviceA), "bert").GetDone() {
		t.Error("the same order by device id was not taken for the same")
	}
}

func TestOrdersThatMakeNoSense(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\nNB-3;;;S3;;;;\nNB-4;;;S4;;;;\nNB-5;;;S5;;;;\n")
	h.giveTPM(t, "NB-1", ekA)
	h.wait(t, "NB-3", ekB, fingerprint)
	h.order(t, retire("NB-4"), "anna")
	h.order(t, suspend("NB-5"), "anna")
	now := h.clock.Now()
	silent := allowSoftware("NB-2", now.Add(time.Hour))
	silent.Reason = " "
	control := suspend("NB-1")
	control.Reason = "a\x00b"
	before := h.All()
	for name, tc := range map[string]struct {
		actor string
		order *fleetv1.Order
		want  error
	}{
		"no operator":                     {" ", suspend("NB-1"), fs.ErrInvalid},
		"no order":                        {"anna", nil, fs.ErrNotExist},
		"no action":                       {"anna", &fleetv1.Order{Device: "NB-1"}, fs.ErrInvalid},
		"unknown asset":                   {"anna", suspend("NB-9"), fs.ErrNotExist},
		"no reason for what takes two":    {"anna", silent, fs.ErrInvalid},
		"a reason nobody can read":        {"anna", control, fs.ErrInvalid},
		"software key without an end":     {"anna", &fleetv1.Order{Device: "NB-2", Reason: "r", Action: &fleetv1.Order_AllowSoftwareKey{}}, fs.ErrInvalid},
		"software key that has ended":     {"anna", allowSoftware("NB-2", now), fs.ErrInvalid},
		"software key for over a year":    {"anna", allowSoftware("NB-2", now.AddDate(1, 0, 1)), fs.ErrInvalid},
		"approve what does not wait":      {"anna", approve("NB-2", fingerprint), ErrTransition},
		"approve another fingerprint":     {"anna", approve("NB-3", "AAAA-BBBB-CCCC-DDDD-EEEE-GGGG"), ErrTransition},
		"approve no fingerprint":          {"anna", approve("NB-3", ""), ErrTransition},
		"approve half a fingerprint":      {"anna", approve("NB-3", fingerprint[:14]), ErrTransition},
		"reject what does not wait":       {"anna", reject("NB-2"), ErrTransition},
		"exchange no TPM":                 {"anna", exchangeTPM("NB-2"), ErrTransition},
		"exchange the TPM of a suspended": {"anna", exchangeTPM("NB-5"), ErrTransition},
		"re-image without a known TPM":    {"anna", reimage("NB-2", time.Hour), ErrTransition},
		"re-image a suspended one":        {"anna", reimage("NB-5", time.Hour), ErrTransition},
		"re-image for over a week":        {"anna", reimage("NB-1", 7*24*time.Hour+1), fs.ErrInvalid},
		"re-image for less than nothing":  {"anna", reimage("NB-1", -time.Hour), fs.ErrInvalid},
		"revoke what is not allowed":      {"anna", revoke("NB-1"), ErrTransition},
		"anything with a retired one":     {"anna", allowSoftware("NB-4", now.Add(time.Hour)), ErrTransition},
		"resume a retired one":            {"anna", resume("NB-4"), ErrTransition},
	} {
		if answer, err := h.GiveOrder(t.Context(), tc.actor, tc.order); !errors.Is(err, tc.want) || answer != nil {
			t.Errorf("%s: %v, %v, want %v", name, answer, err, tc.want)
		}
	}
	if len(h.Proposals()) != 0 || len(h.All()) != len(before) {
		t.Errorf("waiting: %v", h.Proposals())
	}
	for _, d := range before {
		if !proto.Equal(d, h.device(t, d.GetAsset().GetAssetNumber())) {
			t.Errorf("%s changed", d.GetAsset().GetAssetNumber())
		}
	}
}

func TestFingerprintsAreComparedAsPeopleReadThem(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	h.wait(t, "NB-1", ekA, fingerprint)
	h.order(t, approve("NB-1", strings.ToLower(fingerprint)), "anna")
	answer := h.order(t, approve("NB-1", "AAAABBBB CCCCDDDD EEEEFFFF"), "bert")
	if d := answer.GetDevice(); !answer.GetDone() || d.GetPending() != nil || !approved(d.GetAsset(), ekA) || d.GetAsset().GetState() != pending {
		t.Errorf("got %v", answer)
	}
}

// What two persons decide about is what both of them saw.
func TestApprovalOfWhatChangedMeanwhileFails(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, h *house){
		"rejected":                      func(t *testing.T, h *house) { h.order(t, reject("NB-1"), "clara") },
		"another notebook took it over": func(t *testing.T, h *house) { h.wait(t, "NB-1", ekB, "BBBB-BBBB-CCCC-DDDD-EEEE-FFFF") },
		"suspended":                     func(t *testing.T, h *house) { h.order(t, suspend("NB-1"), "clara") },
		"forgotten": func(t *testing.T, h *house) {
			h.clock.turn(PendingLifetime - time.Hour)
			h.order(t, approve("NB-1", fingerprint), "anna") // again, as the first one has expired
			h.clock.turn(2 * time.Hour)
			if _, err := h.endWhatIsDue(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.stock(t, "NB-1;;;S1;;;;\n")
			h.wait(t, "NB-1", ekA, fingerprint)
			h.order(t, approve("NB-1", fingerprint), "anna")
			change(t, h)
			if len(h.Proposals()) != 0 || len(h.again(t).Proposals()) != 0 {
				t.Errorf("still waiting: %v", h.Proposals())
			}
			if r := h.lastAudit(t, "order.withdrawn"); r.AssetNumber != "NB-1" || r.Actor != "" || r.Details["why"] != "overtaken" {
				t.Errorf("audit: %+v", r)
			}
			if _, err := h.GiveOrder(t.Context(), "bert", approve("NB-1", fingerprint)); !errors.Is(err, ErrTransition) {
				t.Errorf("approved all the same: %v", err)
			}
			if a := h.device(t, "NB-1").GetAsset(); approved(a, ekA) || approved(a, ekB) {
				t.Errorf("approved: %v", a)
			}
		})
	}
}

func TestNewAlarmOvertakesTheResumption(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	alarm := func(kind string) {
		t.Helper()
		if err := h.Alarm(t.Context(), id, kind, ""); err != nil {
			t.Fatal(err)
		}
	}
	alarm("cloned")
	h.order(t, resume("NB-1"), "anna", "bert")
	alarm("attestation")
	if h.order(t, resume("NB-1"), "bert").GetDone() {
		t.Error("the order about the first alarm counts for the second")
	}
}

// One operator must not fill the store with what nobody else has agreed to.
func TestProposalsForOneAssetAreBounded(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	propose := func(asset string, day int) error {
		_, err := h.GiveOrder(t.Context(), "mallory", allowSoftware(asset, h.clock.Now().AddDate(0, 0, day)))
		return err
	}
	for day := range maxProposals {
		if err := propose("NB-1", day+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := propose("NB-1", 300); !errors.Is(err, ErrTransition) {
		t.Errorf("one more: %v", err)
	}
	if err := propose("NB-2", 1); err != nil {
		t.Errorf("for another asset: %v", err)
	}
	if err := h.WithdrawProposal(t.Context(), "anna", h.Proposals()[0].GetId()); err != nil {
		t.Fatal(err)
	}
	if err := propose("NB-1", 300); err != nil {
		t.Errorf("after one was withdrawn: %v", err)
	}
}

func TestProposalsExpire(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	order := allowSoftware("NB-1", h.clock.Now().Add(1000*time.Hour))
	p := h.order(t, order, "anna").GetProposal()
	if want := h.clock.Now().Add(72 * time.Hour); !p.GetExpiresAt().AsTime().Equal(want) {
		t.Errorf("expires %v, want %v", p.GetExpiresAt().AsTime(), want)
	}
	h.clock.turn(72 * time.Hour)
	if len(h.Proposals()) != 0 {
		t.Error("an expired proposal waits")
	}
	if err := h.WithdrawProposal(t.Context(), "bert", p.GetId()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("withdrawn after its end: %v", err)
	}
	if h.order(t, order, "bert").GetDone() {
		t.Error("an expired proposal was confirmed")
	}
}

func TestWithdrawnProposalIsNotConfirmed(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	order := allowSoftware("NB-1", h.clock.Now().Add(1000*time.Hour))
	p := h.order(t, order, "anna").GetProposal()
	if err := h.WithdrawProposal(t.Context(), "clara", p.GetId()); err != nil {
		t.Fatal(err)
	}
	if err := h.WithdrawProposal(t.Context(), "clara", p.GetId()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("withdrawn twice: %v", err)
	}
	if r := h.lastAudit(t, "order.withdrawn"); r.Actor != "clara" || r.AssetNumber != "NB-1" || r.Details["proposed_by"] != "anna" || r.Details["why"] != "withdrawn" {
		t.Errorf("audit: %+v", r)
	}
	if h = h.again(t); len(h.Proposals()) != 0 || h.order(t, order, "bert").GetDone() {
		t.Error("it waits all the same")
	}
}

// Many operators at the same time: one proposes, one confirms, the others
// propose and confirm after that or find it waiting; each effect has two.
func TestOperatorsAtTheSameTimeAreStillTwo(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	order := allowSoftware("NB-1", h.clock.Now().Add(1000*time.Hour))
	var wg sync.WaitGroup
	for _, operator := range []string{"anna", "bert", "clara", "dora", "emil"} {
		wg.Go(func() {
			if _, err := h.GiveOrder(t.Context(), operator, order); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	effects := h.audited(t, "software_key.allowed")
	if len(effects) != 2 || len(h.Proposals()) != 1 {
		t.Errorf("%d effects of five orders, %d wait", len(effects), len(h.Proposals()))
	}
	for _, r := range effects {
		if r.Details["proposed_by"] == r.Details["confirmed_by"] || r.Details["proposed_by"] == "" {
			t.Errorf("by one: %+v", r)
		}
	}
}

func TestSetStateNeverDoesWhatTakesTwo(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	if err := h.Alarm(t.Context(), id, "cloned", ""); err != nil {
		t.Fatal(err)
	}
	for _, state := range []fleetv1.AssetState{active, expected, pending} {
		for _, operator := range []string{"anna", "bert"} {
			if _, err := h.SetState(t.Context(), operator, "NB-1", state, "please"); !errors.Is(err, ErrTransition) {
				t.Errorf("%s: %v", stateName(state), err)
			}
		}
	}
	if a := h.device(t, "NB-1").GetAsset(); a.GetState() != suspended || a.GetAlarm() == nil {
		t.Errorf("now %v", a)
	}
	if _, err := h.SetState(t.Context(), "anna", "NB-1", retired, "sold"); err != nil {
		t.Errorf("retiring takes one: %v", err)
	}
}

func TestExchangedTPMIsNotAcceptedAnyMore(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	id := h.giveTPM(t, "NB-1", ekA)
	cut := h.order(t, exchangeTPM("NB-1"), "anna", "bert").GetDevice()
	if cut.GetId() != id || cut.GetAsset().GetState() != expected || cut.GetKey() != nil || cut.GetCertificateExpiresAt() != nil {
		t.Errorf("exchanged: %v", cut)
	}
	for _, h := range []*house{h, h.again(t)} {
		if err := h.Accepts(id, oldKey); !errors.Is(err, ErrNotAccepted) {
			t.Errorf("its key: %v", err)
		}
		if err := h.enrolTPM(t, "NB-1", id, newKey, ekA); !errors.Is(err, ErrTransition) {
			t.Errorf("the old TPM enrols: %v", err)
		}
		if err := h.SetPending(t.Context(), "NB-1", &fleetv1.PendingEnrolment{EndorsementKeySha256: ekA, Fingerprint: fingerprint}, nil); !errors.Is(err, ErrTransition) {
			t.Errorf("the old TPM waits for approval: %v", err)
		}
		// It stays a tombstone of this asset.
		if err := h.SetPending(t.Context(), "NB-2", &fleetv1.PendingEnrolment{EndorsementKeySha256: ekA, Fingerprint: fingerprint}, nil); !errors.Is(err, fs.ErrExist) {
			t.Errorf("the old TPM comes with another asset: %v", err)
		}
		if d, _ := h.DeviceOfEndorsement(ekA); d.GetId() != id {
			t.Errorf("the old TPM is of %v", d)
		}
	}
	h.giveTPM(t, "NB-1", ekB)
	if err := h.Accepts(id, oldKey); err != nil {
		t.Errorf("the new TPM: %v", err)
	}
}

func TestRejectedTPMCannotAskAgainForThisAsset(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	h.wait(t, "NB-1", ekA, fingerprint)
	h.order(t, reject("NB-1"), "anna")
	h = h.again(t)
	if err := h.SetPending(t.Context(), "NB-1", &fleetv1.PendingEnrolment{EndorsementKeySha256: ekA, Fingerprint: fingerprint}, nil); !errors.Is(err, ErrTransition) {
		t.Errorf("asks again: %v", err)
	}
	// It may have been the wrong token: where it belongs it can ask.
	h.wait(t, "NB-2", ekA, fingerprint)
	if d, _ := h.DeviceOfEndorsement(ekA); d.GetAsset().GetAssetNumber() != "NB-2" {
		t.Errorf("it waits for %v", d)
	}
}

func TestPermissionForASoftwareKeyNamesBothOperatorsAndWhy(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	until := h.clock.Now().AddDate(1, 0, 0)
	second := allowSoftware("NB-1", until)
	second.Reason = "yes"
	h.order(t, allowSoftware("NB-1", until), "anna")
	want := &fleetv1.SoftwareKeyPermission{
		Reason: "old notebook", Until: timestamppb.New(until), AllowedBy: []string{"anna", "bert"}, AllowedAt: timestamppb.New(h.clock.Now()),
	}
	if got := h.order(t, second, "bert").GetDevice().GetAsset().GetSoftwareKey(); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// A store that fails must leave the memory as it was.
func TestOrderThatIsNotStoredChangesNothing(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\n")
	h.wait(t, "NB-1", ekA, fingerprint)
	h.order(t, approve("NB-1", fingerprint), "anna")
	whole, before := h.store, h.device(t, "NB-1")
	h.store = failing{whole}
	if _, err := h.GiveOrder(t.Context(), "bert", approve("NB-1", fingerprint)); !errors.Is(err, errDisk) {
		t.Fatal(err)
	}
	if !proto.Equal(before, h.device(t, "NB-1")) || len(h.Proposals()) != 1 {
		t.Error("memory has what the store has not")
	}
	h.store = whole
	if !h.order(t, approve("NB-1", fingerprint), "bert").GetDone() {
		t.Error("not confirmed when the store was back")
	}
}
