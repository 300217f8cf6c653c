package status_test

import (
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/agent/status"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; got:\n%s", name, got)
	}
}

var (
	berlin  = time.FixedZone("CET", 3600)
	noon    = time.Date(2026, 11, 21, 14, 5, 0, 0, berlin)
	patches = status.Finding{
		Effect: "quarantine",
		Title:  status.Text{De: "Sicherheitsupdates sind rechtzeitig eingespielt", En: "Security updates are installed in time"},
		Reason: status.Text{
			De: "Auf Ihrem Dienst-Notebook fehlen seit 16 Tagen Sicherheitsupdates.",
			En: "Security updates have been missing on your service notebook for 16 days.",
		},
		Remedy: status.Text{
			De: "Verbinden Sie das Gerät mit dem Internet, lassen Sie es eine Stunde eingeschaltet und starten Sie es danach neu.",
			En: "Connect the device to the internet, leave it switched on for an hour and restart it then.",
		},
		FailingSince: noon.AddDate(0, 0, -16),
	}
	disks = status.Finding{
		Effect: "deny",
		Title:  status.Text{De: "Alle Laufwerke sind verschlüsselt", En: "All disks are encrypted"},
		Reason: status.Text{
			De: "Auf Ihrem Dienst-Notebook ist nicht verschlüsselt: das Systemlaufwerk.",
			En: "Not encrypted on your service notebook: the system disk.",
		},
		Remedy:       status.Text{De: "Bringen Sie das Gerät zu Ihrer IT-Stelle.", En: "Take the device to your IT service desk."},
		FailingSince: noon.Add(-2 * time.Hour),
	}
	restart = status.Finding{
		Effect: "warn",
		Title:  status.Text{De: "Kein Neustart steht aus", En: "No restart is pending"},
		Reason: status.Text{
			De: "Installierte Updates wirken erst nach einem Neustart.",
			En: "Installed updates take effect only after a restart.",
		},
		Remedy:     status.Text{De: "Starten Sie das Gerät neu, sobald es Ihnen passt.", En: "Restart the device when it suits you."},
		GraceUntil: noon.AddDate(0, 0, 3),
	}
)

