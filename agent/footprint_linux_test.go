package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The agent is a guest on the notebook: these are its bars.
const (
	maxBinaryBytes   = 16 << 20
	maxResidentBytes = 20 << 20
)

// shipped builds the program as it is shipped, where everybody may run it.
func shipped(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "pfoertner-agent")
	build := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return binary
}

// The real program, built as it is shipped, reports this machine's real posture
// to a collector that answers.
func TestAgentStaysSmall(t *testing.T) {
	binary := shipped(t)
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > maxBinaryBytes {
		t.Errorf("the program has %d bytes, at most %d are allowed", info.Size(), maxBinaryBytes)
	}

	c := issuing(t)
	p := newPlace(t, "collector: "+c.Target().Address+"\nca_file: "+c.Servers.File(t))
	p.write("token", "t-1")
	agent := exec.Command(binary, "run", "--config", p.path("agent.yaml"))
	agent.Stdout, agent.Stderr = t.Output(), t.Output()
	began := time.Now()
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
	first := s.Report(t)
	t.Logf("from the start, with an enrolment, to the first evidence: %v", time.Since(began).Round(time.Millisecond))
	s.Acknowledge(t, first)
	for range 9 {
		s.Acknowledge(t, s.Report(t))
	}
	resident, peak := memory(t, agent.Process.Pid)
	t.Logf("program %.1f MB; after 10 full collections resident %.1f MB, peak %.1f MB",
		mega(info.Size()), mega(resident), mega(peak))
	if resident > maxResidentBytes {
		t.Errorf("%d bytes are resident, at most %d are allowed", resident, maxResidentBytes)
	}
}

func mega(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// memory reads VmRSS and VmHWM (proc_pid_status(5)) in bytes.
func memory(t *testing.T, pid int) (resident, peak int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
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
	return value("VmRSS"), value("VmHWM")
}

// Whoever sits at the notebook may ask how it stands, also where the
// configuration and the state are root's alone.
func TestStatusIsForEverybody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT RUN: acting as another user needs root")
	}
	binary := shipped(t)
	dir := t.TempDir()
	config, shown := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "status.json")
	write := func(name, content string, mode os.FileMode) {
		if err := os.WriteFile(name, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(config, "collector: a:1", 0o600)
	write(shown, `{"connection":"not_enrolled","obstacle":"no_token"}`, 0o644)
	status := exec.Command(binary, "status", "--config", config, "--status-file", shown, "--lang", "en")
	status.Dir = "/"
	status.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := status.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "token for the enrolment is missing") {
		t.Errorf("%v: %s", err, out)
	}
}
