package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// asideRole is the argument that makes the test binary a process that reads
// aside.
const asideRole = "pfoertner-test-aside"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == asideRole {
		os.Exit(beAside(os.Args[2]))
	}
	os.Exit(m.Run())
}

// beAside plays one process, well behaved or not.
func beAside(name string) int {
	err := readAside(context.Background(), map[string]asideRead{
		"fine": asideReading(func(context.Context) (SecurityAnswer, error) {
			return SecurityAnswer{Health: 2, Products: []SecurityProduct{{Name: "Ünïcode"}}}, nil
		}),
		"missing": asideReading(func(context.Context) (SecurityAnswer, error) {
			return SecurityAnswer{}, fmt.Errorf("the namespace: %w", ErrNotFound)
		}),
		"legacy": asideReading(func(context.Context) (SecurityAnswer, error) {
			return SecurityAnswer{}, fmt.Errorf("no such hardware: %w", ErrNotApplicable)
		}),
		"refused": asideReading(func(context.Context) (SecurityAnswer, error) {
			return SecurityAnswer{}, errors.New("access denied")
		}),
		"hangs": asideReading(func(context.Context) (SecurityAnswer, error) {
			_, err := io.Copy(io.Discard, os.Stdin) // which stays open
			return SecurityAnswer{}, err
		}),
		"crashes": asideReading(func(context.Context) (SecurityAnswer, error) {
			fmt.Fprintln(os.Stderr, "out of memory")
			os.Exit(3)
			return SecurityAnswer{}, nil
		}),
		"babbles": asideReading(func(context.Context) (SecurityAnswer, error) {
			for {
				if _, err := os.Stdout.Write(bytes.Repeat([]byte("x"), 1<<16)); err != nil {
					os.Exit(4)
				}
			}
		}),
		"cut short": asideReading(func(context.Context) (SecurityAnswer, error) {
			fmt.Print(`{"answer":{"health":`)
			os.Exit(0)
			return SecurityAnswer{}, nil
		}),
		"silent": asideReading(func(context.Context) (SecurityAnswer, error) {
			os.Exit(0)
			return SecurityAnswer{}, nil
		}),
		"echoes": asideQuestion(func(_ context.Context, question string) (Program, error) {
			return Program{ProductName: question}, nil
		}),
	}, name, os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// printed is what a process prints that answers.
func printed(answer any) []byte {
	var out bytes.Buffer
	_ = readAside(context.Background(), map[string]asideRead{
		"x": func(context.Context, string) (any, error) { return answer, nil },
	}, "x", strings.NewReader("\n"), &out)
	return out.Bytes()
}

// realAside asks real processes of the test binary.
func realAside(t *testing.T, name string, timeout time.Duration) *aside {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &aside{
		name: name, timeout: timeout, now: time.Now, turn: make(chan struct{}, 1),
		launch: asideProcess{program: program, arguments: []string{asideRole}}.launch,
	}
}

func TestReadingAsideCrossesTheProcessBorder(t *testing.T) {
	var answer SecurityAnswer
	if err := realAside(t, "fine", time.Minute).ask(t.Context(), "", &answer); err != nil {
		t.Fatal(err)
	}
	if answer.Health != 2 || len(answer.Products) != 1 || answer.Products[0].Name != "Ünïcode" {
		t.Errorf("answer is %+v", answer)
	}
}

func TestReadingAsideKeepsTheMeaningOfErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		is   error
		text string
	}{
		{"missing", ErrNotFound, "the namespace: not found"},
		{"legacy", ErrNotApplicable, "no such hardware: not applicable"},
		{"refused", nil, "access denied"},
	} {
		a := realAside(t, c.name, time.Minute)
		err := a.ask(t.Context(), "", new(SecurityAnswer))
		if err == nil || err.Error() != c.text || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: error is %v, want %s", c.name, err, c.text)
		}
		if !a.resume.IsZero() {
			t.Errorf("%s: a reading that failed is an answer, but it rests", c.name)
		}
	}
}

