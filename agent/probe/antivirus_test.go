package probe

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// clamDatabase is a ClamAV database that was built so long before testNow.
func clamDatabase(age time.Duration) *fstest.MapFile {
	header := "ClamAV-VDB:" + testNow.Add(-age).Format("02 Jan 2006 15-04 -0700") + ":27500:2075000:90:x:y:builder:1763700000"
	return file(header + strings.Repeat(" ", 512-len(header)) + "data")
}

func TestAntivirusOnLinux(t *testing.T) {
	clam := fstest.MapFS{
		"usr/sbin/clamd": {}, "var/lib/clamav/daily.cvd": clamDatabase(3 * 24 * time.Hour),
		dpkgStatusFile: file("Package: dpkg\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.21.22\n\n" +
			"Package: clamav-daemon\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.4.3+dfsg-1\n"),
	}
	on, off := posturev1.AntivirusState_ANTIVIRUS_STATE_ON, posturev1.AntivirusState_ANTIVIRUS_STATE_OFF
	for _, c := range []struct {
		name      string
		files     fstest.MapFS
		processes Processes
		state     posturev1.ReadingState
		want      []*posturev1.AntivirusProduct
	}{
		{name: "none is an observation, not a failure", files: fstest.MapFS{}, processes: fakeProcesses{}, state: observed},
		{name: "ClamAV runs", files: clam, processes: fakeProcesses{"clamd"}, state: observed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: on, UpToDate: yes, Version: "1.4.3+dfsg-1"}}},
		{name: "ClamAV does not run", files: clam, processes: fakeProcesses{}, state: observed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: off, UpToDate: yes, Version: "1.4.3+dfsg-1"}}},
		{name: "signatures of last week", files: with(clam, fstest.MapFS{"var/lib/clamav/daily.cvd": clamDatabase(8 * 24 * time.Hour)}), processes: fakeProcesses{"clamd"}, state: observed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: on, UpToDate: no, Version: "1.4.3+dfsg-1"}}},
		{name: "the newer of two databases counts", files: with(clam, fstest.MapFS{"var/lib/clamav/daily.cvd": clamDatabase(800 * time.Hour), "var/lib/clamav/daily.cld": clamDatabase(time.Hour)}),
			processes: fakeProcesses{"clamd"}, state: observed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: on, UpToDate: yes, Version: "1.4.3+dfsg-1"}}},
		{name: "without signatures it finds nothing", files: fstest.MapFS{"usr/sbin/clamd": {}}, processes: fakeProcesses{"clamd"}, state: observed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: on, UpToDate: no}}},
		{name: "signatures that are none", files: fstest.MapFS{"usr/sbin/clamd": {}, "var/lib/clamav/daily.cvd": file("nonsense")}, processes: fakeProcesses{"clamd"}, state: failed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: on}}},
		{name: "processes are not readable", files: fstest.MapFS{"usr/sbin/clamd": {}}, state: failed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV"}}},
		{name: "two products", files: with(clam, fstest.MapFS{"opt/microsoft/mdatp/sbin/wdavdaemon": {}}), processes: fakeProcesses{"wdavdaemon"}, state: observed,
			want: []*posturev1.AntivirusProduct{{Name: "ClamAV", State: off, UpToDate: yes, Version: "1.4.3+dfsg-1"}, {Name: "Microsoft Defender for Endpoint", State: on}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := observe(t, Host{Files: c.files, Processes: c.processes}, antivirusProbe()).Antivirus
			wantState(t, got.Reading, c.state)
			if len(got.Products) != len(c.want) {
				t.Fatalf("products %v, want %v", got.Products, c.want)
			}
			for i, p := range got.Products {
				if w := c.want[i]; p.Name != w.Name || p.State != w.State || p.UpToDate != w.UpToDate || p.Version != w.Version {
					t.Errorf("got  %v\nwant %v", p, w)
				}
			}
			if got.Healthy != unknown {
				t.Error("nothing on Linux speaks for all products together")
			}
		})
	}
}

func FuzzClamHeader(f *testing.F) {
	f.Add("ClamAV-VDB:21 Nov 2026 08-24 +0000:27500:2075000")
	f.Add("ClamAV-VDB::")
	f.Fuzz(func(t *testing.T, content string) {
		if built, err := parseClamHeader(strings.NewReader(content)); err == nil && built.IsZero() {
			t.Error("no error and no time")
		}
	})
}

// DefGuard tested a bit that says what kind of product it is.
func TestProductStateDefGuard0x20000(t *testing.T) {
	on, off := posturev1.AntivirusState_ANTIVIRUS_STATE_ON, posturev1.AntivirusState_ANTIVIRUS_STATE_OFF
	for _, c := range []struct {
		word    uint32
		state   posturev1.AntivirusState
		current posturev1.Ternary
	}{
		{0x061100, on, yes},  // Defender, on, up to date
		{0x061110, on, no},   // out of date
		{0x060100, off, yes}, // off: the bit 0x20000 is set all the same
		{0x041000, on, yes},  // another product, on: the bit is not set
		{0x062100, posturev1.AntivirusState_ANTIVIRUS_STATE_SNOOZED, yes},
		{0x063110, posturev1.AntivirusState_ANTIVIRUS_STATE_EXPIRED, no},
		{0x064100, posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED, yes},
		{0x061120, on, unknown},
	} {
		if state, current := parseProductState(c.word); state != c.state || current != c.current {
			t.Errorf("0x%06X is %s, %s; want %s, %s", c.word, state, current, c.state, c.current)
		}
	}
}

// A server says when Defender was given its signatures, and nothing of how new
// they ought to be.
func TestSignaturesOfADefenderOnAServer(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	applied := func(age time.Duration) []byte {
		ticks := now.Add(-age).Unix() + 11_644_473_600 // seconds since 1601
		return binary.LittleEndian.AppendUint64(nil, uint64(ticks)*10_000_000)
	}
	for what, c := range map[string]struct {
		value any
		want  posturev1.Ternary
		state posturev1.ReadingState
	}{
		"a day old":           {applied(24 * time.Hour), yes, observed},
		"just in time":        {applied(7 * 24 * time.Hour), yes, observed},
		"a week old":          {applied(7*24*time.Hour + time.Second), no, observed},
		"an hour ahead":       {applied(-time.Hour), yes, observed},
		"days ahead":          {applied(-48 * time.Hour), unknown, failed},
		"after all calendars": {bytes.Repeat([]byte{0xff}, 8), unknown, failed},
		"zero":                {make([]byte, 8), unknown, observed},
		"not said":            {nil, unknown, observed},
		"cut short":           {[]byte{1, 2, 3}, unknown, failed},
		"a number":            {7, unknown, failed},
	} {
		h := Host{Now: func() time.Time { return now }, Windows: &Windows{
			Registry: keys{
				currentVersionKey + `\InstallationType`:          "Server",
				defenderSignatureKey + `\` + defenderAppliedName: c.value,
			},
			Services: recordedServices{{Name: defenderService, State: serviceRunning}},
		}}
		a := observe(t, h, antivirusProbe()).Antivirus
		if len(a.Products) != 1 || a.Products[0].State != posturev1.AntivirusState_ANTIVIRUS_STATE_ON || a.Products[0].UpToDate != c.want {
			t.Errorf("%s: %v, want %s", what, a.Products, c.want)
		}
		wantState(t, a.Reading, c.state)
	}
}
