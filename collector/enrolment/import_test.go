package enrolment

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/audit"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

var (
	sumA = strings.Repeat("aa", 32)
	sumB = strings.Repeat("bb", 32)
)

func TestDryRunShowsEveryFieldAndChangesNothing(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-0001;Lenovo;T14;PF1;inneres/polizei;fachverfahren;;"+sumA+"\nNB-0002;Dell;;D2;inneres;;;\n")
	file := header +
		"NB-0002;Dell;;D2;inneres;;;\n" +
		"NB-0001;Lenovo;T14s;PF1;Bürgerämter / Süd;it,fachverfahren;tpm;" + sumB + "\n" +
		"NB-0003;;;;;;;\n"
	plan := h.PlanImport([]byte(file))
	want := []string{
		"3 NB-0001 change",
		"model: T14 → T14s", "unit: inneres/polizei → bürgerämter/süd", "groups: fachverfahren → fachverfahren it",
		"key_protection:  → tpm", "vpn_certificate_sha256: " + sumA + " → " + sumB,
		"4 NB-0003 add",
	}
	if got := changes(plan); !slices.Equal(got, want) {
		t.Errorf("plan:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if plan.GetUnchanged() != 1 || plan.GetApplied() || len(plan.GetErrors()) > 0 {
		t.Errorf("plan: %d unchanged, applied %v, errors %v", plan.GetUnchanged(), plan.GetApplied(), plan.GetErrors())
	}
	if got := h.device(t, "NB-0001").GetAsset().GetModel(); got != "T14" {
		t.Errorf("the dry run made the model %s", got)
	}
	done, err := h.Import(t.Context(), "ops", []byte(file))
	if err != nil || !done.GetApplied() {
		t.Fatalf("%v, %v", done, err)
	}
	done.Applied = false
	if !proto.Equal(done, plan) {
		t.Errorf("import did %v, the plan was %v", done, plan)
	}
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		d, _ := r.Find("NB-0001")
		if a := d.GetAsset(); a.GetModel() != "T14s" || a.GetUnit() != "bürgerämter/süd" || a.GetState() != expected {
			t.Errorf("after import: %v", a)
		}
		if got := numbers(r.All()); !slices.Equal(got, []string{"NB-0001", "NB-0002", "NB-0003"}) {
			t.Errorf("inventory: %v", got)
		}
	}
	imported := h.lastAudit(t, "inventory.imported")
	if imported.Actor != "ops" || imported.Details["added"] != "1" || imported.Details["changed"] != "1" || imported.Details["unchanged"] != "1" {
		t.Errorf("audit: %+v", imported)
	}
	if changed := h.lastAudit(t, "asset.changed"); changed.AssetNumber != "NB-0001" || changed.Details["model"] != "T14 → T14s" {
		t.Errorf("audit: %+v", changed)
	}
}

func changes(r *fleetv1.ImportResponse) (lines []string) {
	for _, c := range r.GetChanges() {
		lines = append(lines, fmt.Sprintf("%d %s %s", c.GetLine(), c.GetAssetNumber(), c.GetKind()))
		for _, f := range c.GetFields() {
			lines = append(lines, fmt.Sprintf("%s: %s → %s", f.GetField(), f.GetBefore(), f.GetAfter()))
		}
	}
	return lines
}

func TestFilesAsPeopleSaveThem(t *testing.T) {
	for name, file := range map[string]string{
		"semicolons":               "asset_number;vendor\nNB-1;Müller\n",
		"commas":                   "asset_number,vendor\nNB-1,Müller\n",
		"byte order mark":          "\ufeffasset_number;vendor\nNB-1;Müller\n",
		"Windows line ends":        "asset_number;vendor\r\nNB-1;Müller\r\n",
		"no line end at the end":   "asset_number;vendor\nNB-1;Müller",
		"columns in another order": "vendor;asset_number\nMüller;NB-1\n",
		"quotes and blanks":        "\"asset_number\"; Vendor \n\"NB-1 \"; Müller \n",
		"empty lines":              "asset_number;vendor\n\nNB-1;Müller\n;\n\n",
		"commas inside quotes":     "asset_number,vendor,groups\nNB-1,Müller,\"a,b\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			res, err := h.Import(t.Context(), "ops", []byte(file))
			if err != nil || len(res.GetErrors()) > 0 {
				t.Fatalf("%v, %v", err, res.GetErrors())
			}
			if got := h.device(t, "NB-1").GetAsset().GetVendor(); got != "Müller" {
				t.Errorf("vendor %q", got)
			}
		})
	}
}

