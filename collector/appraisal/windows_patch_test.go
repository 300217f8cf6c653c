package appraisal

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// windowsTableFile is a month and a half of 26100 as it really was: client,
// server and hotpatches count apart.
const windowsTableFile = `issued: 2026-11-20
as_of: 2026-07-10
sources: {s: {text: invented for tests but for the numbers of May and June, read: 2026-11-20}}
windows_builds:
  - {build: 26100, track: client, ubr: 8246, release_date: 2026-04-14, kb: KB5083769, class: security, source: s}
  - {build: 26100, track: client, ubr: 8328, release_date: 2026-04-30, kb: KB5083631, class: preview, source: s}
  - {build: 26100, track: client, ubr: 8457, release_date: 2026-05-12, kb: KB5089549, class: security, source: s}
  - {build: 26100, track: client, ubr: 8655, release_date: 2026-06-09, kb: KB5094126, class: security, source: s}
  - {build: 26100, track: client, ubr: 8737, release_date: 2026-06-23, class: oob-security, source: s}
  - {build: 26100, track: client, ubr: 8800, release_date: 2026-06-30, class: preview, source: s}
  - {build: 26100, track: hotpatch, ubr: 8246, release_date: 2026-04-14, class: security, source: s}
  - {build: 26100, track: hotpatch, ubr: 8390, release_date: 2026-05-12, kb: KB5089466, class: security, source: s}
  - {build: 26100, track: hotpatch, ubr: 8600, release_date: 2026-06-09, class: security, source: s}
  - {build: 26100, track: server, ubr: 32860, release_date: 2026-05-12, class: security, source: s}
  - {build: 26100, track: server, ubr: 32995, release_date: 2026-06-09, class: security, source: s}
windows_lifecycle:
  - {build: 26100, editions: [Professional], last_day: 2026-10-13, source: s}
  - {build: 26100, editions: [Enterprise], last_day: 2027-10-12, source: s}
  - {build: 26100, editions: [ServerStandard], last_day: 2034-11-14, source: s}
  - {build: 19045, last_day: 2025-10-14, extended_last_day: 2028-10-10, source: s}
ring:
  - {build: 26100, track: client, ubr: 8457, approved_on: 2026-05-20}
  - {build: 26100, track: client, ubr: 8655, approved_on: 2026-06-15, groups: [pilot, it]}
`

