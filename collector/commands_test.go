package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

var update = flag.Bool("update", false, "write golden files")

// terminal is an operator at the command line, and what is on the screen.
type terminal struct {
	t         *testing.T
	collector string
	operator  string // directory of the certificate
	who       string // stands before the prompt, where there are several operators
	dir       string // for files
	screen    bytes.Buffer
}

func (h *house) terminal(t *testing.T) *terminal {
	t.Helper()
	s := &terminal{t: t, collector: h.operators.Addr().String(), operator: t.TempDir(), dir: t.TempDir()}
	if err := h.keys.WriteOperator(s.operator, "anna"); err != nil {
		t.Fatal(err)
	}
	return s
}

// as lets another operator sit down at the terminal.
func (h *house) as(s *terminal, name string) {
	s.t.Helper()
	s.who, s.operator = name, s.t.TempDir()
	if err := h.keys.WriteOperator(s.operator, name); err != nil {
		s.t.Fatal(err)
	}
}

// run runs a command. What does not go to standard output is marked: "·" is
// progress and remarks, "!" is why it failed.
func (s *terminal) run(args ...string) {
	s.t.Helper()
	var out, progress bytes.Buffer
	root := newRoot(&out, &progress)
	root.SetArgs(append([]string{"--collector", s.collector, "--operator", s.operator}, args...))
	err := root.ExecuteContext(s.t.Context())
	fmt.Fprint(&s.screen, s.who+"$ pfoertner-collector")
	for _, a := range args {
		if strings.ContainsAny(a, " ") {
			a = "'" + a + "'"
		}
		fmt.Fprint(&s.screen, " ", a)
	}
	fmt.Fprintf(&s.screen, "\n%s", out.String())
	for line := range strings.FieldsFuncSeq(progress.String(), func(r rune) bool { return r == '\r' || r == '\n' }) {
		fmt.Fprintln(&s.screen, "·", line)
	}
	if err != nil {
		fmt.Fprintln(&s.screen, "!", plain(err))
	}
	fmt.Fprintln(&s.screen)
}

// file writes a file that a command reads and returns its path.
func (s *terminal) file(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// conceal replaces what is on the screen.
func (s *terminal) conceal(what, instead string) {
	said := strings.ReplaceAll(s.screen.String(), what, instead)
	s.screen.Reset()
	s.screen.WriteString(said)
}

// masks hide what differs from run to run, by something of the same width where
// it stands in a table.
var masks = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "YYYY-MM-DD hh:mm:ss"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "YYYY-MM-DDThh:mm:ssZ"},
	{regexp.MustCompile(`\d\d\.\d\d\.\d{4}, \d\d:\d\d Uhr`), "TT.MM.JJJJ, hh:mm Uhr"},
	{regexp.MustCompile(`\d+ \p{L}+ \d{4}, \d\d:\d\d [A-Z0-9+-]+`), "D Month YYYY, hh:mm ZONE"},
	{regexp.MustCompile(`bis zum \d\d\.\d\d\.\d{4} erlaubt`), "bis zum TT.MM.JJJJ erlaubt"},
	{regexp.MustCompile(`permitted until \d+ \p{L}+ \d{4}\.`), "permitted until D Month YYYY."},
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "00000000-0000-0000-0000-000000000000"},
	{regexp.MustCompile(`PFT(-[A-Z2-7]{4}){8}`), "PFT-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXX"},
	{regexp.MustCompile(`\b[0-9A-Z]{4}(-[0-9A-Z]{4}){5}\b`), "XXXX-XXXX-XXXX-XXXX-XXXX-XXXX"},
	{regexp.MustCompile(`\b[0-9A-Z]{3}-[0-9A-Z]{3}\b`), "XXX-XXX"},
	{regexp.MustCompile(`serial=[0-9a-f]+`), "serial=SERIAL"},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "SHA-256"},
	{regexp.MustCompile(`\b[0-9a-f]{16}\b`), "0123456789abcdef"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "127.0.0.1:PORT"},
}