func TestMissingColumnLeavesTheFieldAsItIs(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;Lenovo;T14;PF1;inneres;a;tpm;"+sumA+"\n")
	before := h.device(t, "NB-1")
	res, err := h.Import(t.Context(), "ops", []byte("asset_number;model\nNB-1;T14s\n"))
	if err != nil || len(res.GetErrors()) > 0 {
		t.Fatalf("%v, %v", err, res.GetErrors())
	}
	want := proto.CloneOf(before)
	want.Asset.Model = "T14s"
	if got := h.device(t, "NB-1"); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if before.GetAsset().GetModel() != "T14" {
		t.Error("a device that was handed out has changed")
	}
}

func TestBadFilesAreRefusedWithLineAndColumn(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "OLD-1;;;S1;;;tpm;"+sumA+"\nOLD-2;;;S2;;;;\nOLD-3;;;;;;;\n")
	if _, err := h.SetState(t.Context(), "ops", "OLD-2", retired, ""); err != nil {
		t.Fatal(err)
	}
	h.give(t, "OLD-1") // has a key now
	h.list(t, "OLD-4;"+sumB)
	for name, tc := range map[string]struct {
		file string
		want []string // "line column: part of the message"
	}{
		"empty":                      {"", []string{"1 : the file is empty"}},
		"no asset number":            {"vendor\nx\n", []string{"1 asset_number: missing"}},
		"unknown column":             {"asset_number;Farbe\nNB-1;x\n", []string{"1 Farbe: unknown column"}},
		"column twice":               {"asset_number;vendor;vendor\nNB-1;x;x\n", []string{"1 vendor: there twice"}},
		"Windows-1252":               {"asset_number;vendor\nNB-1;x\nNB-2;M\xfcller\n", []string{"3 : Windows-1252"}},
		"UTF-16":                     {"\xff\xfea\x00s\x00", []string{"1 : UTF-16"}},
		"too few fields":             {"asset_number;vendor\nNB-1\nNB-2;x\nNB-3;x;y\n", []string{"2 : 1 fields, the header has 2", "4 : 3 fields"}},
		"missing number":             {"asset_number;vendor\n;x\n", []string{"2 asset_number: missing"}},
		"blank in number":            {"asset_number\nNB 1\n", []string{"2 asset_number: no blanks"}},
		"long number":                {"asset_number\n" + strings.Repeat("1", 65) + "\n", []string{"2 asset_number: at most 64"}},
		"same number twice":          {"asset_number\nNB-1\nNB-2\nNB-1\n", []string{"4 asset_number: in line 2 already"}},
		"same serial twice":          {"asset_number;serial\nNB-1;x1\nNB-2;X1\n", []string{"3 serial: also that of asset NB-1 in line 2"}},
		"serial of another":          {"asset_number;serial\nNB-1;s1\n", []string{"2 serial: also that of asset OLD-1 (active)"}},
		"serial of a retired one":    {"asset_number;serial\nNB-1;S2\n", []string{"2 serial: also that of asset OLD-2 (retired)"}},
		"placeholder serial":         {"asset_number;serial\nNB-1;To be filled by O.E.M.\n", []string{"2 serial: placeholder"}},
		"same certificate twice":     {"asset_number;vpn_certificate_sha256\nNB-1;" + sumB + "\nNB-2;" + strings.ToUpper(sumB) + "\n", []string{"3 vpn_certificate_sha256: asset NB-1 in line 2"}},
		"certificate of another":     {"asset_number;vpn_certificate_sha256\nNB-1;" + sumA + "\n", []string{"2 vpn_certificate_sha256: asset OLD-1"}},
		"certificate that is none":   {"asset_number;vpn_certificate_sha256\nNB-1;abc\n", []string{"2 vpn_certificate_sha256: not a SHA-256"}},
		"unknown protection":         {"asset_number;key_protection\nNB-1;hsm\n", []string{"2 key_protection: not one of: empty, software, tpm"}},
		"unit with an empty level":   {"asset_number;unit\nNB-1;a//b\n", []string{"2 unit: path"}},
		"control character":          {"asset_number;vendor\nNB-1;a\x00b\n", []string{"2 vendor: control character"}},
		"line break in a field":      {"asset_number;vendor\nNB-1;\"a\nb\"\nNB-1;x\n", []string{"2 vendor: line break", "4 asset_number: in line 2 already"}},
		"decomposed umlaut":          {"asset_number;vendor\nNB-1;Mu\u0308ller\n", []string{"2 vendor: NFC"}},
		"invisible character":        {"asset_number\nNB-\u200b1\n", []string{"2 asset_number: invisible", "2 asset_number: no blanks"}},
		"quote without an end":       {"asset_number;vendor\nNB-1;\"x\nNB-2;y\n", []string{"2 : does not end"}},
		"quote in the middle":        {"asset_number;vendor\nNB-1;x\"y\n", []string{"2 : quotation mark inside"}},
		"retired one":                {"asset_number;vendor\nOLD-2;x\n", []string{"2 asset_number: retired"}},
		"protection of a key in use": {"asset_number;key_protection\nOLD-1;software\n", []string{"2 key_protection: software-key allow OLD-1"}},
		"software key of a new one":  {"asset_number;key_protection\nNB-1;software\n", []string{"2 key_protection: software-key allow NB-1"}},
		"software key of another":    {"asset_number;key_protection\nOLD-3;software\n", []string{"2 key_protection: software-key allow OLD-3"}},
		"endorsement key, not one":   {"asset_number;endorsement_key_sha256\nNB-1;" + sumA + " abc\n", []string{"2 endorsement_key_sha256: not a SHA-256"}},
		"endorsement key twice":      {"asset_number;endorsement_key_sha256\nNB-1;" + sumA + "\nNB-2;" + strings.ToUpper(sumA) + "\n", []string{"3 endorsement_key_sha256: asset NB-1 in line 2"}},
		"endorsement key of another": {"asset_number;endorsement_key_sha256\nNB-1;" + sumB + "\n", []string{"2 endorsement_key_sha256: asset OLD-4 (expected)"}},
		"another endorsement key":    {"asset_number;endorsement_key_sha256\nOLD-4;" + sumA + "\n", []string{"2 endorsement_key_sha256: tpm-exchange OLD-4"}},
		"a second endorsement key":   {"asset_number;endorsement_key_sha256\nOLD-4;" + sumB + " " + sumA + "\n", []string{"2 endorsement_key_sha256: tpm-exchange OLD-4"}},
		"endorsement key, in use":    {"asset_number;endorsement_key_sha256\nOLD-1;" + sumA + "\n", []string{"2 endorsement_key_sha256: approve OLD-1"}},
		"errors in many lines":       {"asset_number;unit;key_protection\nNB-1;/;x\nNB-2;a;\n;;x\n", []string{"2 key_protection: not one of", "2 unit: path", "4 asset_number: missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := numbers(h.All())
			res, err := h.Import(t.Context(), "ops", []byte(tc.file))
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Clone(res.GetErrors())
			slices.SortStableFunc(got, func(a, b *fleetv1.LineError) int {
				return strings.Compare(fmt.Sprint(a.GetLine(), a.GetColumn()), fmt.Sprint(b.GetLine(), b.GetColumn()))
			})
			if len(got) != len(tc.want) {
				t.Fatalf("errors %v, want %v", got, tc.want)
			}
			for i, want := range tc.want {
				place, part, _ := strings.Cut(want, ": ")
				if fmt.Sprintf("%d %s", got[i].GetLine(), got[i].GetColumn()) != place || !strings.Contains(got[i].GetMessage(), part) {
					t.Errorf("error %v, want %s", got[i], want)
				}
			}
			if res.GetApplied() || !slices.Equal(numbers(h.All()), before) {
				t.Error("a file with errors changed something")
			}
		})
	}
}