// windows is a client of build 26100 at a revision.
func windows(ubr uint32, change ...func(*posturev1.Platform)) *posturev1.Platform {
	p := &posturev1.Platform{
		Reading: observed(), OperatingSystem: posturev1.OperatingSystem_OPERATING_SYSTEM_WINDOWS,
		Distribution: "windows", Edition: "Enterprise", Version: "24H2", Architecture: "amd64",
		FormFactor: posturev1.FormFactor_FORM_FACTOR_NOTEBOOK,
		Windows: &posturev1.WindowsRelease{
			Build: 26100, Ubr: ubr, InstallationType: "Client", Hotpatch: ternaryNo, ExtendedSupport: ternaryNo,
		},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func server(p *posturev1.Platform) {
	p.Windows.InstallationType, p.Edition = "Server Core", "ServerStandard"
}

func hotpatch(is posturev1.Ternary) func(*posturev1.Platform) {
	return func(p *posturev1.Platform) { p.Windows.Hotpatch = is }
}

func edit(name string) func(*posturev1.Platform) {
	return func(p *posturev1.Platform) { p.Edition = name }
}

func TestExposureIsCountedFromTheOldestMissingSecurityUpdate(t *testing.T) {
	table := mustParse(t, windowsTableFile)
	july := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	since := func(month time.Month, dayOfMonth int) int {
		return int(july.Sub(time.Date(2026, month, dayOfMonth, 0, 0, 0, 0, time.UTC)) / day)
	}
	for name, tt := range map[string]struct {
		platform      *posturev1.Platform
		exposure, age int
		level         string
	}{
		"newest":                                  {windows(8800), 0, since(6, 30), "26100.8800, vom 30.06.2026"},
		"only a preview is missing":               {windows(8737), 0, since(6, 23), "26100.8737, vom 23.06.2026"},
		"an out-of-band security fix is missing":  {windows(8655), since(6, 23), since(6, 9), "26100.8655, vom 09.06.2026, KB5094126"},
		"one month behind":                        {windows(8457), since(6, 9), since(5, 12), "26100.8457, vom 12.05.2026, KB5089549"},
		"a preview carries no security fixes":     {windows(8328), since(5, 12), since(4, 30), "26100.8328, vom 30.04.2026, KB5083631"},
		"not in the table: between its rows":      {windows(8500), since(6, 9), since(5, 12), "26100.8500, nicht in der Tabelle: zwischen .8457 vom 12.05.2026 und .8655 vom 09.06.2026"},
		"not in the table: after its end":         {windows(8900), 0, since(6, 30), "nicht in der Tabelle: nach .8800 vom 30.06.2026"},
		"not in the table: before its beginning":  {windows(1742), since(4, 14), -1, "nicht in der Tabelle: vor .8246 vom 14.04.2026"},
		"server on its own track":                 {windows(32860, server), since(6, 9), since(5, 12), "26100.32860 server, vom 12.05.2026"},
		"server is not taken for a newer client":  {windows(32995, server), 0, since(6, 9), "26100.32995 server"},
		"a client's revision on a server is old":  {windows(8800, server), since(5, 12), -1, "server, nicht in der Tabelle: vor .32860"},
		"hotpatch of May":                         {windows(8390, hotpatch(ternaryYes)), since(6, 9), since(5, 12), "26100.8390 hotpatch, vom 12.05.2026, KB5089466"},
		"the same revision without hotpatches":    {windows(8390), since(5, 12), since(4, 30), "zwischen .8328"},
		"hotpatched, with the full update of May": {windows(8457, hotpatch(ternaryYes)), since(6, 9), since(5, 12), "zwischen .8390"},
		"LTSC takes the client's updates":         {windows(8457, edit("EnterpriseS")), since(6, 9), since(5, 12), "26100.8457, vom"},
	} {
		t.Run(name, func(t *testing.T) {
			exposure, err := exposureDays(tt.platform, table, july)
			if err != nil || exposure != tt.exposure {
				t.Errorf("exposed for %d days, %v; want %d", exposure, err, tt.exposure)
			}
			age, err := contentAge(tt.platform, table, july)
			if tt.age < 0 && err == nil || tt.age >= 0 && (err != nil || age != tt.age) {
				t.Errorf("content of %d days ago, %v; want %d", age, err, tt.age)
			}
			level, err := patchPlace(tt.platform, table, july, "de")
			if err != nil || !strings.Contains(level, tt.level) {
				t.Errorf("level %q, %v; want %q", level, err, tt.level)
			}
		})
	}
	if n, err := exposureDays(windows(8457), table, time.Date(2026, 6, 9, 23, 0, 0, 0, time.UTC)); n != 0 || err != nil {
		t.Errorf("on the day of the release: %d, %v", n, err)
	}
}

func TestExposureIsNotKnownWhen(t *testing.T) {
	table := mustParse(t, windowsTableFile)
	july := time.Date(2026, 7, 11, 12, 0, 0, 0, time.UTC)
	usable := time.Date(2026, 8, 14, 0, 0, 0, 0, time.UTC) // 35 days after as_of
	for name, tt := range map[string]struct {
		platform *posturev1.Platform
		table    *References
		now      time.Time
		want     string
	}{
		"the table is too old":                 {windows(8800), table, usable.Add(time.Second), "ends on 10 July 2026 and is too old"},
		"there is no table":                    {windows(8800), mustParse(t, "issued: 2026-11-20\n"), july, "There is no table"},
		"there are no reference values":        {windows(8800), nil, july, "There is no table"},
		"the build is not in the table":        {windows(1, func(p *posturev1.Platform) { p.Windows.Build = 27000 }), table, july, "no reference values for Windows build 27000 (client)"},
		"the build was not read":               {windows(1, func(p *posturev1.Platform) { p.Windows.Build = 0 }), table, july, "build of Windows is unknown"},
		"the revision was not read":            {windows(0), table, july, "build of Windows is unknown"},
		"nothing of Windows was reported":      {windows(1, func(p *posturev1.Platform) { p.Windows = nil }), table, july, "build of Windows is unknown"},
		"the installation type is new":         {windows(8800, func(p *posturev1.Platform) { p.Windows.InstallationType = "Nano" }), table, july, `"Nano"`},
		"the installation type was not read":   {windows(8800, func(p *posturev1.Platform) { p.Windows.InstallationType = "" }), table, july, "installation type"},
		"hotpatches or not was not read":       {windows(8390, hotpatch(ternaryUnknown)), table, july, "unknown whether the device takes hotpatches"},
		"a server's revision on a client":      {windows(32995), table, july, "26100.32995 is far beyond the table"},
		"a revision that is none":              {windows(1<<32 - 1), table, july, "far beyond the table"},
		"a server takes hotpatches":            {windows(32860, server, hotpatch(ternaryYes)), table, july, "no table for servers that take hotpatches"},
		"it is no Windows":                     {&posturev1.Platform{OperatingSystem: posturev1.OperatingSystem_OPERATING_SYSTEM_LINUX}, table, july, "does not run Windows"},
		"the operating system is not reported": {&posturev1.Platform{}, table, july, "does not run Windows"},
	} {
		t.Run(name, func(t *testing.T) {
			for what, ask := range map[string]func() (int, error){
				"exposure": func() (int, error) { return exposureDays(tt.platform, tt.table, tt.now) },
				"age":      func() (int, error) { return contentAge(tt.platform, tt.table, tt.now) },
			} {
				if n, err := ask(); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: %d, %v; want %q", what, n, err, tt.want)
				}
			}
		})
	}
	if _, err := exposureDays(windows(8800), table, usable); err != nil {
		t.Errorf("on the last day: %v", err)
	}
	noHotpatches := mustParse(t, strings.ReplaceAll(windowsTableFile, "26100, track: hotpatch", "26200, track: hotpatch"))
	if _, err := exposureDays(windows(8800, hotpatch(ternaryUnknown)), noHotpatches, july); err != nil {
		t.Errorf("where no hotpatches exist, it makes no difference: %v", err)
	}
}

func TestAGapInTheTableIsNoGoodNews(t *testing.T) {
	july := time.Date(2026, 7, 11, 12, 0, 0, 0, time.UTC)
	without := func(rows ...string) *References {
		var kept []string
		for line := range strings.Lines(windowsTableFile) {
			if !slices.ContainsFunc(rows, func(row string) bool { return strings.Contains(line, row) }) {
				kept = append(kept, line)
			}
		}
		return mustParse(t, strings.Join(kept, ""))
	}
	for name, tt := range map[string]struct {
		ubr   uint32
		table *References
		want  string
	}{
		"a file that adds to another line only":     {8457, without("8655", "8737"), "26100 (client) between 12 May 2026 and 10 July 2026"},
		"a month left out":                          {8246, without("8457"), "between 14 April 2026 and 9 June 2026"},
		"a month left out that is installed anyway": {8655, without("8457"), ""},
		"nothing left out":                          {8246, without(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := exposureDays(windows(tt.ubr), tt.table, july)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d, %v; want %q", n, err, tt.want)
			}
		})
	}
}

