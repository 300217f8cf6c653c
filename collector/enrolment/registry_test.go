package enrolment

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
	"time"

	"pfoertner/collector/store"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

const (
	deviceA = "8f14e45f-ceea-467f-9f2b-0123456789ab"
	deviceB = "8f14e45f-ceea-467f-9f2b-0123456789ac"
)

var (
	oldKey   = bytes.Repeat([]byte{1}, 32)
	newKey   = bytes.Repeat([]byte{2}, 32)
	thirdKey = bytes.Repeat([]byte{3}, 32)
)

// give makes an asset an enrolled device with oldKey, a software key.
func (h *house) give(t testing.TB, asset string) string {
	t.Helper()
	id := deviceA
	if _, taken := h.Device(id); taken {
		id = deviceB
	}
	h.allowSoftware(t, asset)
	if err := h.enrolSoftware(t, asset, id, oldKey); err != nil {
		t.Fatal(err)
	}
	return id
}

func TestStatesGoTheirWayOnly(t *testing.T) {
	h := newHouse(t)
	all := []fleetv1.AssetState{expected, pending, active, suspended, retired}
	for n, tc := range []struct {
		name     string
		enrolled bool
		from     fleetv1.AssetState
		to       []fleetv1.AssetState
	}{
		{"expected", false, expected, []fleetv1.AssetState{suspended, retired}},
		{"suspended before enrolment", false, suspended, []fleetv1.AssetState{expected, retired}},
		{"active", true, active, []fleetv1.AssetState{suspended, retired}},
		{"suspended", true, suspended, []fleetv1.AssetState{active, retired}},
		{"retired", true, retired, nil},
	} {
		for i, to := range all {
			number := fmt.Sprintf("NB-%d-%s", n, stateName(to))
			h.stock(t, number+";;;;;;;\n")
			if tc.enrolled {
				h.allowSoftware(t, number)
				if err := h.enrolSoftware(t, number, fmt.Sprintf("%s%d%d", deviceA[:34], n, i), oldKey); err != nil {
					t.Fatal(err)
				}
			}
			if tc.from == suspended || tc.from == retired {
				if _, err := h.SetState(t.Context(), "ops", number, tc.from, ""); err != nil {
					t.Fatal(err)
				}
			}
			d, err := h.SetState(t.Context(), "ops", number, to, "because")
			switch allowed := slices.Contains(tc.to, to) || to == tc.from; {
			case allowed && (err != nil || d.GetAsset().GetState() != to):
				t.Errorf("%s to %s: %v, %v", tc.name, stateName(to), d.GetAsset().GetState(), err)
			case !allowed && !errors.Is(err, ErrTransition):
				t.Errorf("%s to %s: %v", tc.name, stateName(to), err)
			}
			want := tc.from
			if slices.Contains(tc.to, to) {
				want = to
			}
			if got := h.device(t, number).GetAsset().GetState(); got != want {
				t.Errorf("%s to %s: is %s", tc.name, stateName(to), stateName(got))
			}
		}
	}
	if _, err := h.SetState(t.Context(), "ops", "nobody", suspended, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown asset: %v", err)
	}
	if r := h.audited(t, "device.suspended")[0]; r.Actor != "ops" || r.Details["reason"] != "because" || r.AssetNumber != "NB-0-suspended" {
		t.Errorf("audit: %+v", r)
	}
}

func TestBindingIsUnique(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\nNB-2;;;;;;;\nNB-3;;;;;;;\n")
	if _, err := h.SetState(t.Context(), "ops", "NB-3", retired, ""); err != nil {
		t.Fatal(err)
	}
	sum, other := bytes.Repeat([]byte{7}, 32), bytes.Repeat([]byte{8}, 32)
	for _, step := range []struct {
		name   string
		key    string
		sum    []byte
		remove bool
		want   error
		owner  string // of sum, afterwards
	}{
		{"unknown asset", "NB-9", sum, false, fs.ErrNotExist, ""},
		{"not a hash", "NB-1", sum[:31], false, fs.ErrInvalid, ""},
		{"bind", "NB-1", sum, false, nil, "NB-1"},
		{"again", "NB-1", sum, false, nil, "NB-1"},
		{"another asset", "NB-2", sum, false, fs.ErrExist, "NB-1"},
		{"remove from another", "NB-2", sum, true, fs.ErrExist, "NB-1"},
		{"remove what is not there", "NB-1", other, true, nil, "NB-1"},
		{"remove", "NB-1", sum, true, nil, ""},
		{"bind elsewhere", "NB-2", sum, false, nil, "NB-2"},
		{"retired asset", "NB-3", other, false, ErrTransition, "NB-2"},
	} {
		if err := h.Bind(t.Context(), "ops", step.key, step.sum, step.remove); !errors.Is(err, step.want) {
			t.Errorf("%s: %v, want %v", step.name, err, step.want)
		}
		for _, r := range []*Registry{h.Registry, h.reload(t)} {
			d, _ := r.DeviceOfCertificate(sum)
			if got := d.GetAsset().GetAssetNumber(); got != step.owner {
				t.Errorf("%s: belongs to %q, want %q", step.name, got, step.owner)
			}
		}
	}
	if bound, removed := len(h.audited(t, "certificate.bound")), len(h.audited(t, "certificate.unbound")); bound != 2 || removed != 1 {
		t.Errorf("audited %d bindings, %d removals", bound, removed)
	}
}