func TestProcessThatBreaksIsSaidAndLeftInPeace(t *testing.T) {
	for _, c := range []struct{ name, says string }{
		{"crashes", "it ended with exit status 3: out of memory"},
		{"babbles", "it printed too much"},
		{"cut short", "its answer is damaged"},
		{"silent", "its answer is damaged"},
		{"unheard of", `there is no reading "unheard of" on this system`},
	} {
		a := realAside(t, c.name, time.Minute)
		err := a.ask(t.Context(), "", new(SecurityAnswer))
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "since ") {
			t.Errorf("%s: error is %v, want %q", c.name, err, c.says)
		}
		if a.resume.IsZero() {
			t.Errorf("%s: it does not rest", c.name)
		}
	}
}

// A hung WMI provider: the process is ended, nothing of it stays behind.
func TestProcessThatHangsIsEnded(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var process *os.Process
	a := realAside(t, "hangs", time.Second) // which Wine needs to start it
	a.launch = asideProcess{
		program: program, arguments: []string{asideRole},
		confine: func(p *os.Process, _ asideLimits) (func(), error) { process = p; return func() {}, nil },
	}.launch
	err = a.ask(t.Context(), "", new(SecurityAnswer))
	if err == nil || !strings.Contains(err.Error(), "no answer within 1s") {
		t.Fatalf("error is %v", err)
	}
	if process == nil || process.Kill() == nil {
		t.Error("the process was never there, or still is")
	}
}

// While an upgrade replaces the program, the service that still runs asks the
// new one. What it does not find in an answer must not become a zero.
func TestAnswerOfAnotherVersionIsDamaged(t *testing.T) {
	whole := `{"answer":{"health_result":0,"health":2,"list_result":0,"products":[{"name":"X","state":1,"signature_status":0}]}}`
	if err := decodeAside([]byte(whole), new(SecurityAnswer)); err != nil {
		t.Errorf("what this version writes is refused: %v", err)
	}
	for what, answer := range map[string]string{
		"a value is missing":          strings.Replace(whole, `"state":1,`, ``, 1),
		"a value has another name":    strings.Replace(whole, `"health":2`, `"well_being":2`, 1),
		"a value is new":              strings.Replace(whole, `"health":2`, `"health":2,"mood":1`, 1),
		"a value is there twice":      strings.Replace(whole, `"health":2`, `"health":2,"health":0`, 1),
		"it is null":                  `{"answer":null}`,
		"something is behind it":      whole + `{"answer":{}}`,
		"a name has another spelling": strings.Replace(whole, `"health":2`, `"Health":2`, 1),
	} {
		var broken *brokenError
		if err := decodeAside([]byte(answer), new(SecurityAnswer)); !errors.As(err, &broken) {
			t.Errorf("%s: error is %v", what, err)
		}
	}
}

func TestLastWordsOfAProcessNameNobody(t *testing.T) {
	for said, want := range map[string]string{
		"":          "",
		" \r\n\r\n": "",
		"panic: runtime error: index out of range\r\n\r\ngoroutine 1 [running]:\r\nC:\\x.go:1": ": panic: runtime error: index out of range",
		`open C:\Users\Erika Mustermann\vpn.exe: Access is denied.`:                            "",
		"open /home/erika/vpn: permission denied":                                              "",
	} {
		if got := lastWords(said); got != want {
			t.Errorf("%q is told as %q, want %q", said, got, want)
		}
	}
}

func TestProcessWhoseStarterIsGoneReadsNothing(t *testing.T) {
	read := false
	err := readAside(t.Context(), map[string]asideRead{"x": func(context.Context, string) (any, error) {
		read = true
		return nil, nil
	}}, "x", strings.NewReader(""), new(bytes.Buffer))
	if err == nil || read {
		t.Errorf("read: %v, error: %v", read, err)
	}
}