func TestTheRingIsAnotherReferenceThanTheVendor(t *testing.T) {
	table := mustParse(t, windowsTableFile)
	july := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		platform *posturev1.Platform
		groups   []string
		days     int
		unknown  string
	}{
		"at the approved level, behind the vendor": {windows(8457), nil, 0, ""},
		"ahead of the ring":                        {windows(8655), nil, 0, ""},
		"behind it since it was approved":          {windows(8328), nil, 42, ""},
		"a group of its own":                       {windows(8457), []string{"meldewesen", "it"}, 16, ""},
		"another group":                            {windows(8457), []string{"meldewesen"}, 0, ""},
		"nothing approved for servers":             {windows(32860, server), nil, 0, "No approved level"},
		"the build was not read":                   {windows(0), nil, 0, "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := ringDays(tt.platform, table, tt.groups, july)
			if n != tt.days || (err == nil) != (tt.unknown == "") || err != nil && !strings.Contains(err.Error(), tt.unknown) {
				t.Errorf("%d, %v; want %d, %q", n, err, tt.days, tt.unknown)
			}
		})
	}
	if n, err := ringDays(windows(8246), table, nil, time.Date(2026, 5, 20, 1, 0, 0, 0, time.UTC)); n != 1 || err != nil {
		t.Errorf("behind on the day of the approval: %d, %v", n, err)
	}
}

