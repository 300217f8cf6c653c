package probe

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// keys is a registry: values by key and name; a key alone exists.
type keys map[string]any

func (k keys) Value(key, name string) (RegistryValue, error) {
	switch v := k[key+`\`+name].(type) {
	case int:
		return RegistryValue{Type: "DWORD", Number: uint64(v)}, nil
	case string:
		return RegistryValue{Type: "SZ", Text: v}, nil
	case []string:
		return RegistryValue{Type: "MULTI_SZ", Lines: v}, nil
	case []byte:
		return RegistryValue{Type: "BINARY", Bytes: v}, nil
	case error:
		return RegistryValue{}, v
	}
	return RegistryValue{}, ErrNotFound
}

func (k keys) Exists(key string) (bool, error) {
	v, ok := k[key]
	err, _ := v.(error)
	return ok && err == nil, err
}

// updateAgent answers searches as told and counts them.
type updateAgent struct {
	answer func(ctx context.Context) (UpdateSearch, error)
	asked  int
}

func (a *updateAgent) Search(ctx context.Context) (UpdateSearch, error) {
	a.asked++
	return a.answer(ctx)
}

// windowsNotebook is a machine whose registry and update agent can be changed.
type windowsNotebook struct {
	registry keys
	updates  updateAgent
	search   UpdateSearch
	now      time.Time
	probe    Probe
}

func newWindowsNotebook(l Ledger) *windowsNotebook {
	n := &windowsNotebook{
		registry: keys{
			currentVersionKey + `\CurrentBuild`: "26100", currentVersionKey + `\UBR`: 8655,
			bootCountKey + `\BootId`: 17,
		},
		search: UpdateSearch{
			Code: 2, Pending: []OfferedUpdate{}, Restart: &RestartRequired{},
			LastSearch: time.Date(2026, 6, 20, 5, 40, 0, 0, time.UTC),
		},
		now:   time.Date(2026, 6, 20, 8, 0, 0, 0, time.UTC),
		probe: patchProbe(l, nil),
	}
	n.updates.answer = func(context.Context) (UpdateSearch, error) { return n.search, nil }
	return n
}

func (n *windowsNotebook) patch(t *testing.T) *posturev1.Patch {
	t.Helper()
	host := Host{Windows: &Windows{Registry: n.registry, Updates: &n.updates}, Now: func() time.Time { return n.now }}
	return NewCollector(host, []Probe{n.probe}).Collect(t.Context()).GetPatch()
}

func securityUpdate(kb string) OfferedUpdate {
	return OfferedUpdate{
		KBs: []string{kb}, Categories: []string{securityUpdateCategory}, Severity: "Critical",
		Changed: time.Date(2026, 6, 9, 17, 0, 0, 0, time.UTC),
	}
}

func TestWhichOfferedUpdatesCountAsSecurityUpdates(t *testing.T) {
	const rollup, driver, preview = "28bc880e-0592-4cbe-8f95-c79b17911d5f", "ebfc1fc5-71a4-4f7b-9aca-3b9a503104a0", "cd5ffd1e-e932-4e3a-bf74-18bf0b1bbd83"
	offered := []OfferedUpdate{
		{KBs: []string{"5068861"}, Categories: []string{securityUpdateCategory}},
		{KBs: []string{"KB4023057"}, Categories: []string{"a3c2375d-0c8a-42f9-bce0-28333e198407", criticalUpdateCategory}},
		{KBs: []string{"890830"}, Categories: []string{rollup}},
		{KBs: []string{"5011048"}, Categories: []string{rollup}, Severity: "Important"},
		{KBs: []string{"2267602"}, Categories: []string{definitionUpdateCategory}, Severity: "Critical"},
		{KBs: []string{"5070311"}, Categories: []string{preview}},
		{KBs: nil, Categories: []string{driver}},
		{KBs: nil, Categories: []string{securityUpdateCategory}},
	}
	var got []string
	for _, u := range securityUpdates(offered) {
		got = append(got, u.Package+" / "+u.Origin+" / "+u.Severity)
	}
	want := []string{
		"KB4023057 / Critical Updates / ",
		"KB5011048 / other updates with a severity / Important",
		"KB5068861 / Security Updates / ",
		"without KB number / Security Updates / ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// osquery#7805, fleet#19057: a failed or never made search offers nothing.
func TestEmptyListIsNoProofAfterAFailedSearch(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*windowsNotebook)
		says   string
	}{
		"HRESULT":      {func(n *windowsNotebook) { n.search.Result = 0x8024402C }, "the search ended with 0x8024402C"},
		"partly":       {func(n *windowsNotebook) { n.search.Code = 3 }, "the search ended with result code 3"},
		"zero answer":  {func(n *windowsNotebook) { n.search = UpdateSearch{} }, "the search ended with result code 0"},
		"never looked": {func(n *windowsNotebook) { n.search.LastSearch = time.Time{} }, "Windows has never looked for updates with success"},
		"no list":      {func(n *windowsNotebook) { n.search.Pending = nil }, "the search came back without a list"},
		"no process": {func(n *windowsNotebook) {
			n.updates.answer = func(context.Context) (UpdateSearch, error) {
				return UpdateSearch{}, errors.New("asking Windows gave no answer")
			}
		}, "asking Windows gave no answer"},
	} {
		n := newWindowsNotebook(nil)
		c.change(n)
		p := n.patch(t)
		r := p.GetWindowsUpdate().GetReading()
		if r.GetState() != posturev1.ReadingState_READING_STATE_FAILED || r.GetReason() != c.says {
			t.Errorf("%s: search is %v, want %q", name, r, c.says)
		}
		if p.GetReading().GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
			t.Errorf("%s: the rest must not fail with it: %v", name, p.GetReading())
		}
	}
}

func TestFailedPartOfASearchStillNamesWhatItFound(t *testing.T) {
	n := newWindowsNotebook(nil)
	n.search.Code, n.search.Pending = 3, []OfferedUpdate{securityUpdate("5068861")}
	if p := n.patch(t); p.GetPendingSecurity() != 1 {
		t.Errorf("%d pending", p.GetPendingSecurity())
	}
}

func TestSearchIsRepeatedOnlyWhenItMayAnswerOtherwise(t *testing.T) {
	n := newWindowsNotebook(nil)
	expect := func(what string, asked int) {
		t.Helper()
		n.patch(t)
		if n.updates.asked != asked {
			t.Errorf("%s: %d searches, want %d", what, n.updates.asked, asked)
		}
	}
	expect("first", 1)
	n.now = n.now.Add(searchEvery - time.Second)
	expect("within four hours", 1)
	n.now = n.now.Add(time.Second)
	expect("after four hours", 2)
	n.registry[currentVersionKey+`\UBR`] = 8777
	expect("an update was installed", 3)
	n.registry[updateRestartKey] = true
	expect("a restart is required now", 4)
	n.registry[bootCountKey+`\BootId`] = 18
	expect("Windows was started", 5)
	n.registry[updatePolicyKey+`\DeferQualityUpdates`] = 1
	expect("the policy changed", 6)
	n.now = n.now.Add(-time.Hour)
	expect("the clock was set back", 7)
	n.search.Code = 4
	n.now = n.now.Add(searchEvery)
	expect("it failed", 8)
	n.now = n.now.Add(searchRetry - time.Second)
	expect("soon after it failed", 8)
	n.now = n.now.Add(time.Second)
	expect("half an hour after it failed", 9)
}

func TestUpdatesAgeFromWhenTheyWereFirstOffered(t *testing.T) {
	ledger := &FileLedger{Path: t.TempDir() + "/ledger"}
	n := newWindowsNotebook(ledger)
	n.search.Pending = []OfferedUpdate{securityUpdate("5068861")}
	first := n.now
	n.patch(t)

	// Three days later, after a restart of the agent; Microsoft has changed it.
	n.probe = patchProbe(ledger, nil)
	n.now = n.now.AddDate(0, 0, 3)
	n.search.Pending[0].Changed = n.now
	if got := n.patch(t).GetPending()[0].GetFirstSeenAt().AsTime(); !got.Equal(first) {
		t.Errorf("first seen %v, want %v", got, first)
	}

	// A search that failed and offers nothing does not make it young again.
	offered := n.search
	n.search = UpdateSearch{Result: 0x80240438}
	n.now = n.now.AddDate(0, 0, 1)
	n.patch(t)
	n.search = offered
	n.now = n.now.Add(searchRetry)
	if got := n.patch(t).GetPending()[0].GetFirstSeenAt().AsTime(); !got.Equal(first) {
		t.Errorf("after a failed search first seen %v, want %v", got, first)
	}

	// Installed, and offered again later: that is a new sighting.
	n.search.Pending = []OfferedUpdate{}
	n.registry[currentVersionKey+`\UBR`] = 8777
	n.now = n.now.Add(searchEvery)
	n.patch(t)
	n.search.Pending = []OfferedUpdate{securityUpdate("5068861")}
	n.now = n.now.Add(searchEvery)
	if got := n.patch(t).GetPending()[0].GetFirstSeenAt().AsTime(); !got.Equal(n.now) {
		t.Errorf("offered again: first seen %v, want %v", got, n.now)
	}
}

func TestWhatSaysThatARestartIsPending(t *testing.T) {
	waiting := securityUpdate("5068861")
	waiting.Reboot, waiting.Downloaded = true, true
	for name, c := range map[string]struct {
		change  func(*windowsNotebook)
		pending posturev1.Ternary
		sources string
		weak    string
	}{
		"nothing":        {func(*windowsNotebook) {}, no, "", ""},
		"servicing":      {func(n *windowsNotebook) { n.registry[componentRestartKey] = true }, yes, componentRestart, ""},
		"Windows Update": {func(n *windowsNotebook) { n.registry[updateRestartKey] = true; n.search.Restart.Required = true }, yes, systemInfo + "," + updateRestart, ""},
		"PSWindowsUpdate#46: installed, still pending": {func(n *windowsNotebook) { n.search.Pending = []OfferedUpdate{waiting} }, yes, "KB5068861", ""},
		"a file to rename": {func(n *windowsNotebook) {
			n.registry[sessionKey+`\PendingFileRenameOperations`] = []string{`\??\C:\x`, ""}
		}, no, "", "PendingFileRenameOperations"},
		"an empty list of files": {func(n *windowsNotebook) { n.registry[sessionKey+`\PendingFileRenameOperations`] = []string{""} }, no, "", ""},
		"a new name": {func(n *windowsNotebook) {
			n.registry[computerNameKey+`\ActiveComputerName\ComputerName`] = "A"
			n.registry[computerNameKey+`\ComputerName\ComputerName`] = "B"
		}, no, "", "a new computer name"},
		"Configuration Manager": {func(n *windowsNotebook) { n.registry[clientRestartKey] = true }, no, "", "Configuration Manager"},
		"a key that cannot be read": {func(n *windowsNotebook) {
			n.registry[componentRestartKey] = errors.New("access is denied")
		}, unknown, "", ""},
		"SystemInfo that failed": {func(n *windowsNotebook) { n.search.Restart = &RestartRequired{Result: 0x80070005, Required: true} }, no, "", ""},
	} {
		n := newWindowsNotebook(nil)
		c.change(n)
		r := n.patch(t).GetRebootPending()
		if r.GetPending() != c.pending || strings.Join(r.GetSources(), ",") != c.sources || strings.Join(r.GetWeakSources(), ",") != c.weak {
			t.Errorf("%s: %v", name, r)
		}
	}
}

func TestRestartThatIsRequiredAndNotIsAContradiction(t *testing.T) {
	n := newWindowsNotebook(nil)
	n.registry[updateRestartKey] = true
	p := n.patch(t)
	if len(p.GetContradictions()) != 1 || p.GetContradictions()[0].GetSubject() != "patch.reboot_pending.pending" {
		t.Errorf("contradictions: %v", p.GetContradictions())
	}
}

func TestSourceOfUpdates(t *testing.T) {
	const (
		wsus  = posturev1.UpdateSource_UPDATE_SOURCE_WSUS
		wufb  = posturev1.UpdateSource_UPDATE_SOURCE_WINDOWS_UPDATE_FOR_BUSINESS
		cloud = posturev1.UpdateSource_UPDATE_SOURCE_MICROSOFT
	)
	server := keys{updatePolicyKey + `\WUServer`: "http://wsus.example:8530", automaticUpdateKey + `\UseWUServer`: 1}
	for name, c := range map[string]struct {
		registry      keys
		service       int32
		want          posturev1.UpdateSource
		contradiction string
	}{
		"no policy":                        {keys{}, selectedWindowsUpdate, cloud, ""},
		"WSUS":                             {server, selectedManagedServer, wsus, ""},
		"WSUS named but not used":          {keys{updatePolicyKey + `\WUServer`: "x"}, selectedWindowsUpdate, cloud, ""},
		"WSUS used but not named":          {keys{automaticUpdateKey + `\UseWUServer`: 1}, selectedWindowsUpdate, cloud, ""},
		"WSUS by device management":        {keys{managedUpdateKey + `\UpdateServiceUrl`: "x"}, selectedManagedServer, wsus, ""},
		"deferral":                         {keys{updatePolicyKey + `\DeferQualityUpdates`: 1}, selectedOther, wufb, ""},
		"deferral by device management":    {keys{managedUpdateKey + `\DeferQualityUpdatesPeriodInDays`: 7}, selectedOther, wufb, ""},
		"deferral switched off":            {keys{updatePolicyKey + `\DeferQualityUpdates`: 0}, selectedOther, cloud, ""},
		"Microsoft asked in spite of WSUS": {server, selectedWindowsUpdate, wsus, "a server of the administration / Microsoft (selection 2)"},
		"WSUS asked without policy":        {keys{}, selectedManagedServer, cloud, "Microsoft / a server of the administration (selection 1)"},
		"service not told":                 {server, selectedDefault, wsus, ""},
		"quality from Microsoft, the rest from WSUS": {merged(server, keys{
			automaticUpdateKey + `\UseUpdateClassPolicySource`: 1, updatePolicyKey + `\SetPolicyDrivenUpdateSourceForQualityUpdates`: 0,
		}), selectedManagedServer, cloud, ""},
		"quality from WSUS by class": {merged(server, keys{
			automaticUpdateKey + `\UseUpdateClassPolicySource`: 1, updatePolicyKey + `\SetPolicyDrivenUpdateSourceForQualityUpdates`: 1,
			updatePolicyKey + `\DeferFeatureUpdates`: 1,
		}), selectedWindowsUpdate, wsus, ""},
		"dual scan of Windows 10": {merged(server, keys{
			updatePolicyKey + `\DeferQualityUpdates`: 1, currentVersionKey + `\CurrentBuild`: "19045",
		}), selectedManagedServer, wufb, ""},
		"dual scan disabled": {merged(server, keys{
			updatePolicyKey + `\DeferQualityUpdates`: 1, updatePolicyKey + `\DisableDualScan`: 1, currentVersionKey + `\CurrentBuild`: "19045",
		}), selectedManagedServer, wsus, ""},
		"Windows 11 has no dual scan": {merged(server, keys{updatePolicyKey + `\DeferQualityUpdates`: 1}), selectedManagedServer, wsus, ""},
		"Microsoft forbidden and chosen": {keys{updatePolicyKey + `\DoNotConnectToWindowsUpdateInternetLocations`: 1}, selectedWindowsUpdate, cloud,
			"Microsoft's servers may not be asked / Microsoft"},
	} {
		n := newWindowsNotebook(nil)
		n.registry = merged(n.registry, c.registry)
		n.search.Service.ServerSelection = c.service
		p := n.patch(t)
		var says []string
		for _, d := range p.GetContradictions() {
			says = append(says, d.GetSaysA()+" / "+d.GetSaysB())
		}
		if got := p.GetWindowsUpdate().GetSource(); got != c.want || strings.Join(says, ";") != c.contradiction {
			t.Errorf("%s: %v, %q; want %v, %q", name, got, says, c.want, c.contradiction)
		}
	}
}

func TestSourceIsNotKnownWhenThePolicyCannotBeRead(t *testing.T) {
	n := newWindowsNotebook(nil)
	n.registry[automaticUpdateKey+`\UseWUServer`] = errors.New("access is denied")
	n.registry[updatePolicyKey+`\WUServer`] = "x"
	n.search.Service = SearchedService{ServerSelection: selectedManagedServer}
	p := n.patch(t)
	if len(p.GetContradictions()) > 0 {
		t.Errorf("half a policy contradicts nothing: %v", p.GetContradictions())
	}
	if p.GetWindowsUpdate().GetSource() != 0 || p.GetReading().GetState() != posturev1.ReadingState_READING_STATE_FAILED {
		t.Errorf("source %v, reading %v", p.GetWindowsUpdate().GetSource(), p.GetReading())
	}
}

// A clock that was once a year ahead must not keep an update new for a year.
func TestUpdateSeenByAClockThatWasAheadAges(t *testing.T) {
	n := newWindowsNotebook(nil)
	n.search.Pending = []OfferedUpdate{securityUpdate("5094126")}
	right := n.now
	age := func(now time.Time) time.Duration {
		n.now = now
		p := n.patch(t).GetPending()
		if len(p) != 1 {
			t.Fatalf("pending: %v", p)
		}
		return now.Sub(p[0].GetFirstSeenAt().AsTime())
	}
	age(right.AddDate(1, 0, 0))
	if got := age(right); got != 0 {
		t.Errorf("with the clock put right it is pending for %v", got)
	}
	if got := age(right.AddDate(0, 0, 20)); got != 20*24*time.Hour {
		t.Errorf("20 days later it is pending for %v", got)
	}
	// A clock that lost its time makes no update old.
	if got := age(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)); got != 0 {
		t.Errorf("in 2000 it is pending for %v", got)
	}
	if got := age(right.AddDate(0, 0, 21)); got != 21*24*time.Hour {
		t.Errorf("a day after that it is pending for %v", got)
	}
}

func merged(base, over keys) keys {
	all := keys{}
	for _, k := range []keys{base, over} {
		for name, v := range k {
			all[name] = v
		}
	}
	return all
}

func TestServiceBehindASearch(t *testing.T) {
	for _, c := range []struct {
		id      string
		managed bool
		want    int32
	}{
		{"3da21691-e39d-4da6-8a4b-b43877bcb1b7", true, selectedManagedServer},
		{"3DA21691-E39D-4DA6-8A4B-B43877BCB1B7", false, selectedManagedServer},
		{"00000000-0000-0000-0000-000000000001", true, selectedManagedServer},
		{"9482f4b4-e343-43b6-b170-9a65bc822c77", false, selectedWindowsUpdate},
		{"7971f918-a847-4430-9279-4a52d1efe18d", false, selectedOther},
	} {
		if got := serverSelection(c.id, c.managed); got != c.want {
			t.Errorf("%s, managed %v: %d, want %d", c.id, c.managed, got, c.want)
		}
	}
}