func TestProcessIsConfinedBeforeItReads(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	p := asideProcess{
		program: program, arguments: []string{asideRole},
		prepare: func(*exec.Cmd) { order = append(order, "prepared") },
		confine: func(process *os.Process, limits asideLimits) (func(), error) {
			order = append(order, "confined")
			if limits.memory == 0 || limits.timeout == 0 {
				t.Errorf("no limits: %+v", limits)
			}
			return func() { order = append(order, "released") }, nil
		},
	}
	if _, err := p.launch(t.Context(), "fine", ""); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, " "); got != "prepared confined released" {
		t.Errorf("order is %s", got)
	}

	p.confine = func(*os.Process, asideLimits) (func(), error) { return nil, errors.New("no job") }
	if _, err := p.launch(t.Context(), "fine", ""); err == nil || err.Error() != "confining reading fine: no job" {
		t.Errorf("a process that cannot be confined is not used: %v", err)
	}
}

// launches counts processes and answers as told.
type launches struct {
	count  atomic.Int32
	answer func(ctx context.Context) ([]byte, error)
}

func (l *launches) aside(keep bool) *aside {
	return &aside{
		name: "updates", timeout: time.Hour, keep: keep, now: time.Now, turn: make(chan struct{}, 1),
		launch: func(ctx context.Context, _, _ string) ([]byte, error) {
			l.count.Add(1)
			return l.answer(ctx)
		},
	}
}

func TestBrokenReadingRestsLongerEachTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &launches{answer: func(ctx context.Context) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		a := l.aside(false)
		a.timeout = 10 * time.Second
		var said string
		for i, rest := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
			err := a.ask(t.Context(), "", new(UpdateSearch))
			if said == "" {
				said = err.Error()
			}
			if err == nil || err.Error() != said {
				t.Fatalf("run %d: %v; the reason must stay %q", i, err, said)
			}
			time.Sleep(rest*time.Minute - time.Second)
			if err := a.ask(t.Context(), "", new(UpdateSearch)); err == nil || err.Error() != said {
				t.Fatalf("while it rests: %v", err)
			}
			if got := int(l.count.Load()); got != i+1 {
				t.Fatalf("%d processes after %d runs", got, i+1)
			}
			time.Sleep(time.Second)
		}
		l.answer = func(context.Context) ([]byte, error) { return printed(UpdateSearch{}), nil }
		if err := a.ask(t.Context(), "", new(UpdateSearch)); err != nil || !a.since.IsZero() || a.rest != 0 {
			t.Errorf("an answer ends the rest: %v, %+v", err, a)
		}
	})
}

func TestOneProcessAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int32
		l := &launches{answer: func(context.Context) ([]byte, error) {
			most.Store(max(most.Load(), running.Add(1)))
			time.Sleep(time.Second)
			running.Add(-1)
			return printed(UpdateSearch{Code: 2}), nil
		}}
		a := l.aside(false)
		errs := make(chan error)
		for range 5 {
			go func() { errs <- a.ask(t.Context(), "", new(UpdateSearch)) }()
		}
		for range 5 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if most.Load() != 1 || l.count.Load() != 5 {
			t.Errorf("%d at once, %d in all", most.Load(), l.count.Load())
		}
	})
}

// A search for updates takes longer than anybody waits. Its answer is not lost;
// an answer of what can change from one second to the next is not used late.
func TestAnswerThatComesLate(t *testing.T) {
	for _, c := range []struct {
		keep bool
		want int32
	}{{true, 1}, {false, 2}} {
		synctest.Test(t, func(t *testing.T) {
			l := &launches{}
			l.answer = func(context.Context) ([]byte, error) {
				n := l.count.Load()
				time.Sleep(5 * time.Minute)
				return printed(UpdateSearch{Code: n}), nil
			}
			a := l.aside(c.keep)
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				err := a.ask(ctx, "", new(UpdateSearch))
				cancel()
				if err == nil || !strings.Contains(err.Error(), "Windows was asked for updates at 2000-01-01T00:00:00Z and has not answered yet") {
					t.Fatalf("error is %v", err)
				}
			}
			time.Sleep(time.Hour)
			var got UpdateSearch
			if err := a.ask(t.Context(), "", &got); err != nil || got.Code != c.want {
				t.Errorf("keep %v: answer of run %d (%v), want that of run %d", c.keep, got.Code, err, c.want)
			}
		})
	}
}

