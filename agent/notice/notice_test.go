package notice

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// desk is a person who may be there, and counts the notices.
type desk struct {
	mu     sync.Mutex
	locale string
	here   bool
	broken bool
	seen   []Text
}

func (d *desk) Show(_ context.Context, text func(string) Text) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.broken:
		return 0, errors.New("broken")
	case !d.here:
		return 0, nil
	}
	d.seen = append(d.seen, text(d.locale))
	return 1, nil
}

func (d *desk) arrives() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.here = true
}

func (d *desk) notices() []Text {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

// refusal is a result that refuses access with a code.
func refusal(code string) *posturev1.Result {
	return &posturev1.Result{
		Verdict: posturev1.Verdict_VERDICT_QUARANTINE, Code: code,
		Findings: []*posturev1.Finding{
			{
				Outcome: posturev1.Outcome_OUTCOME_FAIL, Effect: posturev1.Effect_EFFECT_QUARANTINE,
				Reason: &posturev1.LocalText{De: "Auf Ihrem Dienst-Notebook fehlen seit 16 Tagen Sicherheitsupdates.", En: "Your service notebook has lacked security updates for 16 days."},
				Remedy: &posturev1.LocalText{De: "Starten Sie das Gerät neu.", En: "Restart the device."},
			},
			{
				Outcome: posturev1.Outcome_OUTCOME_FAIL, Effect: posturev1.Effect_EFFECT_WARN,
				Reason: &posturev1.LocalText{De: "Nur ein Hinweis.", En: "Only a remark."},
			},
		},
	}
}

// ringing is a bell at work inside a synctest bubble.
func ringing(t *testing.T, d *desk, file string) *Bell {
	t.Helper()
	b := New(Options{Screens: d, File: file, Now: time.Now, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { b.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return b
}

func memoryFile(t *testing.T) string { return filepath.Join(t.TempDir(), "notices.json") }

func TestNoticeSaysWhyWhatToDoAndTheCode(t *testing.T) {
	for locale, want := range map[string]Text{
		"de-DE": {"Eingeschränkter Zugang zum Verwaltungsnetz (Quarantäne)",
			"Auf Ihrem Dienst-Notebook fehlen seit 16 Tagen Sicherheitsupdates.\nSo beheben Sie es: Starten Sie das Gerät neu.\n\n" +
				"Hilft das nicht, nennen Sie Ihrer IT-Stelle die Vorgangsnummer 7K4-QX2."},
		"en_GB.UTF-8": {"Limited access to the administration's network (quarantine)",
			"Your service notebook has lacked security updates for 16 days.\nWhat to do: Restart the device.\n\n" +
				"If that does not help, give your IT service the code 7K4-QX2."},
	} {
		file := memoryFile(t)
		synctest.Test(t, func(t *testing.T) {
			d := &desk{here: true, locale: locale}
			ringing(t, d, file).Judged(refusal("7K4-QX2"))
			synctest.Wait()
			if n := d.notices(); len(n) != 1 || n[0] != want {
				t.Errorf("%s: shown are %q", locale, n)
			}
		})
	}
}

func TestNoticeComesOncePerCauseAndDay(t *testing.T) {
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{here: true}
		b := ringing(t, d, file)
		told := func(code string, want int, when string) {
			t.Helper()
			b.Judged(refusal(code))
			synctest.Wait()
			if n := len(d.notices()); n != want {
				t.Errorf("%s: %d notices, want %d", when, n, want)
			}
		}
		told("7K4-QX2", 1, "first")
		time.Sleep(15 * time.Minute)
		told("7K4-QX2", 1, "the same again")
		told("AAA-BBB", 2, "another cause")
		told("7K4-QX2", 2, "the first cause again")
		time.Sleep(24 * time.Hour)
		told("7K4-QX2", 3, "the next day")
	})
}

func TestRestartOfTheServiceIsNoNewDay(t *testing.T) {
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{here: true}
		ringing(t, d, file).Judged(refusal("7K4-QX2"))
		synctest.Wait()
		ringing(t, d, file).Judged(refusal("7K4-QX2"))
		synctest.Wait()
		if n := len(d.notices()); n != 1 {
			t.Errorf("%d notices", n)
		}
	})
}