// list imports lines of asset numbers and endorsement keys.
func (h *house) list(t testing.TB, lines string) {
	t.Helper()
	res, err := h.Import(t.Context(), "ops", []byte("asset_number;endorsement_key_sha256\n"+lines+"\n"))
	if err != nil || len(res.GetErrors()) > 0 {
		t.Fatalf("importing: %v, %v", err, res.GetErrors())
	}
}

func TestDeliveryListNamesEndorsementKeys(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-2;;;;;;;\n")
	h.list(t, "NB-1;"+sumA+" "+strings.ToUpper(strings.Repeat("cc:", 31)+"cc")+"\nNB-2;"+sumB)
	a, _ := hex.DecodeString(sumA)
	b, _ := hex.DecodeString(sumB)
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		one, _ := r.DeviceOfEndorsement(a)
		two, _ := r.DeviceOfEndorsement(b)
		if one.GetAsset().GetAssetNumber() != "NB-1" || len(one.GetAsset().GetEndorsementKeysSha256()) != 2 || two.GetAsset().GetAssetNumber() != "NB-2" {
			t.Errorf("found %v and %v", one, two)
		}
		if approved(one.GetAsset(), a) || !listed(one.GetAsset(), a) {
			t.Error("listed is not approved by two")
		}
	}
	if r := h.lastAudit(t, "asset.changed"); r.AssetNumber != "NB-2" || r.Details["endorsement_key_sha256"] != " → "+sumB {
		t.Errorf("audit: %+v", r)
	}
	// A file that lists less takes nothing away: approved keys are not in it.
	before := h.device(t, "NB-1")
	h.list(t, "NB-1;"+sumA)
	h.list(t, "NB-1;")
	if !proto.Equal(before, h.device(t, "NB-1")) {
		t.Errorf("now %v", h.device(t, "NB-1"))
	}
	// Retired, the asset keeps them.
	h.order(t, retire("NB-1"), "anna")
	res := h.again(t).PlanImport([]byte("asset_number;endorsement_key_sha256\nNB-3;" + sumA + "\n"))
	if len(res.GetErrors()) != 1 || !strings.Contains(res.GetErrors()[0].GetMessage(), "asset NB-1 (retired)") {
		t.Errorf("the key of a retired asset: %v", res.GetErrors())
	}
}