func TestEveryReadingAsideHasACapability(t *testing.T) {
	asked := ""
	s := newAsides(time.Now, func(_ context.Context, name, question string) ([]byte, error) {
		asked = name + question
		return []byte(`{"error":{"text":"asked"}}`), nil
	})
	var w Windows
	s.into(&w)
	for name, ask := range map[string]func() error{
		asideBitLocker: func() error { _, err := w.BitLocker.Volumes(t.Context()); return err },
		asideUpdates:   func() error { _, err := w.Updates.Search(t.Context()); return err },
		asideFirewall:  func() error { _, err := w.Firewall.Profiles(t.Context()); return err },
		asideLicences:  func() error { _, err := w.Licences.ExtendedUpdates(t.Context()); return err },
		asideAntivirus: func() error { _, err := w.SecurityCenter.Antivirus(t.Context()); return err },
		asideDialups:   func() error { _, err := w.Dialups.Connections(t.Context()); return err },
		asideProgram + "C:\\x y.exe": func() error {
			_, err := w.Programs.Identify(t.Context(), "C:\\x y.exe")
			return err
		},
	} {
		if err := ask(); err == nil || err.Error() != "asked" || asked != name {
			t.Errorf("%s asked for %s: %v", name, asked, err)
		}
	}
}

func TestReadingAsideIsToldWhatItIsAbout(t *testing.T) {
	const question = `C:\Program Files\Größe & Co\x.exe`
	var answer Program
	if err := realAside(t, "echoes", time.Minute).ask(t.Context(), question, &answer); err != nil || answer.ProductName != question {
		t.Errorf("%q, %v", answer.ProductName, err)
	}
}

func TestAQuestionIsOneLine(t *testing.T) {
	s := newAsides(time.Now, func(context.Context, string, string) ([]byte, error) {
		t.Error("it was asked")
		return nil, nil
	})
	for _, question := range []string{"a\nb", "a\r", strings.Repeat("x", maxQuestion)} {
		if _, err := (programsAside{s}).Identify(t.Context(), question); err == nil {
			t.Errorf("%.10q was answered", question)
		}
	}
}

// An answer that came late is about something else: nothing of it is left in
// the next one.
func TestALateAnswerLeavesNothingInTheNextOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := map[string]Program{
			"first":  {Publisher: "Somebody", ProductName: "A"},
			"second": {ProductName: "B"},
		}
		a := &aside{
			name: asideProgram, timeout: time.Hour, now: time.Now, turn: make(chan struct{}, 1),
			launch: func(_ context.Context, _, question string) ([]byte, error) {
				time.Sleep(time.Minute)
				return printed(answers[question]), nil
			},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.ask(ctx, "first", new(Program)); err == nil {
			t.Fatal("it was not late")
		}
		var got Program
		if err := a.ask(t.Context(), "second", &got); err != nil || got != (Program{ProductName: "B"}) {
			t.Errorf("%+v, %v", got, err)
		}
	})
}

func FuzzDecodeAside(f *testing.F) {
	f.Add(printed(UpdateSearch{Code: 2, Pending: []OfferedUpdate{{KBs: []string{"1"}}}}))
	f.Add([]byte(`{"error":{"text":"x","kind":"not_found"}}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, output []byte) {
		var answer UpdateSearch
		if err := decodeAside(output, &answer); err != nil && strings.ContainsAny(oneLine(err.Error()), "\n") {
			t.Errorf("error of several lines: %v", err)
		}
	})
}
