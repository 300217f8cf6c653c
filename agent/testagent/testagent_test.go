package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"pfoertner/agent/probe"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
	"pfoertner/agent/testcollector"
	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func compliantTree(t *testing.T) (string, *probe.Collector) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	if err := applyChange(dir, "compliant", time.Now()); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	ledger := probe.FileLedger{Path: filepath.Join(dir, "ledger.json")}
	return dir, probe.NewCollector(host(root), probe.Probes(probe.Options{AgentVersion: version, Ledger: ledger}))
}

func TestCompliantNotebookIsReadInFull(t *testing.T) {
	_, c := compliantTree(t)
	ev := c.Collect(t.Context())
	for _, section := range posture.Sections() {
		if r := posture.ReadingOf(ev, section); r.GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
			t.Errorf("%s is %s: %s", section, r.GetState(), r.GetReason())
		}
	}
	for _, v := range ev.GetVolumes().GetVolumes() {
		luks := func(l *posturev1.StorageLayer) bool {
			return l.GetType() == posturev1.LayerType_LAYER_TYPE_LUKS2 && l.GetVerifiedBy() == posturev1.VerifiedBy_VERIFIED_BY_HEADER
		}
		for _, p := range v.GetPaths() {
			if v.GetMountClass() != posturev1.MountClass_MOUNT_CLASS_BOOT && !slices.ContainsFunc(p.GetLayers(), luks) {
				t.Errorf("volume %v is not encrypted", v)
			}
		}
	}
	if n := ev.GetPatch().GetPendingSecurity(); n != 0 {
		t.Errorf("%d security updates are pending", n)
	}
}

// Each change is seen in the section that it is about, and in no other.
func TestChangesShowInTheirSection(t *testing.T) {
	b, err := readBook()
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{
		"unencrypted": "volumes", "null-cipher": "volumes", "volumes-unreadable": "volumes",
		"updates-pending": "patch", "feed-stale": "patch",
		"secure-boot-off": "secure_boot", "firewall-off": "firewall", "no-vpn-client": "vpn",
	}
	for name := range b.Changes {
		t.Run(name, func(t *testing.T) {
			dir, c := compliantTree(t)
			before := c.Collect(t.Context())
			if err := applyChange(dir, name, time.Now()); err != nil {
				t.Fatal(err)
			}
			delta := posture.Diff(before, c.Collect(t.Context()))
			var changed []string
			for _, section := range posture.Sections() {
				if posture.ReadingOf(delta, section).GetReason() != "not reported" {
					changed = append(changed, section)
				}
			}
			if !slices.Equal(changed, []string{sections[name]}) {
				t.Errorf("changed %v, want %v", changed, sections[name])
			}
			if err := applyChange(dir, "compliant", time.Now()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestPendingUpdateIsKnownSinceBeforeTheAgentStarted(t *testing.T) {
	dir, c := compliantTree(t)
	if err := applyChange(dir, "updates-pending", time.Now()); err != nil {
		t.Fatal(err)
	}
	pending := c.Collect(t.Context()).GetPatch().GetPending()
	if len(pending) != 1 || time.Since(pending[0].GetFirstSeenAt().AsTime()) < 19*24*time.Hour {
		t.Errorf("pending %v", pending)
	}
}

func TestUnknownChangeIsAnError(t *testing.T) {
	if err := applyChange(t.TempDir(), "shiny", time.Now()); err == nil {
		t.Error("an unknown change was made")
	}
}

// From a file that changes to the report at the collector: real watcher, real
// probes, real TLS.
func TestChangeReachesTheCollectorAtOnce(t *testing.T) {
	dir, c := compliantTree(t)
	collector := testcollector.Start(t)
	ctx, cancel := context.WithCancel(context.Background())
	var agent sync.WaitGroup
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	agent.Go(func() {
		err := session.Run(ctx, session.Options{
			Target: collector.Target(), State: collector.Enrolled(t, time.Hour),
			Collector: c, Watcher: treeWatcher{dir}, Log: log,
			Board: status.NewBoard(filepath.Join(t.TempDir(), "status.json"), log),
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); agent.Wait() })

	s := collector.Next(t)
	s.Welcome(t, time.Hour)
	s.Acknowledge(t, s.Report(t))
	var took []time.Duration
	for i := range 4 {
		name := []string{"unencrypted", "compliant"}[i%2]
		began := time.Now()
		if err := applyChange(dir, name, began); err != nil {
			t.Fatal(err)
		}
		for {
			r := s.Report(t)
			s.Acknowledge(t, r)
			if r.GetDelta().GetVolumes() != nil {
				break
			}
		}
		took = append(took, time.Since(began).Round(time.Millisecond))
	}
	t.Logf("change to report: %v", took)
	if took[0] > time.Second {
		t.Errorf("the first change took %v", took[0])
	}
}