func TestSupportOfWindows(t *testing.T) {
	table := mustParse(t, windowsTableFile)
	ten := func(extended posturev1.Ternary) *posturev1.Platform {
		return windows(6456, func(p *posturev1.Platform) { p.Windows.Build, p.Windows.ExtendedSupport = 19045, extended })
	}
	for name, tt := range map[string]struct {
		platform *posturev1.Platform
		now      time.Time
		want     bool
		unknown  string
	}{
		"supported":                           {windows(8800), noon, true, ""},
		"another edition has ended":           {windows(8800, edit("Professional")), noon, false, ""},
		"the last day still counts":           {windows(8800, edit("Professional")), time.Date(2026, 10, 13, 23, 0, 0, 0, time.UTC), true, ""},
		"the day after":                       {windows(8800, edit("Professional")), time.Date(2026, 10, 14, 0, 0, 0, 0, time.UTC), false, ""},
		"extended support is proven":          {ten(ternaryYes), noon, true, ""},
		"extended support has ended too":      {ten(ternaryYes), time.Date(2028, 10, 11, 0, 0, 0, 0, time.UTC), false, ""},
		"no extended support":                 {ten(ternaryNo), noon, false, ""},
		"extended support is not proven":      {ten(ternaryUnknown), noon, false, ""},
		"extended support that nobody sells":  {windows(8800, edit("Professional"), func(p *posturev1.Platform) { p.Windows.ExtendedSupport = ternaryYes }), noon, false, ""},
		"an edition that is not on record":    {windows(8800, edit("Education")), noon, false, "Windows 24H2 Education, Build 26100"},
		"a build that is not on record":       {windows(1, func(p *posturev1.Platform) { p.Windows.Build = 27000 }), noon, false, "Build 27000"},
		"nothing of Windows was reported":     {windows(1, func(p *posturev1.Platform) { p.Windows = nil }), noon, false, "No end of support"},
		"a server shares the build, not more": {windows(32995, server), noon, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := supported(tt.platform, table, tt.now)
			if got != tt.want || (err == nil) != (tt.unknown == "") || err != nil && !strings.Contains(err.Error(), tt.unknown) {
				t.Errorf("%v, %v; want %v, %q", got, err, tt.want, tt.unknown)
			}
		})
	}
}