// What was rejected for an asset, or waits, does not come in by a file.
func TestFileDoesNotDecideAboutEnrolments(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	h.wait(t, "NB-1", ekA, fingerprint)
	for name, tc := range map[string]struct{ asset, want string }{
		"waiting":            {"NB-1", "approve NB-1"},
		"waiting of another": {"NB-2", "asset NB-1 (pending)"},
	} {
		errs := h.PlanImport([]byte("asset_number;endorsement_key_sha256\n" + tc.asset + ";" + hex.EncodeToString(ekA) + "\n")).GetErrors()
		if len(errs) != 1 || !strings.Contains(errs[0].GetMessage(), tc.want) {
			t.Errorf("%s: %v", name, errs)
		}
	}
	h.order(t, reject("NB-1"), "anna")
	errs := h.PlanImport([]byte("asset_number;endorsement_key_sha256\nNB-1;" + hex.EncodeToString(ekA) + "\n")).GetErrors()
	if len(errs) != 1 || !strings.Contains(errs[0].GetMessage(), "rejected") {
		t.Errorf("rejected: %v", errs)
	}
}

// The mark of a software key that an asset has from before does not fail its
// file; raising the demand does not either.
// A notebook waits with the token of another: the delivery list, which has both
// assets, does not give its TPM to two.
func TestDeliveryListDoesNotNameATPMThatWaitsForAnotherAsset(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;\nNB-2;;;S2;;;;\n")
	if err := h.SetPending(t.Context(), "NB-2", &fleetv1.PendingEnrolment{Fingerprint: "AAAA", EndorsementKeySha256: ekA}, nil); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"NB-1;" + hex.EncodeToString(ekA) + "\nNB-2;\n", "NB-1;" + hex.EncodeToString(ekA) + "\n"} {
		if res := h.PlanImport([]byte("asset_number;endorsement_key_sha256\n" + file)); len(res.GetErrors()) != 1 {
			t.Errorf("%q: %v", file, res)
		}
	}
	// A TPM may wait for the asset that lists it, when nobody vouches for it.
	h.list(t, "NB-1;"+hex.EncodeToString(ekB))
	if err := h.SetPending(t.Context(), "NB-1", &fleetv1.PendingEnrolment{Fingerprint: "BBBB", EndorsementKeySha256: ekB}, nil); err != nil {
		t.Fatal(err)
	}
	if res := h.PlanImport([]byte("asset_number;vendor\nNB-1;Lenovo\n")); len(res.GetErrors()) != 0 {
		t.Errorf("it waits for its own asset: %v", res)
	}
}

