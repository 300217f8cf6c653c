package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/agent/probe"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const notebookCapture = "capture/testdata/windows-11-24h2.json"

func TestACaptureIsPrintedAsTheEvidenceOfThatMachine(t *testing.T) {
	p := newPlace(t, "")
	out, err := p.run("evidence", "--replay", notebookCapture, "--json")
	if err != nil {
		t.Fatal(err)
	}
	var ev posturev1.Evidence
	if err := protojson.Unmarshal([]byte(out), &ev); err != nil {
		t.Fatal(err)
	}
	if ev.GetTpm().GetVersion() != "2.0" || !ev.GetTpm().GetReading().GetObservedAt().AsTime().Equal(time.Date(2026, 6, 20, 8, 0, 0, 0, time.UTC)) {
		t.Errorf("the chip of the capture reads %v", ev.GetTpm())
	}
	text, err := p.run("evidence", "--replay", notebookCapture, "--lang", "de")
	if err != nil || !strings.Contains(text, "So liest sich die Aufzeichnung.") || strings.Contains(text, "was gesendet wird") {
		t.Errorf("printed %q, %v", text, err)
	}
}

func TestReplayRefusesWhatIsNoCapture(t *testing.T) {
	p := newPlace(t, "")
	broken := filepath.Join(t.TempDir(), "broken.json")
	if err := os.WriteFile(broken, []byte(`{"version":1,"captured_at":"2026-06-20T08:00:00Z","answers":{},"more":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"--replay", broken},
		{"--replay", filepath.Join(t.TempDir(), "none.json")},
		{"--replay", notebookCapture, "--raw", filepath.Join(t.TempDir(), "out.json")},
	} {
		if out, err := p.run("evidence", args...); err == nil {
			t.Errorf("%v printed %q", args, out)
		}
	}
}

func TestARecordedMachineReplaysToTheSameEvidence(t *testing.T) {
	machine, err := readCapture(notebookCapture)
	if err != nil {
		t.Fatal(err)
	}
	host := machine.Host()
	file := filepath.Join(t.TempDir(), "out.json")
	var said bytes.Buffer
	if err := writeCapture(t.Context(), host, probe.Options{}, file, &said); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), "Read it before you pass it on.") {
		t.Errorf("said %q", said.String())
	}
	again, err := readCapture(file)
	if err != nil {
		t.Fatal(err)
	}
	want := machine.Evidence(t.Context(), probe.Probes(probe.Options{}))
	got := again.Evidence(t.Context(), probe.Probes(probe.Options{}))
	if g, w := protojson.Format(got), protojson.Format(want); g != w {
		t.Errorf("replayed\n%s\nrecorded\n%s", g, w)
	}
	if err := writeCapture(t.Context(), host, probe.Options{}, file, &said); err == nil {
		t.Error("an existing file was overwritten")
	}
}

func TestLinuxIsNotCaptured(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.json")
	err := writeCapture(t.Context(), probe.Host{Now: time.Now}, probe.Options{}, file, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "Windows only") {
		t.Errorf("error is %v", err)
	}
	if _, err := os.Stat(file); err == nil {
		t.Error("a file was written")
	}
}