func TestStatusReadsAsPeopleNeedIt(t *testing.T) {
	valid := noon.Add(30 * time.Minute)
	for name, s := range map[string]status.Summary{
		"admitted": {Connection: status.Online, LastContact: noon.Add(-time.Minute),
			Judgement: &status.Judgement{Verdict: "admit", ValidUntil: valid}},
		"warned": {Connection: status.Online, LastContact: noon.Add(-time.Minute),
			Judgement: &status.Judgement{Verdict: "admit", ValidUntil: valid, Findings: []status.Finding{restart}}},
		"quarantined": {Connection: status.Online, LastContact: noon.Add(-time.Minute),
			Judgement: &status.Judgement{Verdict: "quarantine", ValidUntil: valid, Code: "7K4-QX2", Findings: []status.Finding{patches}}},
		"denied": {Connection: status.Online, LastContact: noon.Add(-time.Minute),
			Judgement: &status.Judgement{Verdict: "deny", ValidUntil: valid, Code: "7K4-QX2", Findings: []status.Finding{disks, patches, restart}}},
		"denied-offline": {Connection: status.Unreachable, LastContact: noon.Add(-26 * time.Hour),
			Judgement: &status.Judgement{Verdict: "deny", ValidUntil: noon.Add(-25 * time.Hour), Code: "7K4-QX2", Findings: []status.Finding{disks}}},
		"ended": {Connection: status.Unreachable, LastContact: noon.Add(-time.Hour),
			Judgement: &status.Judgement{Verdict: "admit", ValidUntil: noon.Add(-15 * time.Minute)}},
		"service-silent": {Connection: status.Online, LastContact: noon.Add(-26 * time.Hour),
			Judgement: &status.Judgement{Verdict: "admit", ValidUntil: noon.Add(-25 * time.Hour)}},
		"not-to-be-told": {Connection: status.Online, LastContact: noon,
			Judgement: &status.Judgement{Verdict: "quarantine", ValidUntil: valid, Findings: []status.Finding{{
				Effect: "quarantine", Unknown: true, Title: patches.Title, Remedy: patches.Remedy, FailingSince: noon,
				Reason: status.Text{De: "Zwei Messwerte widersprechen sich.", En: "Two readings contradict each other."},
			}}}},
		"without-reason": {Connection: status.Online, LastContact: noon,
			Judgement: &status.Judgement{Verdict: "deny", ValidUntil: valid, Findings: []status.Finding{{Effect: "deny", Title: disks.Title}}}},
		"refused":          {Connection: status.Refused, LastContact: noon.Add(-time.Hour)},
		"untrusted":        {Connection: status.Untrusted, LastContact: noon.AddDate(0, 0, -100)},
		"expired":          {Connection: status.Expired, LastContact: noon.AddDate(0, 0, -12)},
		"not-enrolled":     {Connection: status.NotEnrolled},
		"no-token":         {Connection: status.NotEnrolled, Obstacle: status.NoToken},
		"token-refused":    {Connection: status.NotEnrolled, Obstacle: status.TokenRefused},
		"not-reached":      {Connection: status.NotEnrolled, Obstacle: status.NotReached},
		"not-a-desk":       {Connection: status.NotEnrolled, Obstacle: status.WrongAuthority},
		"copied":           {Connection: status.NotEnrolled, Obstacle: status.NoToken, Copied: true},
		"foreign-keys":     {Connection: status.NotEnrolled, ForeignKeys: true, Obstacle: status.NotExpected},
		"not-expected":     {Connection: status.NotEnrolled, Obstacle: status.NotExpected},
		"no-tpm":           {Connection: status.NoTPM, LastContact: noon.Add(-time.Hour)},
		"other-protection": {Connection: status.OtherProtection},
		"not-configured":   {Connection: status.NotConfigured},
		"broken":           {Connection: status.Broken, LastContact: noon.Add(-time.Hour)},
		"pending":          {Connection: status.Pending, Fingerprint: "3F7K-9QX2-00AB-CDEF-GH12-3456"},
		"never-reached":    {},
		"no-verdict-yet":   {Connection: status.Online, LastContact: noon},
	} {
		for _, lang := range []string{"de", "en"} {
			golden(t, name+"."+lang, status.Show(s, status.Language(lang), noon))
		}
	}
}

// Whatever a damaged or newer file says, it never reads as an admission.
func TestUnknownVerdictReadsAsRefusal(t *testing.T) {
	got := status.Show(status.Summary{Judgement: &status.Judgement{Verdict: "splendid"}}, status.Language("en"), noon)
	if !strings.Contains(got, "No access") {
		t.Errorf("shown:\n%s", got)
	}
}

func TestLocaleChoosesTheLanguage(t *testing.T) {
	for locale, german := range map[string]bool{
		"de": true, "de_DE.UTF-8": true, "de-AT": true, "": true, "C": true, "C.UTF-8": true, "POSIX": true,
		"en": false, "en_GB.UTF-8": false, "fr_FR": false, "den": false,
	} {
		if status.German(locale) != german {
			t.Errorf("%q: German is %v", locale, !german)
		}
	}
}

