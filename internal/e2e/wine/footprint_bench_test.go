//go:build linux

package wine_test

import (
	"os"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// The service at rest for PFOERTNER_IDLE (10 min). Wine's own libraries are in
// the same process: this is an indication, no measurement of Windows.
func BenchmarkAgentUnderWine(b *testing.B) {
	idle := 10 * time.Minute
	if text := os.Getenv("PFOERTNER_IDLE"); text != "" {
		var err error
		if idle, err = time.ParseDuration(text); err != nil {
			b.Fatalf("PFOERTNER_IDLE: %v", err)
		}
	}
	for b.Loop() {
		d := newDesk(b)
		d.writeToken(b)
		installed := time.Now()
		d.install(b, newer, d.settings()...)
		d.await(b, "evidence", reported)
		first := time.Since(installed)
		pid := d.PID(b, `\Agent\pfoertner-agent.exe`)
		began := e2e.UsageOf(b, pid)
		<-time.After(idle)
		rest := e2e.UsageOf(b, pid)
		exe, err := os.Stat(program("agent-" + newer + ".exe"))
		if err != nil {
			b.Fatal(err)
		}

		b.ReportMetric(0, "ns/op") // it takes as long as it is told to
		b.ReportMetric(float64(exe.Size())/(1<<20), "program-MB")
		b.ReportMetric(first.Seconds(), "installed-and-reported-s")
		b.ReportMetric(float64(rest.Resident)/(1<<20), "resident-MB")
		b.ReportMetric(float64(rest.Peak)/(1<<20), "peak-MB")
		b.ReportMetric(100*(rest.CPU-began.CPU).Seconds()/idle.Seconds(), "%-of-a-core")
	}
}