// goodWindows is a Windows notebook that passes every rule of the shipped
// policy by windowsReferences.
func goodWindows() *posturev1.Evidence {
	ev := goodEvidence()
	ev.Platform = windows(8800)
	ev.Volumes = &posturev1.Volumes{Reading: observed(), Volumes: []*posturev1.Volume{{
		Reading: observed(), MountClass: posturev1.MountClass_MOUNT_CLASS_ROOT, Filesystem: "ntfs",
		Paths: []*posturev1.StoragePath{path(&posturev1.StorageLayer{
			Type: posturev1.LayerType_LAYER_TYPE_BITLOCKER, Cipher: "xts-aes-256", KeyBits: 256,
			VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_TABLE, KeyFile: posturev1.KeyFile_KEY_FILE_NONE,
		})},
		Bitlocker: &posturev1.BitLocker{
			Reading: observed(), Protection: posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON,
			Conversion:          posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED,
			EncryptedMillionths: 1_000_000, Method: "xts-aes-256", Wiping: posturev1.BitLockerWiping_BIT_LOCKER_WIPING_NOT_WIPED,
			Lock: posturev1.BitLockerLock_BIT_LOCKER_LOCK_UNLOCKED,
			Protectors: []posturev1.BitLockerProtector{
				posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_PIN, posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_NUMERICAL_PASSWORD},
		},
	}}}
	ev.Patch = &posturev1.Patch{
		Reading: observed(), PackageSystem: windowsUpdate, PendingSecurity: 1,
		Pending:       []*posturev1.PendingUpdate{{Package: "KB5068861", Severity: "Critical", FirstSeenAt: ago(2 * day), ReleasedAt: ago(11 * day)}},
		RebootPending: &posturev1.RebootPending{Pending: ternaryNo},
		WindowsUpdate: &posturev1.WindowsUpdate{
			Reading: observed(), LastSearchAt: ago(5 * time.Hour), LastInstallationAt: ago(9 * day),
			Source: posturev1.UpdateSource_UPDATE_SOURCE_WSUS,
		},
	}
	ev.Firewall = &posturev1.Firewall{Reading: observed(), Engines: []*posturev1.FirewallEngine{
		{Engine: "windows", Profile: "domain", ServiceActive: ternaryYes, RulesLoaded: ternaryYes, InboundDefaultDrop: ternaryYes},
	}}
	ev.Antivirus = &posturev1.Antivirus{Reading: observed(), Healthy: ternaryYes, Products: []*posturev1.AntivirusProduct{
		{Name: "Windows Defender", State: posturev1.AntivirusState_ANTIVIRUS_STATE_ON, UpToDate: ternaryYes},
	}}
	return ev
}

func windowsInput(t testing.TB, ev *posturev1.Evidence) Input {
	in := inputOf(t, shipped(t), ev)
	// The same months before noon, so that the table is fresh.
	autumn := strings.NewReplacer("2026-04-", "2026-08-", "2026-05-", "2026-09-", "2026-06-", "2026-10-", "2026-07-", "2026-11-")
	in.References = mustParse(t, autumn.Replace(windowsTableFile)).Over(references(t))
	return in
}

