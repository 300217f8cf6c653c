//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// readyLimit is far above what a collector takes to start.
const readyLimit = 2 * time.Minute

// Collector is a released collector on loopback, with its operator.
type Collector struct {
	// Agents is where agents reach it: address and port. Its certificate names
	// 127.0.0.1, 10.0.2.2 (this machine as qemu's guests see it) and localhost.
	Agents string
	// Gates and Operators are where those reach it.
	Gates, Operators string
	// Fingerprint is that of its CA: what an installation is told.
	Fingerprint string
	// CAFile holds its CA.
	CAFile string

	program, config, health, operator, second string
	running                                   *Program
}

// StartCollector makes a collector from program, with all its keys in dir and
// lines added to its configuration, and waits until it is ready.
func StartCollector(t testing.TB, program, dir string, lines ...string) *Collector {
	t.Helper()
	c := &Collector{
		Agents: Free(t), Gates: Free(t), Operators: Free(t), health: Free(t), program: program,
		config: filepath.Join(dir, "collector.yaml"), operator: filepath.Join(dir, "operator"), second: filepath.Join(dir, "second"),
	}
	c.CAFile = filepath.Join(c.operator, "server-ca.crt")
	text := fmt.Sprintf("state: %q\nlisten: {agents: %q, gates: %q, operators: %q, health: %q}\n",
		filepath.Join(dir, "collector"), c.Agents, c.Gates, c.Operators, c.health) + strings.Join(lines, "\n")
	if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	said := c.run(t, "init", "--config", c.config, "--operator-out", c.operator, "--name", "localhost,127.0.0.1,10.0.2.2")
	_, rest, _ := strings.Cut(said, "CA fingerprint:")
	c.Fingerprint, _, _ = strings.Cut(strings.TrimSpace(rest), "\n")
	c.run(t, "bundle", "operator", "second", "--config", c.config, "--out", c.second)
	c.Start(t)
	return c
}

// Start starts it, also again after Stop.
func (c *Collector) Start(t testing.TB) {
	t.Helper()
	c.running = Start(t, "collector", exec.Command(c.program, "serve", "--config", c.config))
	ready := func() bool {
		answer, err := http.Get("http://" + c.health + "/readyz")
		if err != nil {
			return c.running.Ended()
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	}
	if !EventuallyEvery(t, 20*time.Millisecond, readyLimit, ready) || c.running.Ended() {
		t.Fatalf("the collector is not ready:\n%s", c.running.Output())
	}
}

// Stop takes it away at once.
func (c *Collector) Stop() { c.running.Kill() }

// Output is all that it printed since it was started.
func (c *Collector) Output() string { return c.running.Output() }

// Operator runs one of the operators' commands and returns what it printed.
func (c *Collector) Operator(t testing.TB, args ...string) string {
	t.Helper()
	return c.run(t, append([]string{"--collector", c.Operators, "--operator", c.operator}, args...)...)
}

// SecondOperator runs a command as another operator.
func (c *Collector) SecondOperator(t testing.TB, args ...string) string {
	t.Helper()
	return c.run(t, append([]string{"--collector", c.Operators, "--operator", c.second}, args...)...)
}

// Both gives an order that takes two operators. It returns what the second one
// reads.
func (c *Collector) Both(t testing.TB, args ...string) string {
	t.Helper()
	c.Operator(t, args...)
	return c.SecondOperator(t, args...)
}

// AllowSoftwareKey lets two operators allow an asset a key outside a TPM.
func (c *Collector) AllowSoftwareKey(t testing.TB, asset string) {
	t.Helper()
	c.Both(t, SoftwareKeyOrder(asset)...)
}

// SoftwareKeyOrder is the order that allows an asset a key outside a TPM for a
// month.
func SoftwareKeyOrder(asset string) []string {
	until := time.Now().AddDate(0, 1, 0).Format(time.DateOnly)
	return []string{"software-key", "allow", asset, "--until", until, "--reason", "test machine without a TPM"}
}

func (c *Collector) run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(c.program, args...).Output()
	if err != nil {
		var said []byte
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			said = exit.Stderr
		}
		t.Fatalf("pfoertner-collector %v: %v\n%s%s", args, err, out, said)
	}
	return strings.TrimSpace(string(out))
}

// Free is a loopback address that nobody listens on. Its port is none that the
// kernel gives to outgoing connections (32768 and above), so that it stays free.
func Free(t testing.TB) string {
	t.Helper()
	var err error
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000)))
		var l net.Listener
		if l, err = net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatalf("no free port: %v", err)
	return ""
}