func TestBoardShowsOnlyWhatItsReaderNeeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "public", "status.json")
	b := status.NewBoard(path, slog.New(slog.DiscardHandler))
	b.Connection(status.Online)
	b.Acknowledged(noon)
	b.Judged(&posturev1.Result{
		Verdict: posturev1.Verdict_VERDICT_QUARANTINE, Code: "7K4-QX2", Policy: "dienstgeraete",
		EvidenceDigest: []byte("digest"), ExpiresAt: timestamppb.New(noon.Add(time.Hour)),
		Findings: []*posturev1.Finding{
			{Rule: "warned", Outcome: posturev1.Outcome_OUTCOME_FAIL, Effect: posturev1.Effect_EFFECT_WARN,
				Title: &posturev1.LocalText{De: "Hinweis", En: "note"}},
			{Rule: "passed", Outcome: posturev1.Outcome_OUTCOME_PASS, Effect: posturev1.Effect_EFFECT_NONE,
				Title: &posturev1.LocalText{De: "bestanden", En: "passed"}},
			{Rule: "observed", Outcome: posturev1.Outcome_OUTCOME_FAIL, Effect: posturev1.Effect_EFFECT_NONE,
				Title: &posturev1.LocalText{De: "beobachtet", En: "observed"}},
			{Rule: "failed", Outcome: posturev1.Outcome_OUTCOME_UNKNOWN, Effect: posturev1.Effect_EFFECT_QUARANTINE,
				Title:  &posturev1.LocalText{De: "Ursache", En: "cause"},
				Values: []*posturev1.Value{{Path: "evidence.patch.pending_security", Value: "secret-value"}}},
		},
	})
	s, err := status.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	f := s.Judgement.Findings
	if len(f) != 2 || f[0].Title.En != "cause" || f[1].Title.En != "note" {
		t.Errorf("findings %+v, want the cause before the note and nothing else", f)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, hidden := range []string{"secret-value", "digest", "evidence.", "dienstgeraete"} {
		if strings.Contains(string(content), hidden) {
			t.Errorf("the public file contains %q", hidden)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestJudgementOutlivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status.json")
	log := slog.New(slog.DiscardHandler)
	b := status.NewBoard(path, log)
	b.Judged(&posturev1.Result{Code: "7K4-QX2"})
	b.Connection(status.Online)
	status.NewBoard(path, log).Connection(status.Unreachable)
	s, err := status.Read(path)
	if err != nil || s.Judgement.Code != "7K4-QX2" || s.Judgement.Verdict != "deny" || s.Connection != status.Unreachable {
		t.Errorf("after a restart %+v, %v", s, err)
	}
}

func TestMissingAndDamagedFilesAreTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status.json")
	if _, err := status.Read(path); !errors.Is(err, status.ErrNone) {
		t.Errorf("missing: %v", err)
	}
	if err := os.WriteFile(path, []byte(`{"connection":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := status.Read(path); err == nil || errors.Is(err, status.ErrNone) {
		t.Errorf("damaged: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"connection":"online","judgement":{"verdict":"admit","findings":[{"effect":"warn"}]}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := status.Parse(content)
		if err == nil {
			status.Show(s, status.Language("de"), noon)
		}
	})
}

// Keys that the TPM does not have are said beside why the new enrolment is not
// through yet, also over a restart.
func TestForeignKeysAreSaidUntilThisDeviceIsOnline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status.json")
	log := slog.New(slog.DiscardHandler)
	b := status.NewBoard(path, log)
	b.NotEnrolled(status.ForeignKeys)
	b.NotEnrolled(status.NotExpected)
	status.NewBoard(path, log).NotEnrolled(status.NotReached)
	if s, err := status.Read(path); err != nil || !s.ForeignKeys || s.Obstacle != status.NotReached {
		t.Errorf("%+v, %v", s, err)
	}
	b = status.NewBoard(path, log)
	b.Connection(status.Online)
	if s, err := status.Read(path); err != nil || s.ForeignKeys {
		t.Errorf("%+v, %v", s, err)
	}
	b.Copied(true)
	if s, err := status.Read(path); err != nil || !s.ForeignKeys || s.Copied {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestCopiedIdentityIsSaidUntilThisDeviceIsOnline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "status.json")
	log := slog.New(slog.DiscardHandler)
	b := status.NewBoard(path, log)
	b.Judged(&posturev1.Result{Verdict: posturev1.Verdict_VERDICT_ADMIT})
	b.Copied(false)
	s, err := status.Read(path)
	if err != nil || !s.Copied || s.Judgement != nil {
		t.Errorf("%+v, %v: another machine's judgement is not this one's", s, err)
	}
	b = status.NewBoard(path, log) // a restart
	b.NotEnrolled(status.NoToken)
	if s, err := status.Read(path); err != nil || !s.Copied {
		t.Errorf("%+v, %v", s, err)
	}
	b.Connection(status.Online)
	if s, err := status.Read(path); err != nil || s.Copied || s.Obstacle != "" {
		t.Errorf("%+v, %v", s, err)
	}
}