func TestNobodyIsDisturbedWithoutARefusal(t *testing.T) {
	warning := refusal("")
	warning.Verdict = posturev1.Verdict_VERDICT_ADMIT
	switched := refusal("7K4-QX2")
	switched.WithoutNotice = true
	odd := refusal("7K4-QX2") // admitted, and yet with a code
	odd.Verdict = posturev1.Verdict_VERDICT_ADMIT
	for name, r := range map[string]*posturev1.Result{
		"warnings": warning, "switched off by the policy": switched, "admitted": odd,
		"refused without a code": refusal(""),
	} {
		t.Run(name, func(t *testing.T) {
			file := memoryFile(t)
			synctest.Test(t, func(t *testing.T) {
				d := &desk{here: true}
				ringing(t, d, file).Judged(r)
				time.Sleep(time.Hour)
				if n := d.notices(); len(n) > 0 {
					t.Errorf("shown are %q", n)
				}
			})
		})
	}
}

func TestNoticeWaitsForTheNextSignIn(t *testing.T) {
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{}
		ringing(t, d, file).Judged(refusal("7K4-QX2"))
		time.Sleep(8*time.Hour + time.Second)
		d.arrives()
		time.Sleep(lookAgain)
		synctest.Wait()
		if n := len(d.notices()); n != 1 {
			t.Errorf("%d notices after the sign-in", n)
		}
	})
}

func TestNoticeIsDroppedWhenAccessIsGivenMeanwhile(t *testing.T) {
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{}
		b := ringing(t, d, file)
		b.Judged(refusal("7K4-QX2"))
		time.Sleep(90 * time.Second)
		b.Judged(&posturev1.Result{Verdict: posturev1.Verdict_VERDICT_ADMIT})
		synctest.Wait()
		d.arrives()
		time.Sleep(time.Hour)
		if n := d.notices(); len(n) > 0 {
			t.Errorf("shown are %q", n)
		}
	})
}

func TestScreenThatFailsIsTriedAgain(t *testing.T) {
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{here: true, broken: true}
		b := ringing(t, d, file)
		b.Judged(refusal("7K4-QX2"))
		time.Sleep(time.Hour + time.Second)
		d.mu.Lock()
		d.broken = false
		d.mu.Unlock()
		time.Sleep(lookAgain)
		synctest.Wait()
		if n := len(d.notices()); n != 1 {
			t.Errorf("%d notices", n)
		}
	})
}

// A disk that takes nothing must not turn a notice into a nuisance.
func TestFullDiskDoesNotRepeatANotice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "no such directory", "notices.json")
	synctest.Test(t, func(t *testing.T) {
		d := &desk{here: true}
		b := ringing(t, d, file)
		for range 5 {
			b.Judged(refusal("7K4-QX2"))
			time.Sleep(15 * time.Minute)
		}
		if n := len(d.notices()); n != 1 {
			t.Errorf("%d notices", n)
		}
	})
}

func TestMemoryHoldsCodesAndADayAlone(t *testing.T) {
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		ringing(t, &desk{here: true}, file).Judged(refusal("7K4-QX2"))
		synctest.Wait()
	})
	content, err := os.ReadFile(file)
	if err != nil || string(content) != `{"day":"2000-01-01","codes":{"7K4-QX2":true}}` {
		t.Errorf("%s, %v", content, err)
	}
}

func TestLongRefusalStaysReadable(t *testing.T) {
	r := refusal("7K4-QX2")
	for range 20 {
		r.Findings = append(r.Findings, r.GetFindings()[0])
	}
	file := memoryFile(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{here: true, locale: "en"}
		ringing(t, d, file).Judged(r)
		synctest.Wait()
		n := d.notices()
		if len(n) != 1 || !strings.Contains(n[0].Body, "Further reasons: 18.") || len(n[0].Body) > 1000 {
			t.Errorf("shown is %q", n)
		}
	})
}

func FuzzMemory(f *testing.F) {
	f.Add([]byte(`{"day":"2026-11-21","codes":{"7K4-QX2":true}}`))
	f.Add([]byte(`{"codes":null}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, content []byte) {
		file := filepath.Join(t.TempDir(), "notices.json")
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		b := New(Options{File: file})
		b.shown = b.read("2026-11-21")
		b.shown.add("7K4-QX2")
		if err := b.write(); err != nil {
			t.Fatal(err)
		}
		if again := b.read("2026-11-21"); !again.Codes["7K4-QX2"] {
			t.Errorf("after %q, what was shown is forgotten", content)
		}
	})
}
