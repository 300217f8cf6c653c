package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"pfoertner/agent/testcollector"
	"pfoertner/internal/e2e/swtpm"
	"pfoertner/internal/posture"
)

// tooMuch is what the agent never needs, however the machine's memory is
// divided; the bar of 20 MB is measured by make bench.
const tooMuch = 26 << 20

// What a TPM costs: the same program enrols and reports with a software key and
// with a key in the TPM.
func TestAgentStaysSmallWithATPM(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "testagent")
	build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	software, _ := footprint(t, binary, "")
	resident, peak := footprint(t, binary, swtpm.New(t).Socket)
	t.Logf("peak %.1f MB with a software key; %.1f MB with a TPM and an event log of %d KiB, then resident %.1f MB",
		mega(software), mega(peak), posture.MaxEventLogBytes>>10, mega(resident))
	if peak > tooMuch {
		t.Errorf("%d bytes were resident, more than %d", peak, tooMuch)
	}
}

func mega(n int64) float64 { return float64(n) / (1 << 20) }

// footprint runs the agent through an enrolment and some reports, and returns
// its memory (software key: the peak twice).
func footprint(t *testing.T, binary, socket string) (resident, peak int64) {
	t.Helper()
	c := testcollector.New(t)
	c.OnEnrol = c.Granting("t-1", "0f9a2c1e-7c55-4e1c-9a54-3f2f0a0c7d21")
	c.Listen()
	tree, state := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "state")
	if err := applyChange(tree, "compliant", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "eventlog"), bytes.Repeat([]byte{1}, posture.MaxEventLogBytes), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"--tree", tree, "--state", state, "--collector", c.Target().Address, "--ca", c.Servers.File(t), "--token", "t-1"}
	if socket != "" {
		args = append(args, "--tpm", socket)
	}
	agent := exec.Command(binary, args...)
	agent.Stdout, agent.Stderr = t.Output(), t.Output()
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = agent.Process.Signal(syscall.SIGTERM) // it may have ended
		if err := agent.Wait(); err != nil {
			t.Errorf("the agent ended with %v", err)
		}
	})
	s := c.Next(t)
	s.Welcome(t, time.Second)
	for range 5 {
		s.Acknowledge(t, s.Report(t))
	}
	text, err := os.ReadFile("/proc/" + strconv.Itoa(agent.Process.Pid) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	value := func(key string) int64 {
		m := regexp.MustCompile(key + `:\s+(\d+) kB`).FindSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in %s", key, text)
		}
		kb, err := strconv.ParseInt(string(m[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return kb << 10
	}
	t.Logf("resident %.1f MB: anonymous %.1f MB, of files %.1f MB", mega(value("VmRSS")), mega(value("RssAnon")), mega(value("RssFile")))
	if socket == "" {
		return value("VmHWM"), value("VmHWM")
	}
	return value("VmRSS"), value("VmHWM")
}