// shows compares the screen with a golden file.
func (s *terminal) shows(name string) {
	s.t.Helper()
	s.conceal(s.dir+"/", "")
	s.conceal(s.operator, "OPERATOR")
	s.conceal(s.collector, "COLLECTOR")
	got := s.screen.String()
	for _, m := range masks {
		got = m.pattern.ReplaceAllStringFunc(got, func(found string) string {
			if found == "SHA-256" { // is no refusal code
				return found
			}
			return m.instead
		})
	}
	path := filepath.Join("testdata", "commands", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		s.t.Fatal(err)
	}
	if got != string(want) {
		s.t.Errorf("%s differs (go test -update writes it):\n%s", name, got)
	}
}

// office is a collector with three notebooks: one in good order, one that is
// not encrypted, and one that has never reported.
func office(t *testing.T) (*house, []*notebook) {
	t.Helper()
	h := newHouse(t)
	books := h.enrol(t, 3)
	books[0].connect(t).report(t, compliant(time.Now()))
	books[1].connect(t).report(t, unencrypted(time.Now()))
	return h, books
}

func TestDevicesAreListedAndShown(t *testing.T) {
	h, books := office(t)
	late := compliant(time.Now())
	late.Patch.PendingSecurity = 2
	late.Patch.Pending = []*posturev1.PendingUpdate{
		{Package: "openssl", FirstSeenAt: timestamppb.New(time.Now().Add(-time.Hour))},
		{Package: "libssl3", FirstSeenAt: timestamppb.New(time.Now().Add(-time.Hour))},
	}
	books[0].connect(t).report(t, late)
	s := h.terminal(t)
	s.run("devices")
	s.run("devices", "--filter", "evidence.patch.pending_security > 0")
	s.run("devices", "--filter", "has(device.result) && result.verdict == DENY")
	s.run("devices", "--order-by", "-asset_number", "--page-size", "2")
	s.run("devices", "NB-00001")
	s.run("devices", "NB-00002")
	s.shows("devices.txt")
}

func TestQuestionsAboutDevicesThatMakeNoSense(t *testing.T) {
	s := newHouse(t).terminal(t)
	s.run("devices", "NB-99")
	s.run("explain", "NB-99")
	s.run("explain", "7K4-QX2")
	s.run("events", "NB-99")
	s.run("events", "--since", "-5m")
	s.run("devices", "--filter", "evidence.patch.pending == ")
	s.run("devices", "--filter", "evidence.patch.pending_security == 0")
	s.run("devices", "--filter", "evidence.patch.pendign > 0")
	s.run("devices", "--filter", "asset.unit")
	s.run("devices", "--order-by", "colour")
	s.run("devices", "--page-size", "2000")
	s.run("state", "NB-99", "suspend", "--reason", "lost")
	s.run("state", "NB-99", "suspend")
	s.run("state", "NB-99", "explode", "--reason", "lost")
	s.run("token", "NB-99")
	s.run("bind", "NB-99", "--fingerprint", strings.Repeat("ab", 32))
	s.run("bind", "NB-99", "--fingerprint", "abc")
	s.run("policy", "show", "--version", "7")
	s.shows("questions.txt")
}

func TestVerdictsAreExplainedInBothLanguages(t *testing.T) {
	h, books := office(t)
	gate := h.gate(t, "vpn1")
	_, answer := admit(t, gate, books[1].vpn)
	_, stranger := admit(t, gate, make([]byte, 32))
	h.recorded(t, "session.refused", 2)
	for _, lang := range []string{"de", "en"} {
		s := h.terminal(t)
		s.run("explain", "NB-00000", "--lang", lang)
		s.run("explain", "NB-00001", "--lang", lang)
		s.run("explain", "NB-00002", "--lang", lang)
		s.run("explain", answer.GetCode(), "--lang", lang)
		s.run("explain", stranger.GetCode(), "--lang", lang)
		s.shows("explain." + lang + ".txt")
	}
}