func TestAWindowsNotebookAndTheShippedPolicy(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rule    string
		change  func(*posturev1.Evidence)
		outcome posturev1.Outcome
		verdict posturev1.Verdict
		reason  string
	}{
		{"good", "windows-behind-vendor", func(*posturev1.Evidence) {}, passes, admit, ""},
		{"months behind the vendor", "windows-behind-vendor", func(ev *posturev1.Evidence) { ev.Platform = windows(8500) }, fails, quarantine, "26100.8500, not in the table: between .8457 of 12 September 2026"},
		{"a build nobody knows", "windows-behind-vendor", func(ev *posturev1.Evidence) { ev.Platform.Windows.Build = 27000 }, isUnknown, deny, "no reference values for Windows build 27000"},
		{"behind the ring only", "windows-behind-ring", func(ev *posturev1.Evidence) { ev.Platform = windows(8246) }, fails, quarantine, "approved level for"},
		{"apt's sources are no matter of Windows", "security-feed-configured", func(*posturev1.Evidence) {}, doesNotApply, admit, ""},
		{"pending for too long", "security-updates", func(ev *posturev1.Evidence) { ev.Patch.Pending[0].FirstSeenAt = ago(16 * day) }, fails, quarantine, "for 16 days"},
		{"first seen is not known", "security-updates", func(ev *posturev1.Evidence) { ev.Patch.Pending[0].FirstSeenAt = nil }, passes, admit, ""},
		{"the search for updates failed", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.WindowsUpdate.Reading, ev.Patch.Pending, ev.Patch.PendingSecurity = failed("search: time-out after 10m"), nil, 0
		}, isUnknown, quarantine, "time-out after 10m"},
		{"nothing of Windows Update was reported", "security-updates", func(ev *posturev1.Evidence) {
			ev.Patch.WindowsUpdate, ev.Patch.Pending, ev.Patch.PendingSecurity = nil, nil, 0
		}, isUnknown, quarantine, "without a reading"},
		{"it does not look for updates", "windows-update-search", func(ev *posturev1.Evidence) { ev.Patch.WindowsUpdate.LastSearchAt = ago(8 * day) }, fails, quarantine, "more than 7 days"},
		{"it never looked for updates", "windows-update-search", func(ev *posturev1.Evidence) { ev.Patch.WindowsUpdate.LastSearchAt = nil }, isUnknown, quarantine, "unknown when Windows last looked"},
		{"its clock is fast", "windows-update-search", func(ev *posturev1.Evidence) { ev.Patch.WindowsUpdate.LastSearchAt = ago(-2 * day) }, isUnknown, quarantine, "clock"},
		{"source of updates unknown", "windows-update-source", func(ev *posturev1.Evidence) {
			ev.Patch.WindowsUpdate.Source = posturev1.UpdateSource_UPDATE_SOURCE_UNSPECIFIED
		}, isUnknown, admit, "where Windows gets its updates"},
		{"restart pending", "restart-pending", func(ev *posturev1.Evidence) { ev.Patch.RebootPending.Pending = ternaryYes }, fails, admit, "after a restart"},
		{"restart not known", "restart-pending", func(ev *posturev1.Evidence) { ev.Patch.RebootPending = nil }, isUnknown, admit, "unknown"},
		{"support has ended", "system-supported", func(ev *posturev1.Evidence) { ev.Platform.Edition = "Professional" }, fails, deny, "windows 24H2"},
		{"one of two profiles in force is open", "firewall", func(ev *posturev1.Evidence) {
			ev.Firewall.Engines = append(ev.Firewall.Engines, &posturev1.FirewallEngine{Engine: "windows", Profile: "public", RulesLoaded: ternaryNo, InboundDefaultDrop: ternaryNo})
		}, fails, admit, "not active"},
		{"one of two profiles in force is not known", "firewall", func(ev *posturev1.Evidence) {
			ev.Firewall.Engines = append(ev.Firewall.Engines, &posturev1.FirewallEngine{Engine: "windows", Profile: "public"})
		}, isUnknown, admit, "unknown"},
		{"no profile is in force", "firewall", func(ev *posturev1.Evidence) { ev.Firewall.Engines = nil }, fails, admit, "not active"},
		{"antivirus off", "antivirus", func(ev *posturev1.Evidence) {
			ev.Antivirus.Products[0].State = posturev1.AntivirusState_ANTIVIRUS_STATE_OFF
		}, fails, admit, "No antivirus"},
		{"antivirus snoozed", "antivirus", func(ev *posturev1.Evidence) {
			ev.Antivirus.Products[0].State = posturev1.AntivirusState_ANTIVIRUS_STATE_SNOOZED
		}, fails, admit, "No antivirus"},
		{"antivirus outdated", "antivirus", func(ev *posturev1.Evidence) { ev.Antivirus.Products[0].UpToDate = ternaryNo }, fails, admit, "No antivirus"},
		{"antivirus on, its age unknown", "antivirus", func(ev *posturev1.Evidence) { ev.Antivirus.Products[0].UpToDate = ternaryUnknown }, isUnknown, admit, "unknown"},
		{"antivirus of no state", "antivirus", func(ev *posturev1.Evidence) {
			ev.Antivirus.Products[0].State = posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED
		}, fails, admit, "No antivirus"},
		{"two say different things of antivirus", "antivirus", func(ev *posturev1.Evidence) {
			ev.Antivirus.Contradictions = []*posturev1.Contradiction{{Subject: "antivirus", SourceA: "WSC", SaysA: "good", SourceB: "productState", SaysB: "off"}}
		}, isUnknown, admit, "contradict"},
		{"antivirus not read", "antivirus", func(ev *posturev1.Evidence) {
			ev.Antivirus = &posturev1.Antivirus{Reading: failed("WSC: RPC server unavailable")}
		}, isUnknown, admit, "RPC server"},
		{"a server does not say of what age its antivirus is", "antivirus", func(ev *posturev1.Evidence) {
			ev.Platform, ev.Antivirus.Products[0].UpToDate = windows(32995, server), ternaryUnknown
		}, doesNotApply, admit, ""},
		{"the screen is never locked", "screen-lock", func(ev *posturev1.Evidence) { ev.ScreenLock.IdleSeconds = 0 }, fails, admit, "screen"},
		{"the screen is locked too late", "screen-lock", func(ev *posturev1.Evidence) { ev.ScreenLock.IdleSeconds = 901 }, fails, admit, "screen"},
		{"nobody has to lock the screen", "screen-lock", func(ev *posturev1.Evidence) { ev.ScreenLock.Enforced = ternaryNo }, fails, admit, "screen"},
		{"an old agent says nothing of the screen", "screen-lock", func(ev *posturev1.Evidence) { ev.ScreenLock = nil }, isUnknown, admit, "not reported"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := proto.CloneOf(goodWindows())
			tt.change(ev)
			res := Appraise(windowsInput(t, ev))
			f := findingOf(t, res, tt.rule)
			if f.GetOutcome() != tt.outcome || !strings.Contains(f.GetReason().GetEn(), tt.reason) {
				t.Errorf("%s: %v (%s), want %v (%s)", tt.rule, f.GetOutcome(), f.GetReason().GetEn(), tt.outcome, tt.reason)
			}
			if res.GetVerdict() != tt.verdict {
				t.Errorf("verdict %v, want %v", res.GetVerdict(), tt.verdict)
				for _, f := range res.GetFindings() {
					t.Logf("%s: %v %v: %s", f.GetRule(), f.GetOutcome(), f.GetEffect(), f.GetReason().GetEn())
				}
			}
		})
	}
}