func TestExistingKeyProtectionStays(t *testing.T) {
	h := newHouse(t)
	old := &fleetv1.Device{Asset: &fleetv1.Asset{AssetNumber: "NB-1", State: expected, KeyProtection: software}}
	if err := h.db.SaveDevices(t.Context(), []*fleetv1.Device{old}); err != nil {
		t.Fatal(err)
	}
	h = h.again(t)
	if res := h.PlanImport([]byte("asset_number;key_protection\nNB-1;software\n")); res.GetUnchanged() != 1 {
		t.Errorf("as it is: %v", res)
	}
	h.stock(t, "NB-1;;;;;;tpm;\n")
	if res := h.PlanImport([]byte("asset_number;key_protection\nNB-1;software\n")); len(res.GetErrors()) != 1 {
		t.Errorf("lowered again: %v", res)
	}
	// What two operators have allowed, a file does not take away.
	h.allowSoftware(t, "NB-1")
	h.stock(t, "NB-1;;;;;;;\n")
	if h.device(t, "NB-1").GetAsset().GetSoftwareKey() == nil {
		t.Error("the permission is gone")
	}
}

func TestCertificatesMayMoveWithinOneFile(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;;;S1;;;;"+sumA+"\nNB-2;;;S2;;;;"+sumB+"\n")
	h.stock(t, "NB-1;;;S2;;;;"+sumB+"\nNB-2;;;S1;;;;"+sumA+"\n")
	a, _ := hex.DecodeString(sumA)
	for _, r := range []*Registry{h.Registry, h.reload(t)} {
		if d, ok := r.DeviceOfCertificate(a); !ok || d.GetAsset().GetAssetNumber() != "NB-2" {
			t.Errorf("certificate belongs to %v", d)
		}
	}
	h.stock(t, "NB-2;;;S1;;;;\n")
	if d, ok := h.DeviceOfCertificate(a); ok {
		t.Errorf("given up, but still of %v", d)
	}
}

func TestErrorsAreCounted(t *testing.T) {
	h := newHouse(t)
	file := "asset_number\n" + strings.Repeat("a b\n", 250)
	errs := h.PlanImport([]byte(file)).GetErrors()
	if len(errs) != maxReportedErrors+1 || errs[maxReportedErrors].GetMessage() != "150 more errors are not shown" {
		t.Errorf("%d errors, the last: %v", len(errs), errs[len(errs)-1])
	}
}

// A store that fails must leave the memory as it was.
func TestFailedImportChangesNothing(t *testing.T) {
	h := newHouse(t)
	h.stock(t, "NB-1;Lenovo;;;;;;\n")
	h.store = failing{h.store}
	called := false
	h.OnChange(func(*fleetv1.Device) { called = true })
	if _, err := h.Import(t.Context(), "ops", []byte("asset_number;vendor\nNB-1;Dell\nNB-2;x\n")); !errors.Is(err, errDisk) {
		t.Fatal(err)
	}
	if _, ok := h.Find("NB-2"); ok || h.device(t, "NB-1").GetAsset().GetVendor() != "Lenovo" || called {
		t.Error("memory has what the store has not")
	}
}