func TestSessionsAndEventsAreListed(t *testing.T) {
	h, books := office(t)
	gate := h.gate(t, "vpn1")
	admit(t, gate, books[0].vpn)
	admit(t, gate, books[1].vpn)
	_, err := gate.Report(t.Context(), &gatev1.ReportRequest{Full: true, Events: []*gatev1.SessionEvent{{
		At: timestamppb.Now(), Event: &gatev1.SessionEvent_Up{Up: &gatev1.SessionUp{
			Session: &gatev1.SessionFacts{
				SessionId: "ovpn/1", CertificateSha256: books[0].vpn, TunnelAddresses: []string{"10.8.0.6", "fd00::6"},
				Protocol: gatev1.Protocol_PROTOCOL_OPENVPN,
			},
			Verdict: posturev1.Verdict_VERDICT_ADMIT,
		}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	h.recorded(t, "session.refused", 1)
	s := h.terminal(t)
	s.run("sessions")
	s.run("sessions", "--gateway", "vpn2")
	s.run("state", "NB-00000", "suspend", "--reason", "lost on a train")
	h.recorded(t, "verdict.changed", 3)
	s.run("sessions")
	s.run("events", "NB-00000")
	s.run("events", "--limit", "4")
	s.run("audit", "verify")
	s.shows("sessions.txt")
}

// recorded waits until so many events of a kind are there: what follows from a
// refusal or an order is recorded behind the answer.
func (h *house) recorded(t *testing.T, kind string, count int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		n := 0
		events, err := h.store.Events(ctx, "", time.Time{}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			if e.GetKind() == kind {
				n++
			}
		}
		if n >= count {
			return
		}
	}
}

func TestPolicyIsCheckedAppliedAndKept(t *testing.T) {
	h, _ := office(t)
	s := h.terminal(t)
	wrong := s.file("wrong.yaml", `name: wrong
freshness:
  max_age: 1h
colour: red
rules:
  - id: kernel
    title: {de: Kern, en: Kernel}
    remedy: {de: Keine., en: None.}
    require: >
      evidence.patch.pending_security == 0 &&
      evidence.kernel.running != ""
    on_fail: deny
`)
	s.run("policy", "check", wrong)
	s.run("policy", "apply", wrong)
	right := s.file("right.yaml", everybodyOut)
	s.run("policy", "check", right)
	s.run("policy", "apply", right, "--comment", "for the test")
	s.run("policy", "history")
	s.run("policy", "show")
	s.run("policy", "check", filepath.Join(s.dir, "none.yaml"))
	s.shows("policy.txt")
}

func TestReferencesAreSignedImportedAndKept(t *testing.T) {
	h, _ := office(t)
	s := h.terminal(t)
	signer, elsewhere := filepath.Join(s.dir, "signer-it"), newHouse(t)
	if err := h.keys.WriteReferenceSigner(signer, "it"); err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.keys.WriteReferenceSigner(filepath.Join(s.dir, "elsewhere"), "it"); err != nil {
		t.Fatal(err)
	}
	today := time.Now().UTC()
	values := func(issued string) string {
		return "issued: " + issued + `
as_of: ` + today.Format(time.DateOnly) + `
sources: {s: {text: invented for a test, read: 2026-11-20}}
windows_builds:
  - {build: 26100, track: client, ubr: 9999, release_date: 2026-11-10, class: security, source: s}
ring:
  - {build: 26100, track: client, ubr: 9999, approved_on: 2026-11-18}
`
	}
	in := func(name string) string { return filepath.Join(s.dir, name) }
	s.run("references", "show")
	wrong := s.file("wrong.yaml", strings.Replace(values("2026-11-20"), "class: security", "class: important", 1)+"rings: []\n")
	s.run("references", "sign", wrong, "--signer", signer, "--out", in("wrong.signed"))
	s.run("references", "sign", s.file("values.yaml", values("2026-11-20")), "--signer", signer, "--out", in("values.signed"))
	s.run("references", "sign", in("values.yaml"), "--signer", in("elsewhere"), "--out", in("foreign.signed"))
	s.run("references", "sign", in("values.yaml"), "--signer", s.operator, "--out", in("none.signed"))
	s.run("references", "verify", in("values.signed"))
	s.run("references", "verify", in("foreign.signed"))
	s.run("references", "verify", in("values.yaml"))
	s.run("references", "import", in("foreign.signed"))
	s.run("references", "import", in("values.signed"), "--comment", "for the test")
	s.run("references", "import", in("values.signed"))
	s.run("references", "sign", s.file("older.yaml", values("2026-10-20")), "--signer", signer, "--out", in("older.signed"))
	s.run("references", "import", in("older.signed"))
	s.run("references", "import", in("older.signed"), "--allow-older", "--comment", "the last one was wrong")
	s.run("references", "sign", s.file("catalogue.json", `{"format": 1, "sequence": 1, "clients": []}`), "--kind", "vpn-catalogue", "--signer", signer, "--out", in("catalogue.signed"))
	s.run("references", "show", "--kind", "vpn-catalogue")
	s.run("references", "import", in("catalogue.signed"))
	s.run("references", "show", "--kind", "vpn-catalogue")
	s.run("references", "history")
	// After a restart the same is in force.
	h.stop()
	h.start(t)
	s.collector = h.operators.Addr().String()
	s.run("references", "show")
	s.conceal("ends on "+today.Format(time.DateOnly), "ends on TODAY")
	s.conceal("until "+today.Truncate(24*time.Hour).Add(35*24*time.Hour).Format(time.DateOnly), "until IN 35 DAYS")
	s.conceal("ends on "+today.Add(365*24*time.Hour).Format(time.DateOnly), "ends on IN A YEAR")
	s.shows("references.txt")
	if asOf, _ := h.verifier.References().WindowsAsOf(); asOf.Format(time.DateOnly) != today.Format(time.DateOnly) {
		t.Errorf("after a restart the table ends on %s", asOf)
	}
}

func TestInventoryIsImportedOrEveryMistakeNamed(t *testing.T) {
	h := newHouse(t)
	s := h.terminal(t)
	good := s.file("assets.csv", "asset_number;vendor;model;serial;unit;groups\nNB-1;Lenovo;T14;PF1;Inneres/Polizei;fachverfahren\nNB-2;Dell;7450;D2;finanzen;\n")
	s.run("inventory", "import", "--dry-run", good)
	s.run("inventory", "import", good)
	s.run("inventory", "import", good)
	s.run("inventory", "import", s.file("moved.csv", "asset_number;unit\nNB-2;finanzen/it\n"))
	bad := s.file("bad.csv", "asset_number;serial;unit;key_protection\nNB-3;PF1;a/b;\nNB-4;P4;a//b;\nNB-4;P5;a;\n;P6;a;\nNB-7;P7;a;wood\nNB-8;P8\n")
	s.run("inventory", "import", bad)
	s.run("inventory", "import", s.file("header.csv", "asset_number;colour\nNB-9;red\n"))
	s.run("inventory", "import", s.file("empty.csv", ""))
	s.run("token", "NB-1")
	s.run("state", "NB-1", "suspend", "--reason", "lost")
	s.run("token", "NB-1")
	s.run("state", "NB-1", "retire", "--reason", "stolen")
	s.run("state", "NB-1", "resume", "--reason", "found")
	sum := strings.Repeat("ab", 32)
	s.run("bind", "NB-2", "--fingerprint", sum)
	s.run("bind", "NB-1", "--fingerprint", sum)
	s.run("bind", "NB-2", "--fingerprint", sum, "--remove")
	s.shows("inventory.txt")
}

// Whoever gets no answer reads why, and which flag to look at.
func TestNoAnswerSaysWhy(t *testing.T) {
	h := newHouse(t)
	s := h.terminal(t)
	right, operators := s.operator, s.collector

	s.operator = filepath.Join(s.dir, "nobody")
	s.run("devices")

	gate := t.TempDir()
	if err := h.keys.WriteGate(gate, "vpn1"); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"gate.crt": "operator.crt", "gate.key": "operator.key"} {
		if err := os.Rename(filepath.Join(gate, from), filepath.Join(gate, to)); err != nil {
			t.Fatal(err)
		}
	}
	s.operator = gate
	s.run("devices")
	s.conceal(gate, "GATE")

	other := newHouse(t)
	s.operator = other.terminal(t).operator
	s.run("devices")
	s.conceal(s.operator, "OTHER")

	s.operator, s.collector = right, h.agents.Addr().String()
	s.run("devices")
	s.collector = "127.0.0.1"
	s.run("devices")
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	s.collector = closed.Addr().String()
	s.run("devices")
	s.collector = operators
	s.shows("no-answer.txt")
}

func TestJSONIsForPrograms(t *testing.T) {
	h, books := office(t)
	var out bytes.Buffer
	root := newRoot(&out, &bytes.Buffer{})
	root.SetArgs([]string{"--collector", h.operators.Addr().String(), "--operator", h.terminal(t).operator, "devices", "NB-00001", "--json"})
	if err := root.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"id": "` + books[1].id + `"`, `"verdict": "VERDICT_DENY"`, `"distribution": "debian"`, `"groups": []`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is missing:\n%s", want, out.String())
		}
	}
}