func TestWithTheShippedTableWindowsIsToldThatItIsTooOld(t *testing.T) {
	res := Appraise(inputOf(t, shipped(t), goodWindows()))
	f := findingOf(t, res, "windows-behind-vendor")
	if f.GetOutcome() != isUnknown || !strings.Contains(f.GetReason().GetDe(), "reicht nur bis zum 13.07.2026") || f.GetEffect() != posturev1.Effect_EFFECT_WARN {
		t.Errorf("%v %v: %s", f.GetOutcome(), f.GetEffect(), f.GetReason().GetDe())
	}
	if f := findingOf(t, res, "windows-behind-ring"); f.GetOutcome() != doesNotApply {
		t.Errorf("no ring is shipped, but %v: %s", f.GetOutcome(), f.GetReason().GetEn())
	}
}

// A doubt about where updates come from is none about what is pending, and the
// other way round.
func TestSourceAndSearchAreDoubtedApart(t *testing.T) {
	doubtful, failing := goodWindows(), goodWindows()
	doubtful.Patch.Contradictions = []*posturev1.Contradiction{{
		Subject: "patch.windows_update.source", SourceA: "policy", SaysA: "WSUS", SourceB: "Windows Update Agent", SaysB: "Microsoft",
	}}
	failing.Patch.WindowsUpdate.Reading = failed("0x80240438")
	for name, tt := range map[string]struct {
		ev             *posturev1.Evidence
		source, search posturev1.Outcome
	}{
		"the source is contradicted": {doubtful, isUnknown, passes},
		"the search failed":          {failing, passes, isUnknown},
		"nothing is in doubt":        {goodWindows(), passes, passes},
	} {
		t.Run(name, func(t *testing.T) {
			for require, want := range map[string]posturev1.Outcome{
				`update_source(evidence.patch) == "wsus"`:            tt.source,
				`int(evidence.patch.windows_update.source) > 0`:      tt.source,
				`evidence.patch.days_pending(now) <= 14`:             tt.search,
				`evidence.patch.searched_within(now, days(7))`:       tt.search,
				`evidence.patch.windows_update.last_search_at < now`: tt.search,
			} {
				p := mustCompile(t, strings.Replace(smallPolicy, "REQUIRE", "|\n      "+require, 1))
				if f := findingOf(t, Appraise(inputOf(t, p, tt.ev)), "r"); f.GetOutcome() != want {
					t.Errorf("%s: %v, want %v (%s)", require, f.GetOutcome(), want, f.GetReason().GetEn())
				}
			}
		})
	}
}

