//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pfoertner/internal/e2e"
)

// scrapeEvery is how often the exporter is asked, as Prometheus does by default.
const scrapeEvery = time.Minute

// The agent as it is released, enrolled at a real collector, beside Debian's
// node exporter with all it reads by default, which is scraped once a minute.
// Both are watched at rest for PFOERTNER_IDLE (10 min). The collector's report
// interval is a third of that: the agent rests less than with the shipped
// policy (15 min), so that whole collections are part of what is measured.
//
// A cold collection is the first of the process, its files not in the page
// cache; a warm one is what follows in every interval.
func BenchmarkAgent(b *testing.B) {
	idle := 10 * time.Minute
	if text := os.Getenv("PFOERTNER_IDLE"); text != "" {
		var err error
		if idle, err = time.ParseDuration(text); err != nil {
			b.Fatalf("PFOERTNER_IDLE: %v", err)
		}
	}
	if _, err := exec.LookPath("prometheus-node-exporter"); err != nil {
		b.Skipf("SKIPPED: the peer of this benchmark is missing: %v", err)
	}
	for b.Loop() {
		h := newBench(b, idle)
		exporter := h.startExporter(b)
		agent := h.startAgent(b)
		began := [2]e2e.Usage{e2e.UsageOf(b, agent.PID()), e2e.UsageOf(b, exporter.PID())}
		h.scrapeFor(b, idle)
		rest := [2]e2e.Usage{e2e.UsageOf(b, agent.PID()), e2e.UsageOf(b, exporter.PID())}
		cold, warm := collections(b, agent)

		b.ReportMetric(0, "ns/op") // it takes as long as it is told to
		b.ReportMetric(milliseconds(cold), "cold-ms")
		b.ReportMetric(milliseconds(quantile(warm, 0.5)), "warm-ms")
		b.ReportMetric(float64(len(warm)), "warm-collections")
		b.ReportMetric(began[0].CPU.Seconds(), "agent-start-cpu-s")
		for i, name := range []string{"agent", "exporter"} {
			b.ReportMetric(megabytes(rest[i].Peak), name+"-peak-MB")
			b.ReportMetric(megabytes(rest[i].Resident), name+"-resident-MB")
			b.ReportMetric((rest[i].CPU - began[i].CPU).Seconds(), name+"-idle-cpu-s")
		}
		b.ReportMetric(100*(rest[0].CPU-began[0].CPU).Seconds()/idle.Seconds(), "agent-%-of-a-core")
		b.ReportMetric(float64(rest[0].Peak)/float64(rest[1].Peak), "peak-ratio")
		b.ReportMetric(float64(rest[0].CPU-began[0].CPU)/float64(max(rest[1].CPU-began[1].CPU, e2e.Tick)), "cpu-ratio")
	}
}

// bench is a collector on loopback that waits for this machine's agent.
type bench struct {
	*e2e.Collector
	dir, exporter string
}

func (h *bench) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

func (h *bench) write(b *testing.B, name, text string) string {
	b.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	return h.path(name)
}

// newBench builds the programs as they are released and starts the collector.
func newBench(b *testing.B, idle time.Duration) *bench {
	b.Helper()
	h := &bench{dir: b.TempDir(), exporter: e2e.Free(b)}
	e2e.BuildProgram(b, h.path("pfoertner-agent"), "pfoertner/agent")
	e2e.BuildProgram(b, h.path("pfoertner-collector"), "pfoertner/collector")
	h.Collector = e2e.StartCollector(b, h.path("pfoertner-collector"), h.dir)
	// Agents report in every third of the age that evidence may have.
	shipped := h.Operator(b, "policy", "show")
	policy := strings.Replace(shipped, "max_age: 45m", fmt.Sprintf("max_age: %ds", int(max(idle, time.Minute).Seconds())), 1)
	if policy == shipped {
		b.Fatalf("the shipped policy has another freshness:\n%s", shipped)
	}
	h.Operator(b, "policy", "apply", h.write(b, "policy.yaml", policy))
	h.Operator(b, "inventory", "import", h.write(b, "inventory.csv", "asset_number;unit\n"+asset+";inneres/it\n"))
	h.AllowSoftwareKey(b, asset)
	h.write(b, "token", h.Operator(b, "token", asset))
	return h
}

// startAgent starts the agent on files that have to come from the disk, and
// waits until its first report is stored.
func (h *bench) startAgent(b *testing.B) *e2e.Program {
	b.Helper()
	evict(b, "/var/lib/dpkg/status", "/var/lib/apt/lists/*")
	agent := e2e.Start(b, "agent", exec.Command(h.path("pfoertner-agent"), "run", "--log-level", "debug",
		"--device-key", "software", "--collector", h.Agents, "--ca-file", h.CAFile, "--token-file", h.path("token"),
		"--state-dir", h.path("agent"), "--status-file", h.path("agent", "status.json")))
	says(b, agent, everySection)
	if !e2e.Eventually(b, soon, func() bool { return strings.Contains(h.Operator(b, "devices", asset, "--json"), `"evidence"`) }) {
		b.Fatalf("no evidence arrived:\n%s", agent.Output())
	}
	return agent
}

// evict drops files from the page cache: posix_fadvise(2).
func evict(b *testing.B, patterns ...string) {
	b.Helper()
	for _, pattern := range patterns {
		names, err := filepath.Glob(pattern)
		if err != nil {
			b.Fatal(err)
		}
		for _, name := range names {
			f, err := os.Open(name)
			if err != nil {
				continue // not for this user, nor for the agent
			}
			err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			f.Close()
			if err != nil {
				b.Fatalf("dropping %s from the page cache: %v", name, err)
			}
		}
	}
}

func (h *bench) startExporter(b *testing.B) *e2e.Program {
	b.Helper()
	exporter := e2e.Start(b, "exporter", exec.Command("prometheus-node-exporter", "--web.listen-address="+h.exporter))
	if !e2e.Eventually(b, soon, func() bool { return h.scrape(b.Context()) == nil }) {
		b.Fatalf("the exporter does not answer:\n%s", exporter.Output())
	}
	return exporter
}

func (h *bench) scrape(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+h.exporter+"/metrics", nil)
	if err != nil {
		return err
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// scrapeFor lets both rest, but for the scrapes.
func (h *bench) scrapeFor(b *testing.B, idle time.Duration) {
	b.Helper()
	over := time.After(idle)
	next := time.NewTicker(scrapeEvery)
	defer next.Stop()
	for {
		if err := h.scrape(b.Context()); err != nil {
			b.Fatal(err)
		}
		select {
		case <-over:
			return
		case <-next.C:
		}
	}
}

// everySection begins the agent's line about a whole collection.
const everySection = `msg="every section was read"`

// collections are the times that the agent's collections took.
func collections(b *testing.B, agent *e2e.Program) (cold time.Duration, warm []time.Duration) {
	b.Helper()
	var all []time.Duration
	for _, m := range regexp.MustCompile(everySection+`.* took=(\S+)`).FindAllStringSubmatch(agent.Output(), -1) {
		took, err := time.ParseDuration(m[1])
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, took)
	}
	if len(all) < 2 {
		b.Fatalf("%d collections in the time given: PFOERTNER_IDLE is too short\n%s", len(all), agent.Output())
	}
	return all[0], all[1:]
}

func megabytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }
