//go:build linux

package e2e_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// trials is how often each way is measured, at least.
const trials = 20

// The bars: from the change on the notebook to the last packet.
const (
	barMedian = 300 * time.Millisecond
	barP99    = time.Second
)

// BenchmarkRevocation measures cases 5 and 6: how long after the disk turned
// unencrypted the last packet got through, with a packet every millisecond. The
// parts are what the collector's histogram says of the same revocations:
// evidence at hand to verdict stored, to gate told; gate told to packets cut (by
// the gate's clock) and to cut confirmed; and from its evidence to that. A part
// may end after the last packet: the kernel drops before it has said so, and a
// session is confirmed as gone only when OpenVPN no longer lists it.
func BenchmarkRevocation(b *testing.B) {
	for _, client := range []string{"cooperative", "hostile"} {
		b.Run(client, func(b *testing.B) {
			s := newSite(b, setting{})
			s.startAgent(b, admit)
			r := &revocation{site: s, hostile: client == "hostile", disk: s.newDisk(b), fine: e2e.StartProber(b, s.notebook, s.office)}
			var took []time.Duration
			parts := map[string][]time.Duration{}
			for range max(trials, b.N) {
				total, by := r.trial(b)
				took = append(took, total)
				for part, d := range by {
					parts[part] = append(parts[part], d)
				}
			}
			report(b, took, parts)
		})
	}
}

// revocation is what trials need.
type revocation struct {
	*site
	hostile bool
	disk    disk
	fine    *e2e.Prober
}

// trial connects, turns the disk unencrypted, and puts everything back.
func (r *revocation) trial(b *testing.B) (total time.Duration, parts map[string]time.Duration) {
	client := r.dialVPN(b)
	r.fine.AwaitFlow(b, soon)
	if r.hostile {
		e2e.Hostile(b, r.notebook, r.vpn.Port)
	}
	before := r.revocations(b)
	changed := r.disk.turn(b, r.disk.plain)
	r.fine.AwaitSilence(b, still, soon)
	after := before
	if !e2e.Eventually(b, soon, func() bool {
		after = r.revocations(b)
		return after["cut_confirmed"].count > before["cut_confirmed"].count
	}) {
		b.Fatal("the cut was not confirmed")
	}
	total = r.fine.Last().Sub(changed)

	parts = map[string]time.Duration{}
	for part := range after {
		// The verdict may be there before the gate has reported the session.
		if after[part].count > before[part].count {
			parts[part] = after[part].sum - before[part].sum
		}
	}
	client.Kill()
	if r.hostile {
		r.notebook.Run(b, "nft", "delete", "table", "inet", "hostile")
	}
	r.disk.turn(b, r.disk.encrypted)
	r.awaitVerdict(b, admit)
	return total, parts
}

// disk is the file that says what the notebook's system runs from.
type disk struct {
	file             string
	encrypted, plain []byte
}

func (s *site) newDisk(b *testing.B) disk {
	b.Helper()
	const file = "proc/1/mountinfo"
	read := func(tree string) []byte {
		text, err := os.ReadFile(filepath.Join(tree, file))
		if err != nil {
			b.Fatal(err)
		}
		return text
	}
	other := s.path("unencrypted")
	for _, change := range []string{"compliant", "unencrypted"} {
		s.run(b, s.notebook, "testagent", "--tree", other, "--change", change)
	}
	return disk{file: filepath.Join(s.tree, file), encrypted: read(s.tree), plain: read(other)}
}

// turn changes the disk in one step and returns the moment just before.
func (d disk) turn(b *testing.B, text []byte) time.Time {
	b.Helper()
	next := d.file + ".new"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		b.Fatal(err)
	}
	at := time.Now()
	if err := os.Rename(next, d.file); err != nil {
		b.Fatal(err)
	}
	return at
}

// observed is one part of the collector's histogram.
type observed struct {
	count int
	sum   time.Duration
}

// revocations reads the histogram of revocations, by part.
func (s *site) revocations(b *testing.B) map[string]observed {
	b.Helper()
	web := &http.Client{Timeout: soon, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(_ context.Context, _, address string) (net.Conn, error) { return dial(s.inside, address) },
	}}
	answer, err := web.Get("http://127.0.0.1:7604/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		b.Fatal(err)
	}
	parts := map[string]observed{}
	for _, m := range regexp.MustCompile(`(?m)^pfoertner_revocation_seconds_(sum|count)\{part="(\w+)"\} (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			b.Fatal(err)
		}
		p := parts[m[2]]
		if m[1] == "count" {
			p.count = int(value)
		} else {
			p.sum = time.Duration(value * float64(time.Second))
		}
		parts[m[2]] = p
	}
	if len(parts) == 0 {
		b.Fatal("the collector has no histogram of revocations")
	}
	return parts
}

// report prints what was measured, and fails when a bar is missed.
func report(b *testing.B, took []time.Duration, parts map[string][]time.Duration) {
	b.Helper()
	shortest, median, p99 := quantile(took, 0), quantile(took, 0.5), quantile(took, 0.99)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(milliseconds(shortest), "min-ms")
	b.ReportMetric(milliseconds(median), "median-ms")
	b.ReportMetric(milliseconds(p99), "p99-ms")
	table := &strings.Builder{}
	row := func(name string, all []time.Duration) {
		fmt.Fprintf(table, "\n%-24s %8.1f %8.1f %8.1f", name, milliseconds(quantile(all, 0)), milliseconds(quantile(all, 0.5)), milliseconds(quantile(all, 0.99)))
	}
	row("change to last packet", took)
	for _, part := range slices.Sorted(maps.Keys(parts)) {
		b.ReportMetric(milliseconds(quantile(parts[part], 0.5)), part+"-ms")
		row("  "+part, parts[part])
	}
	b.Logf("%d trials, milliseconds      min   median      p99%s", len(took), table)
	if median >= barMedian || p99 >= barP99 {
		b.Errorf("the bars are median < %s and p99 < %s", barMedian, barP99)
	}
}

// quantile is the nearest-rank quantile.
func quantile(all []time.Duration, q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
