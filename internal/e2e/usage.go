//go:build linux

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Tick is the unit of CPU time in /proc: USER_HZ is 100 on every architecture
// that we build for.
const Tick = 10 * time.Millisecond

// Usage is what a process has used since it started.
type Usage struct {
	Peak, Resident int64 // bytes
	CPU            time.Duration
}

// UsageOf reads VmHWM and VmRSS (proc_pid_status(5)) and utime and stime
// (proc_pid_stat(5)).
func UsageOf(b testing.TB, pid int) Usage {
	b.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), name))
		if err != nil {
			b.Fatal(err)
		}
		return string(text)
	}
	number := func(text string) int64 {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	status, stat := read("status"), read("stat")
	size := func(key string) int64 {
		m := regexp.MustCompile(key + `:\s+(\d+) kB`).FindStringSubmatch(status)
		if m == nil {
			b.Fatalf("no %s in the status of process %d", key, pid)
		}
		return number(m[1]) << 10
	}
	// The second field is the program's name in brackets; utime is field 14.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	return Usage{
		Peak: size("VmHWM"), Resident: size("VmRSS"),
		CPU: time.Duration(number(fields[14-3])+number(fields[15-3])) * Tick,
	}
}