func TestSubscribersSeeCommittedChangesInOrder(t *testing.T) {
	h := newHouse(t)
	var states []string
	h.OnChange(func(d *fleetv1.Device) {
		stored, _ := h.reload(t).Find(d.GetAsset().GetAssetNumber())
		if stored.GetAsset().GetState() != d.GetAsset().GetState() {
			t.Errorf("told %s, stored is %s", d.GetAsset().GetState(), stored.GetAsset().GetState())
		}
		states = append(states, stateName(d.GetAsset().GetState()))
	})
	h.stock(t, "NB-1;;;;;;;\n")
	h.give(t, "NB-1")
	for _, s := range []fleetv1.AssetState{suspended, active, retired} {
		if _, err := h.SetState(t.Context(), "ops", "NB-1", s, ""); err != nil {
			t.Fatal(err)
		}
	}
	// Before enrolment two operators allow a software key.
	if want := []string{"expected", "expected", "active", "suspended", "active", "retired"}; !slices.Equal(states, want) {
		t.Errorf("told %v, want %v", states, want)
	}
}

func TestOnlyTheCurrentKeyOfAnActiveDeviceIsAccepted(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	expect := func(what string, key []byte, accepted bool) {
		t.Helper()
		if err := h.Accepts(id, key); (err == nil) != accepted || err != nil && !errors.Is(err, ErrNotAccepted) {
			t.Errorf("%s: %v", what, err)
		}
	}
	expect("its key", oldKey, true)
	expect("another key", newKey, false)
	expect("no key", nil, false)
	if err := h.Accepts(deviceB, oldKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("unknown device: %v", err)
	}
	if err := h.Accepts("", oldKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("no device: %v", err)
	}
	if _, err := h.SetState(t.Context(), "ops", id, suspended, ""); err != nil {
		t.Fatal(err)
	}
	expect("suspended", oldKey, false)
	if _, err := h.SetState(t.Context(), "ops", id, active, ""); err != nil {
		t.Fatal(err)
	}
	expect("resumed", oldKey, true)
	if err := h.reload(t).Accepts(id, oldKey); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// keysAre compares which of the three keys a device may use now.
func keysAre(t *testing.T, r *Registry, id, what string, want ...[]byte) {
	t.Helper()
	for _, key := range [][]byte{oldKey, newKey, thirdKey} {
		err := r.Accepts(id, key)
		wanted := slices.ContainsFunc(want, func(k []byte) bool { return bytes.Equal(k, key) })
		if (err == nil) != wanted || err != nil && !errors.Is(err, ErrNotAccepted) {
			t.Errorf("%s: key %d: %v", what, key[0], err)
		}
	}
}

func TestRenewalTakesOverWithTheNewKeysFirstUse(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	end := h.clock.Now().Add(96 * time.Hour)
	if err := h.Renew(t.Context(), id, thirdKey, newKey, "02", end); !errors.Is(err, ErrNotAccepted) {
		t.Fatalf("renewal asked for by a stranger's key: %v", err)
	}
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", end); err != nil {
		t.Fatal(err)
	}
	// The answer may be lost: until the new key is used the old one comes in.
	keysAre(t, h.Registry, id, "renewed", oldKey, newKey)
	if err := h.Settle(t.Context(), id, oldKey); err != nil {
		t.Fatal(err)
	}
	keysAre(t, h.Registry, id, "the old key is used", oldKey, newKey)
	if err := h.Settle(t.Context(), id, newKey); err != nil {
		t.Fatal(err)
	}
	keysAre(t, h.Registry, id, "the new key is used", newKey)
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		d, _ := r.Device(id)
		if got := d.GetCertificateExpiresAt().AsTime(); !got.Equal(end) {
			t.Errorf("certificate expires %v, want %v", got, end)
		}
	}
	if r := h.lastAudit(t, "device.renewed"); r.DeviceID != id || r.Details["certificate_serial"] != "02" {
		t.Errorf("audit: %+v", r)
	}
}