// A policy may ask for what is pending without a function; a search that failed
// must not look like nothing to do.
func TestWhatIsPendingIsNotKnownAfterAFailedSearch(t *testing.T) {
	p := mustCompile(t, strings.Replace(smallPolicy, "REQUIRE", "evidence.patch.pending_security == 0u", 1))
	ev := goodWindows()
	ev.Patch.Pending, ev.Patch.PendingSecurity = nil, 0
	if f := findingOf(t, Appraise(inputOf(t, p, ev)), "r"); f.GetOutcome() != passes {
		t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
	}
	ev.Patch.WindowsUpdate.Reading = failed("0x80240438")
	if f := findingOf(t, Appraise(inputOf(t, p, ev)), "r"); f.GetOutcome() != isUnknown || !strings.Contains(f.GetReason().GetEn(), "0x80240438") {
		t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
	}
}

const smallPolicy = `name: small
freshness: {max_age: 45m}
rules:
  - id: r
    title: {de: t, en: t}
    remedy: {de: t, en: t}
    require: REQUIRE
    on_fail: deny
`

func TestAPolicyMaySwitchNoticesOff(t *testing.T) {
	for setting, without := range map[string]bool{"": false, "notices: {refusal: on}\n": false, "notices: {refusal: off}\n": true} {
		p := mustCompile(t, setting+strings.Replace(smallPolicy, "REQUIRE", "evidence.patch.pending_security == 0u", 1))
		if res := Appraise(inputOf(t, p, goodEvidence())); res.GetWithoutNotice() != without {
			t.Errorf("%q: without notice %v", setting, res.GetWithoutNotice())
		}
	}
	if _, faults := Compile([]byte("notices: {refusal: never}\n" + smallPolicy)); len(faults) == 0 || !strings.Contains(faults[0].GetMessage(), "one of off, on") {
		t.Errorf("%v", faults)
	}
}

// "a && b" is false when a is, whatever is known of b.
func TestARuleThatSurelyDoesNotApplyIsNotUnknown(t *testing.T) {
	p := mustCompile(t, strings.Replace(smallPolicy, "    require: REQUIRE", `    when: >
      evidence.platform.operating_system != WINDOWS && yes(evidence.patch.security_feed_configured) &&
      evidence.vpn.clients.exists(c, c.product in ["openvpn"] && yes(c.installed))
    require: "false"`, 1))
	if n := len(p.rules[0].when); n != 3 {
		t.Errorf("taken apart into %d conditions, want 3", n)
	}
	unreadable := func(ev *posturev1.Evidence) *posturev1.Evidence {
		ev.Patch.Reading = failed("registry: access is denied")
		return ev
	}
	for name, tt := range map[string]struct {
		ev   *posturev1.Evidence
		want posturev1.Outcome
	}{
		"surely not, and the rest unreadable": {unreadable(goodWindows()), doesNotApply},
		"perhaps":                             {unreadable(goodEvidence()), isUnknown},
		"surely":                              {goodEvidence(), fails},
		"not even the system is known":        {&posturev1.Evidence{}, isUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			if f := findingOf(t, Appraise(inputOf(t, p, tt.ev)), "r"); f.GetOutcome() != tt.want {
				t.Errorf("%v: %s", f.GetOutcome(), f.GetReason().GetEn())
			}
		})
	}
}