var errDisk = errors.New("disk full")

// failing is a store that cannot write.
type failing struct{ Store }

func (failing) SaveDecision(context.Context, []*fleetv1.Device, []string, []string, ...audit.Record) error {
	return errDisk
}

func TestImportOfAWholeFleet(t *testing.T) {
	h := newHouse(t)
	var b bytes.Buffer
	b.WriteString(header)
	const fleet = 5_000
	for i := range fleet {
		fmt.Fprintf(&b, "NB-%06d;Lenovo;T14;PF%06d;inneres/polizei;a;tpm;%064x\n", i, i, i)
	}
	res, err := h.Import(t.Context(), "ops", b.Bytes())
	if err != nil || len(res.GetErrors()) > 0 || len(res.GetChanges()) != fleet {
		t.Fatalf("%v, %v", err, res.GetErrors())
	}
	if again := h.PlanImport(b.Bytes()); again.GetUnchanged() != fleet || len(again.GetChanges()) > 0 {
		t.Errorf("again: %d unchanged, %d changes", again.GetUnchanged(), len(again.GetChanges()))
	}
}

func FuzzImport(f *testing.F) {
	f.Add([]byte(header + "NB-1;Lenovo;T14;PF1;inneres/polizei;a b;tpm;" + sumA + "\n"))
	f.Add([]byte("\ufeffasset_number,vendor\r\n\"NB-1\",\"Mü\"\"ller\"\r\n"))
	f.Add([]byte("asset_number;vendor\nNB-1;M\xfcller\n"))
	f.Add([]byte("asset_number;unit\nNB-1;\"a\n/b\"\n"))
	f.Add([]byte("asset_number;endorsement_key_sha256;key_protection\nNB-1;" + sumA + " " + sumB + ";tpm\nOLD-1;" + sumB + ";\n"))
	h := newHouse(f)
	h.stock(f, "OLD-1;;;S1;;;;"+sumA+"\n")
	h.list(f, "OLD-2;"+sumB)
	f.Fuzz(func(t *testing.T, file []byte) {
		_, devices := h.plan(file)
		res := h.PlanImport(file)
		if len(devices) != len(res.GetChanges()) {
			t.Fatalf("%d devices for %d changes", len(devices), len(res.GetChanges()))
		}
		if len(res.GetErrors()) > 0 {
			return
		}
		serials, certificates, endorsed := map[string]bool{"S1": true}, map[string]bool{}, map[string]bool{}
		for _, d := range devices {
			a := d.GetAsset()
			if checkAssetNumber(a.GetAssetNumber()) != "" {
				t.Errorf("asset number %q", a.GetAssetNumber())
			}
			if key := serialKey(a.GetSerial()); a.GetAssetNumber() != "OLD-1" && key != "" {
				if serials[key] && key != "S1" {
					t.Errorf("serial %q twice", key)
				}
				serials[key] = true
			}
			for _, sum := range a.GetVpnCertificatesSha256() {
				if certificates[string(sum)] || len(sum) != 32 {
					t.Errorf("certificate %x", sum)
				}
				certificates[string(sum)] = true
			}
			if a.GetSoftwareKey() != nil || a.GetKeyProtection() == software {
				t.Errorf("a file allows a software key for %s", a.GetAssetNumber())
			}
			for _, sum := range a.GetEndorsementKeysSha256() {
				ours := hex.EncodeToString(sum) == sumB && a.GetAssetNumber() != "OLD-2"
				if endorsed[string(sum)] || len(sum) != 32 || ours {
					t.Errorf("endorsement key %x of %s", sum, a.GetAssetNumber())
				}
				endorsed[string(sum)] = true
			}
		}
	})
}
