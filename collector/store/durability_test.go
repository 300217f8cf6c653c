package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/attestation"
	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// childPath tells the test binary, started once more, to be the collector that
// is killed.
const childPath = "PFOERTNER_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		if err := saveForEver(path, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1) // it is meant to be killed
	}
	os.Exit(m.Run())
}

const burst = 1000

// enrols says whether a device of the burst enrols again and again; the others
// report.
func enrols(device int) bool { return device%4 == 0 }

// saveForEver saves reports and enrolments from many callers at once, each with
// an audit record, and prints the number of each one that was acknowledged.
func saveForEver(path string, out io.Writer) error {
	s, err := Open(context.Background(), path, Options{})
	if err != nil {
		return err
	}
	ev, res := threeKB()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for caller := range 16 {
		wg.Go(func() {
			for n := caller; ; n += 16 {
				mine := proto.CloneOf(res)
				mine.EvidenceDigest = fmt.Append(nil, n)
				record := audit.Record{At: morning, Kind: "verdict.changed", DeviceID: deviceID(n % burst)}
				var err error
				if enrols(n % burst) {
					err = enrolAs(s, n)
				} else {
					err = s.SaveReport(context.Background(), deviceID(n%burst), ev, mine, record)
				}
				if err != nil {
					return
				}
				mu.Lock()
				fmt.Fprintln(out, n)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return s.Close()
}

// enrolAs saves the n-th enrolment: device, key and TPM all say n.
func enrolAs(s *Store, n int) error {
	d, number := device(n%burst), fmt.Sprint(n)
	d.Key = &fleetv1.DeviceKey{Fingerprint: number}
	tpm := attestation.Known{DeviceID: d.GetId(), EndorsementKey: []byte("ek"), AttestationKey: []byte(number), Since: morning}
	record := audit.Record{At: morning, Kind: "device.enrolled", DeviceID: d.GetId()}
	return s.SaveEnrolment(context.Background(), d, []byte(number), number, morning, &tpm, record)
}

// enrolled returns the number that device, key and TPM say, which must be one.
func enrolled(t *testing.T, s *Store) map[int]int {
	t.Helper()
	aks, numbers := map[string]string{}, map[int]int{}
	for _, k := range allTPMs(t, s) {
		aks[k.DeviceID] = string(k.AttestationKey)
	}
	for i, d := range allDevices(t, s) {
		if !enrols(i) || d.GetKey() == nil {
			continue
		}
		spki, serial, _, err := s.Credential(t.Context(), d.GetId())
		check(t, err)
		number := d.GetKey().GetFingerprint()
		if string(spki) != number || serial != number || aks[d.GetId()] != number {
			t.Errorf("device %d is in parts: device %s, key %s, certificate %s, TPM %s", i, number, spki, serial, aks[d.GetId()])
		}
		numbers[i] = must(strconv.Atoi(number))(t)
	}
	return numbers
}

// Killed without warning in the middle of a burst: every report and every
// enrolment that was acknowledged is there as a whole, and the audit log is
// whole.
func TestAcknowledgedReportsSurviveKill9(t *testing.T) {
	rounds := 3
	if testing.Short() {
		rounds = 1
	}
	path := filepath.Join(t.TempDir(), "pfoertner.db")
	s := open(t, path, Options{})
	enrol(t, s, burst)
	check(t, s.Close())
	before := uint64(0)
	for round := range rounds {
		acknowledged := killAfter(t, path, burst/2+round*97)
		s := open(t, path, Options{})
		last := map[int]int{} // device → newest acknowledged
		for n := range acknowledged {
			last[n%burst] = max(last[n%burst], n)
		}
		enrolment := enrolled(t, s)
		for device, n := range last {
			if enrols(device) {
				if enrolment[device] < n {
					t.Errorf("enrolment %d of device %d was acknowledged, stored is %d", n, device, enrolment[device])
				}
				continue
			}
			_, res, err := s.Report(t.Context(), deviceID(device))
			if err != nil {
				t.Fatal(err)
			}
			var stored int
			if _, err := fmt.Sscan(string(res.GetEvidenceDigest()), &stored); err != nil || stored < n {
				t.Errorf("report %d of device %d was acknowledged, stored is %d", n, device, stored)
			}
		}
		total := wholeChain(t, s)
		if total < before+uint64(len(acknowledged)) {
			t.Errorf("%d audit records for %d acknowledged changes", total-before, len(acknowledged))
		}
		t.Logf("killed after %d acknowledged reports; %d were on the disk", len(acknowledged), total-before)
		before = total
		check(t, s.Close())
	}
}

// killAfter starts a child on the database, kills it when it has acknowledged a
// number of reports, and returns all that it has acknowledged until it died.
func killAfter(t *testing.T, path string, enough int) map[int]bool {
	t.Helper()
	program, err := os.Executable()
	check(t, err)
	child := exec.Command(program)
	child.Env = append(os.Environ(), childPath+"="+path)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	check(t, err)
	check(t, child.Start())
	acknowledged := map[int]bool{}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		// Each line is one write to a pipe, which the kernel does not cut.
		var n int
		if _, err := fmt.Sscan(lines.Text(), &n); err != nil {
			t.Errorf("child says %q", lines.Text())
		}
		acknowledged[n] = true
		if len(acknowledged) == enough {
			check(t, child.Process.Kill())
		}
	}
	if err := child.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("child ended by itself: %v", err)
	}
	if len(acknowledged) < enough {
		t.Fatalf("child acknowledged %d reports, want at least %d", len(acknowledged), enough)
	}
	return acknowledged
}
