package bootlog_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"testing"

	"pfoertner/internal/attest/bootlog"
	"pfoertner/internal/attest/bootlog/bootlogtest"
)

// quoted are the PCRs that a TPM has after these events.
func quoted(b *bootlogtest.Builder) map[uint32][]byte {
	all := map[uint32][]byte{}
	for _, pcr := range []uint32{0, 2, 4, 7, 11, 12, 13, 14} {
		all[pcr] = b.PCR(pcr)
	}
	return all
}

func facts(t *testing.T, b *bootlogtest.Builder) (*bootlog.Facts, error) {
	t.Helper()
	log, err := bootlog.Parse(b.Log())
	if err != nil {
		t.Fatal(err)
	}
	return log.Facts(quoted(b))
}

func TestFactsOfAnOrdinaryBoot(t *testing.T) {
	f, err := facts(t, bootlogtest.SecureBoot())
	if err != nil {
		t.Fatal(err)
	}
	if f.SecureBoot != bootlog.Yes || f.SetupMode != bootlog.No {
		t.Errorf("Secure Boot %v, setup mode %v", f.SecureBoot, f.SetupMode)
	}
	for name, got := range map[string][]byte{"platform key": f.PK, "key exchange keys": f.KEK, "db": f.DB, "dbx": f.DBX} {
		want := sha256.Sum256([]byte(name))
		if !bytes.Equal(got, want[:]) {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
	if want := [][]byte{bootlogtest.Digest("shim"), bootlogtest.Digest("grub")}; !slices.EqualFunc(f.Loaders, want, bytes.Equal) {
		t.Errorf("loaders %x, want %x", f.Loaders, want)
	}
	var variables []string
	for _, a := range f.Authorities {
		variables = append(variables, a.Variable)
	}
	if want := []string{"db", "SbatLevel"}; !slices.Equal(variables, want) {
		t.Errorf("authorities %v, want %v", variables, want)
	}
	if want := []uint32{0, 2, 4, 7, 11, 12, 13, 14}; !slices.Equal(f.Replayed, want) {
		t.Errorf("replayed %v, want %v", f.Replayed, want)
	}
	if want := []uint32{0, 2, 4, 7}; !slices.Equal(f.Separated, want) {
		t.Errorf("separated %v, want %v", f.Separated, want)
	}
}

func TestSetupModeAndSecureBootOff(t *testing.T) {
	b := bootlogtest.New()
	b.Variable(7, "SecureBoot", []byte{0})
	b.Variable(7, "PK", nil)
	b.Text(7, "UEFI Debug Mode")
	b.Separator(7)
	b.Separator(4)
	f, err := facts(t, b)
	if err != nil {
		t.Fatal(err)
	}
	if f.SecureBoot != bootlog.No || f.SetupMode != bootlog.Yes || f.KEK != nil || !slices.Equal(f.Warnings, []string{"UEFI Debug Mode"}) {
		t.Errorf("%+v", f)
	}
}

// Whoever is root can write any log and extend PCRs further, but not undo what
// was measured.
func TestSecureBootIsNeverMadeUp(t *testing.T) {
	off := func() *bootlogtest.Builder {
		b := bootlogtest.New()
		b.Variable(7, "SecureBoot", []byte{0})
		b.Variable(7, "PK", []byte("platform key"))
		b.Separator(7)
		b.Separator(4)
		return b
	}
	on := bootlogtest.VariableData("SecureBoot", []byte{1})
	for name, tc := range map[string]struct{ made, told *bootlogtest.Builder }{
		"other data for the measured digest":  {off(), off().Edit(0, func(e *bootlogtest.Event) { e.Data = on })},
		"another type for the measured event": {off(), off().Edit(0, func(e *bootlogtest.Event) { e.Type = 0x80000007 })},
		"the event called unmeasured":         {off(), off().Edit(0, func(e *bootlogtest.Event) { e.Type = 3 })},
		"the event left out":                  {off(), off().Without(0)},
		"measured once more":                  {off().Variable(7, "SecureBoot", []byte{1}), off().Variable(7, "SecureBoot", []byte{1})},
		"measured once more, with everything before it called something else": {
			off().Variable(7, "SecureBoot", []byte{1}).Separator(7),
			off().Variable(7, "SecureBoot", []byte{1}).Separator(7).
				Edit(0, func(e *bootlogtest.Event) { e.Data, e.Type = []byte("harmless"), 0x80000007 }).
				Edit(2, func(e *bootlogtest.Event) { e.Data, e.Type = []byte("harmless"), 0x80000007 }),
		},
		"no separator": {
			bootlogtest.New().Variable(7, "SecureBoot", []byte{1}).Separator(4),
			bootlogtest.New().Variable(7, "SecureBoot", []byte{1}).Separator(4),
		},
		"a variable of that name, but of somebody else": {
			bootlogtest.New().Raw(7, 0x80000001, bootlogtest.ForeignVariable("SecureBoot", []byte{1})).Separator(7).Separator(4),
			bootlogtest.New().Raw(7, 0x80000001, bootlogtest.ForeignVariable("SecureBoot", []byte{1})).Separator(7).Separator(4),
		},
	} {
		log, err := bootlog.Parse(tc.told.Log())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f, err := log.Facts(quoted(tc.made))
		if f.SecureBoot == bootlog.Yes {
			t.Errorf("%s: Secure Boot is believed (%v)", name, err)
		}
		if err != nil && !errors.Is(err, bootlog.ErrLog) {
			t.Errorf("%s: error of another kind: %v", name, err)
		}
	}
}

// The type of an event is not measured, so a boot loader cannot be called
// something else, whatever data stands beside its digest.
func TestNoLoaderIsHidden(t *testing.T) {
	made := bootlogtest.SecureBoot()
	loader := slices.IndexFunc(made.Events, func(e bootlogtest.Event) bool { return e.Type == 0x80000003 })
	for name, edit := range map[string]func(*bootlogtest.Event){
		"as a text":      func(e *bootlogtest.Event) { e.Type, e.Data = 0x80000007, []byte("Calling EFI Application") },
		"as a separator": func(e *bootlogtest.Event) { e.Type, e.Data = 4, []byte{0, 0, 0, 0} },
	} {
		told := bootlogtest.SecureBoot().Edit(loader, edit)
		log, err := bootlog.Parse(told.Log())
		if err != nil {
			t.Fatal(err)
		}
		if f, _ := log.Facts(quoted(made)); len(f.Loaders) != 2 {
			t.Errorf("%s: loaders %x", name, f.Loaders)
		}
	}
}

func TestFactsOfAPCRThatIsAnotherAreUnknown(t *testing.T) {
	b := bootlogtest.SecureBoot()
	values := quoted(b)
	values[4] = make([]byte, 32)
	log, err := bootlog.Parse(b.Log())
	if err != nil {
		t.Fatal(err)
	}
	f, err := log.Facts(values)
	if !errors.Is(err, bootlog.ErrLog) || f.Loaders != nil {
		t.Errorf("loaders %x, %v", f.Loaders, err)
	}
	if f.SecureBoot != bootlog.Yes {
		t.Error("PCR 7 is confirmed, and yet nothing is said of Secure Boot")
	}
	if slices.Contains(f.Replayed, 4) {
		t.Error("PCR 4 counts as replayed")
	}
}

func TestStartupLocalityBelongsToPCR0(t *testing.T) {
	b := bootlogtest.New().Locality(3).Text(0, "firmware")
	log, err := bootlog.Parse(b.Log())
	if err != nil {
		t.Fatal(err)
	}
	if got := log.Replay([]uint32{0})[0]; !bytes.Equal(got, b.PCR(0)) {
		t.Errorf("%x, want %x", got, b.PCR(0))
	}
}

func TestUnusableLogs(t *testing.T) {
	whole := bootlogtest.SecureBoot().Log()
	header := bootlogtest.New().Log()
	for name, raw := range map[string][]byte{
		"none":             nil,
		"too long":         make([]byte, bootlog.MaxBytes+1),
		"zeros":            make([]byte, 4096),
		"header cut off":   header[:len(header)-1],
		"event cut off":    whole[:len(whole)-1],
		"of TPM 1.2":       bytes.Replace(whole, []byte("Spec ID Event03"), []byte("Spec ID Event02"), 1),
		"without SHA-256":  bytes.Replace(whole, []byte{0x0b, 0, 32, 0}, []byte{0x0c, 0, 32, 0}, 1),
		"too many events":  append(bytes.Clone(header), bytes.Repeat(bootlogtest.New().Separator(0).Log()[len(header):], 10_001)...),
		"length of 4 GB":   append(bytes.Clone(header), 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff),
		"PCR 24":           bootlogtest.New().Separator(24).Log(),
		"no SHA-256 there": append(bytes.Clone(header), 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
	} {
		if _, err := bootlog.Parse(raw); !errors.Is(err, bootlog.ErrLog) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"testdata/ovmf-secure-boot.bin", "testdata/ovmf-setup-mode.bin"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add(bootlogtest.SecureBoot().Log())
	f.Add(bootlogtest.New().Locality(4).Separator(7).Log())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := bootlog.Parse(raw)
		if err != nil {
			if !errors.Is(err, bootlog.ErrLog) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		pcrs := []uint32{0, 4, 7}
		confirmed := map[uint32][]byte{}
		for i, v := range log.Replay(pcrs) {
			confirmed[pcrs[i]] = v
		}
		facts, err := log.Facts(confirmed)
		if facts.SecureBoot == bootlog.Yes && !slices.Contains(facts.Separated, 7) {
			t.Error("Secure Boot without a separator")
		}
		if err != nil && !errors.Is(err, bootlog.ErrLog) {
			t.Errorf("error of another kind: %v", err)
		}
	})
}