// The collector may be killed at any moment of a renewal: what it knows after
// the restart is what it knew before.
func TestRenewalSurvivesARestartAtAnyMoment(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	for _, moment := range []struct {
		name string
		do   func(r *Registry) error
		want [][]byte
	}{
		{"renewed", func(r *Registry) error {
			return r.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(96*time.Hour))
		}, [][]byte{oldKey, newKey}},
		{"the answer was lost, renewed again", func(r *Registry) error {
			return r.Renew(t.Context(), id, oldKey, thirdKey, "03", h.clock.Now().Add(96*time.Hour))
		}, [][]byte{oldKey, thirdKey}},
		{"the new key is used", func(r *Registry) error {
			return r.Settle(t.Context(), id, thirdKey)
		}, [][]byte{thirdKey}},
		{"renewed once more", func(r *Registry) error {
			return r.Renew(t.Context(), id, thirdKey, newKey, "04", h.clock.Now().Add(96*time.Hour))
		}, [][]byte{thirdKey, newKey}},
		{"enrolled anew", func(r *Registry) error {
			return (&house{Registry: r, clock: h.clock}).enrolSoftware(t, "NB-1", id, oldKey)
		}, [][]byte{oldKey}},
	} {
		r := h.reload(t)
		if err := moment.do(r); err != nil {
			t.Fatalf("%s: %v", moment.name, err)
		}
		keysAre(t, r, id, moment.name, moment.want...)
		keysAre(t, h.reload(t), id, moment.name+", restarted", moment.want...)
	}
}

func TestPreviousKeyEndsWithItsCertificateAlsoAfterARestart(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(96*time.Hour)); err != nil {
		t.Fatal(err)
	}
	h.clock.turn(72*time.Hour - 1)
	keysAre(t, h.reload(t), id, "at its last moment", oldKey, newKey)
	h.clock.turn(1)
	keysAre(t, h.reload(t), id, "after it", newKey)
	keysAre(t, h.Registry, id, "after it, without a restart", newKey)
}

// A first use that could not be stored is none: after a restart the old key
// would be back, so it is not said to be gone.
func TestFirstUseThatIsNotStoredIsAnError(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(96*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := h.db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.Settle(t.Context(), id, newKey); !errors.Is(err, store.ErrClosed) {
		t.Errorf("got %v", err)
	}
	keysAre(t, h.Registry, id, "not stored", oldKey, newKey)
}

func TestLostRenewalIsRepeatedByTheOldKey(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(96*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := h.Renew(t.Context(), id, oldKey, thirdKey, "03", h.clock.Now().Add(96*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := h.Accepts(id, newKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("the key of the lost answer: %v", err)
	}
	if err := h.Accepts(id, oldKey); err != nil {
		t.Errorf("old key: %v", err)
	}
	h.clock.turn(72 * time.Hour) // the end of the old certificate
	if err := h.Accepts(id, oldKey); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("old key after its certificate: %v", err)
	}
	if err := h.Accepts(id, thirdKey); err != nil {
		t.Errorf("newest key: %v", err)
	}
}

func TestNewEnrolmentReplacesTheKeyAtOnce(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\n")
	id := h.give(t, "NB-1")
	if err := h.Renew(t.Context(), id, oldKey, newKey, "02", h.clock.Now().Add(96*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := h.enrolSoftware(t, "NB-1", id, thirdKey); err != nil {
		t.Fatal(err)
	}
	for _, key := range [][]byte{oldKey, newKey} {
		if err := h.Accepts(id, key); !errors.Is(err, ErrNotAccepted) {
			t.Errorf("key %x: %v", key[0], err)
		}
	}
	if err := h.Accepts(id, thirdKey); err != nil {
		t.Error(err)
	}
	if err := h.enrolSoftware(t, "NB-1", deviceB, thirdKey); !errors.Is(err, ErrTransition) {
		t.Errorf("an asset with a second device id: %v", err)
	}
}

func TestTokens(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;;;;;\nNB-2;;;;;;;\n")
	token, expires, err := h.CreateToken(t.Context(), "ops", "NB-1", 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := h.clock.Now().Add(72 * time.Hour); !expires.Equal(want) {
		t.Errorf("expires %v, want %v", expires, want)
	}
	if len(token) != len("PFT")+8*5 {
		t.Errorf("token %q", token)
	}
	asset, err := h.db.UseToken(t.Context(), hashToken(" "+string(bytes.ToLower([]byte(token)))+"\n"), h.clock.Now())
	if err != nil || asset != "NB-1" {
		t.Errorf("typed by hand: %s, %v", asset, err)
	}
	second, _, err := h.CreateToken(t.Context(), "ops", "NB-1", time.Hour)
	if err != nil || second == token {
		t.Errorf("%s, %v", second, err)
	}
	if _, err := h.SetState(t.Context(), "ops", "NB-2", suspended, ""); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		asset    string
		lifetime time.Duration
		want     error
	}{
		"unknown asset":   {"NB-9", 0, fs.ErrNotExist},
		"suspended asset": {"NB-2", 0, ErrTransition},
		"too long":        {"NB-1", 72*time.Hour + 1, fs.ErrInvalid},
		"negative":        {"NB-1", -1, fs.ErrInvalid},
	} {
		if _, _, err := h.CreateToken(t.Context(), "ops", tc.asset, tc.lifetime); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	for _, r := range h.audited(t, "token.created") {
		for _, v := range r.Details {
			if v == token || v == second {
				t.Error("the audit log has the token")
			}
		}
	}
}
