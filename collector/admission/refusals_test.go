package admission_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pfoertner/collector/admission"
	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// book is where refusals are recorded; it can be slow, or closed.
type book struct {
	mu       sync.Mutex
	takes    time.Duration
	closed   bool
	refusals map[string]*fleetv1.Explanation
	records  []audit.Record
}

func (b *book) SaveRefusal(ctx context.Context, x *fleetv1.Explanation, code string, records ...audit.Record) error {
	if err := b.AppendAudit(ctx, records...); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.refusals == nil {
		b.refusals = map[string]*fleetv1.Explanation{}
	}
	b.refusals[code] = x
	return nil
}

func (b *book) AppendAudit(ctx context.Context, records ...audit.Record) error {
	b.mu.Lock()
	takes, closed := b.takes, b.closed
	b.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return ctx.Err()
	}
	if closed {
		return errors.New("disk is full")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range records {
		if err := r.Validate(); err != nil {
			return err
		}
	}
	b.records = append(b.records, records...)
	return nil
}

func (b *book) set(takes time.Duration, closed bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.takes, b.closed = takes, closed
}

// refusal is what a code stands for; nil when nothing.
func (b *book) refusal(code string) *fleetv1.Explanation {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.refusals[code]
}

func (b *book) length() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.records)
}

// times is how many refusals the audit log accounts for, listed or counted.
func (b *book) times(t *testing.T, kind string) int {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	sum := 0
	for _, r := range b.records {
		if r.Kind != kind {
			continue
		}
		n := 1
		if text, repeated := r.Details["times"]; repeated {
			var err error
			if n, err = strconv.Atoi(text); err != nil {
				t.Fatal(err)
			}
		}
		sum += n
	}
	return sum
}

func TestARefusalCanBeResolvedByItsCode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		d := newDesk(t, admission.Options{Refusals: b})
		enter(d, 1, deny, time.Hour)
		d.SetDevice(notebook(2, suspended, 2))
		d.Ready()
		stranger, failing, blocked := ask(t, d, 9), ask(t, d, 1), ask(t, d, 2)
		synctest.Wait()
		if x := b.refusal(stranger.Code); x.GetGateway() != "vpn1" || string(x.GetCertificateSha256()) != string(certificate(9)) ||
			x.GetDevice() != nil || x.GetReason().GetDe() != stranger.Message.GetDe() || x.GetRefusedAt() == nil {
			t.Errorf("unknown identity: %v", x)
		}
		if x := b.refusal(blocked.Code); x.GetDevice().GetId() != deviceID(2) {
			t.Errorf("suspended: %v", x)
		}
		// The store has that one already, with its result.
		if x := b.refusal(failing.Code); x != nil {
			t.Errorf("a result's refusal was saved again: %v", x)
		}
		if n := b.times(t, "session.refused"); n != 3 {
			t.Errorf("%d refusals in the audit log, want 3", n)
		}
	})
}

func TestRecordingNeverMakesAnAdmissionWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{takes: time.Hour}
		d := newDesk(t, admission.Options{Refusals: b})
		d.Ready()
		begin := time.Now()
		for n := range 20_000 {
			ask(t, d, n)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("20,000 refusals waited %v for the database", took)
		}
		b.set(0, false)
		time.Sleep(3 * time.Hour)
		if n := b.times(t, "session.refused"); n != 20_000 {
			t.Errorf("%d of 20,000 refusals are accounted for", n)
		}
		if n := b.length(); n > 4100 {
			t.Errorf("%d records: a flood of strangers fills the log", n)
		}
	})
}

func TestRepetitionsBecomeANumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		d := newDesk(t, admission.Options{Refusals: b})
		d.Ready()
		for range 90 {
			for range 10 {
				ask(t, d, 9)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Minute)
		if n := b.times(t, "session.refused"); n != 900 {
			t.Errorf("%d of 900 refusals are accounted for", n)
		}
		if n := b.length(); n > 4 {
			t.Errorf("%d records for one identity in 90 s", n)
		}
	})
}

func TestARefusalIsNotLostWithTheDatabase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{closed: true}
		d := newDesk(t, admission.Options{Refusals: b})
		d.Ready()
		code := ask(t, d, 9).Code
		time.Sleep(10 * time.Second)
		if b.length() != 0 {
			t.Fatalf("%d records", b.length())
		}
		b.set(0, false)
		time.Sleep(time.Minute)
		if b.refusal(code) == nil || b.times(t, "session.refused") != 1 {
			t.Errorf("after the database came back: %d records", b.length())
		}
	})
}

func TestWhatWasRefusedIsRecordedBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{takes: time.Second}
		d := admission.NewDesk(admission.Options{Epoch: 1, Now: time.Now, Refusals: b})
		d.Ready()
		stop := errors.New("stopped by an operator")
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error)
		go func() { ended <- d.Run(ctx) }()
		synctest.Wait()
		code := ask(t, d, 9).Code
		cancel(stop)
		if err := <-ended; !errors.Is(err, stop) {
			t.Errorf("Run: %v", err)
		}
		if b.refusal(code) == nil {
			t.Error("lost at the end")
		}
	})
}

func TestQuarantineIsRecordedAsSuch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		d := newDesk(t, admission.Options{Refusals: b})
		d.SetDevice(notebook(1, active, 1))
		d.Ready()
		if a := ask(t, d, 1); a.Verdict != quarantine || len(a.Code) != 7 {
			t.Errorf("never reported: %+v", a)
		}
		synctest.Wait()
		if n := b.times(t, "session.quarantined"); n != 1 || b.times(t, "session.refused") != 0 {
			t.Errorf("%d records of a quarantine, %d of a refusal", n, b.times(t, "session.refused"))
		}
	})
}
