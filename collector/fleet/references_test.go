package fleet

import (
	"crypto/tls"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/collector/authority"
	"pfoertner/internal/posture"
	"pfoertner/internal/signed"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// values are small reference values, issued on a day.
func values(issued string) string {
	return "issued: " + issued + `
sources: {s: {text: invented, read: 2026-11-20}}
distributions: [{id: house, version: "1", ends: 2030-01-01, source: s}]
`
}

// signer is somebody who may sign.
func (h *house) signer(t testing.TB, name string) tls.Certificate {
	t.Helper()
	dir := t.TempDir()
	check(t, h.keys.WriteReferenceSigner(dir, name))
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, authority.ReferenceSignerFile+".crt"), filepath.Join(dir, authority.ReferenceSignerFile+".key"))
	check(t, err)
	return pair
}

func sign(t testing.TB, kind, content string, by tls.Certificate) []byte {
	t.Helper()
	file, err := signed.Sign(kind, []byte(content), by)
	check(t, err)
	return file
}

// imports imports a file and returns the last answer.
func imports(t testing.TB, c fleetv1.ReferenceServiceClient, req *fleetv1.ImportReferencesRequest) (*fleetv1.ImportReferencesResponse, error) {
	t.Helper()
	stream, err := c.ImportReferences(t.Context(), req)
	check(t, err)
	var last *fleetv1.ImportReferencesResponse
	for {
		step, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = step
	}
}

func TestReferenceValuesAreImportedKeptAndAudited(t *testing.T) {
	h := build(t)
	h.serve(t)
	c := fleetv1.NewReferenceServiceClient(h.operator(t, "anna"))
	answer, err := c.ShowReferences(t.Context(), &fleetv1.ShowReferencesRequest{})
	check(t, err)
	if answer.GetVersion().GetVersion() != 0 || !strings.Contains(string(answer.GetSignedFile()), "windows_builds:") {
		t.Errorf("before any import: %v", answer.GetVersion())
	}

	file := sign(t, signed.References, values("2026-11-20"), h.signer(t, "it"))
	last, err := imports(t, c, &fleetv1.ImportReferencesRequest{SignedFile: file, Comment: "November"})
	check(t, err)
	v := last.GetImported()
	if !last.GetDone() || last.GetNowQuarantined() != 1 || v.GetVersion() != 1 || v.GetSigner() != "it" || v.GetOperator() != "anna" || v.GetComment() != "November" {
		t.Errorf("%v", last)
	}
	in := h.verifier.References().Size()
	if in.GetDistributions() < 13 || in.GetWindowsBuilds() < 250 {
		t.Errorf("in force is not the shipped table with the file above it: %v", in)
	}
	answer, err = c.ShowReferences(t.Context(), &fleetv1.ShowReferencesRequest{})
	check(t, err)
	if string(answer.GetSignedFile()) != string(file) || answer.GetInForce().GetWindowsUsableUntil().AsTime().Format(time.DateOnly) != "2026-08-17" {
		t.Errorf("%v", answer.GetInForce())
	}
	events, err := h.store.Events(t.Context(), "", time.Time{}, 10)
	check(t, err)
	if len(events) != 1 || events[0].Kind != "references.imported" || events[0].Actor != "anna" || events[0].Details["signer"] != "it" {
		t.Errorf("audit: %+v", events)
	}
	list, err := c.ListReferences(t.Context(), &fleetv1.ListReferencesRequest{})
	check(t, err)
	if len(list.GetVersions()) != 1 {
		t.Errorf("%v", list.GetVersions())
	}
}

func TestAnOlderFileIsTakenOnlyOnPurpose(t *testing.T) {
	h := build(t)
	h.serve(t)
	c := fleetv1.NewReferenceServiceClient(h.operator(t, "anna"))
	by := h.signer(t, "it")
	for _, step := range []struct {
		issued string
		allow  bool
		code   codes.Code
		says   string
	}{
		{"2026-11-20", false, codes.OK, ""},
		{"2026-11-20", false, codes.AlreadyExists, "in force already, as version 1"},
		{"2026-11-19", false, codes.FailedPrecondition, "issued on 2026-11-19, version 1 in force on 2026-11-20"},
		{"2026-11-20T00:00:00Z", false, codes.FailedPrecondition, "--allow-older"},
		{"2026-11-20T08:00:00Z", false, codes.OK, ""},
		{"2026-11-19", true, codes.OK, ""},
		{"2026-11-20", false, codes.OK, ""},
	} {
		// ECDSA signs each time otherwise; the same file is the same file.
		file := sign(t, signed.References, values(step.issued), by)
		if step.code == codes.AlreadyExists {
			answer, err := c.ShowReferences(t.Context(), &fleetv1.ShowReferencesRequest{})
			check(t, err)
			file = answer.GetSignedFile()
		}
		_, err := imports(t, c, &fleetv1.ImportReferencesRequest{SignedFile: file, AllowOlder: step.allow})
		if status.Code(err) != step.code || err != nil && !strings.Contains(err.Error(), step.says) {
			t.Errorf("issued %s, allowed %v: %v", step.issued, step.allow, err)
		}
	}
	if n := len(h.verifier.references); n != 4 {
		t.Errorf("adopted %d times, want 4", n)
	}
}

func TestNonsenseInAFileChangesNothing(t *testing.T) {
	h := build(t)
	h.serve(t)
	c := fleetv1.NewReferenceServiceClient(h.operator(t, "anna"))
	by := h.signer(t, "it")
	good := sign(t, signed.References, values("2026-11-20"), by)
	for name, tc := range map[string]struct {
		file []byte
		says string
	}{
		"nothing":                    {nil, "signed file is empty"},
		"no signature":               {[]byte(values("2026-11-20")), "carries no signature"},
		"changed":                    {[]byte(strings.Replace(string(good), "house", "horse", 1)), "changed after it was signed"},
		"cut off":                    {good[:len(good)-1], "cut off"},
		"of another collector":       {sign(t, signed.References, values("2026-11-20"), other(t)), "another authority"},
		"issued in the future":       {sign(t, signed.References, values("2099-01-01"), by), "in the future"},
		"too long":                   {make([]byte, signed.MaxFile+1), "at most"},
		"a catalogue without number": {sign(t, signed.VPNCatalogue, `{"format": 1, "clients": []}`, by), "no format or no sequence"},
		"a catalogue that is none":   {sign(t, signed.VPNCatalogue, "[", by), "no JSON"},
		"too long a catalogue":       {sign(t, signed.VPNCatalogue, `{"format": 1, "sequence": 1, "x": "`+strings.Repeat("x", posture.MaxBytesBytes)+`"}`, by), "agents take at most"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := imports(t, c, &fleetv1.ImportReferencesRequest{SignedFile: tc.file}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v, want %q", err, tc.says)
			}
		})
	}
	last, err := imports(t, c, &fleetv1.ImportReferencesRequest{
		SignedFile: sign(t, signed.References, strings.Replace(values("2026-11-20"), "ends: 2030-01-01", "ends: soon", 1), by),
	})
	check(t, err)
	if f := last.GetErrors(); len(f) != 1 || f[0].GetLine() != 3 || last.GetImported() != nil {
		t.Errorf("%v", last)
	}
	list, err := c.ListReferences(t.Context(), &fleetv1.ListReferencesRequest{})
	check(t, err)
	if len(list.GetVersions()) != 0 || len(h.verifier.references) != 0 || len(h.catalogues) != 0 {
		t.Errorf("something was changed: %v", list.GetVersions())
	}
}

// other is a signer of another collector.
func other(t testing.TB) tls.Certificate {
	t.Helper()
	keys, err := authority.Create(filepath.Join(t.TempDir(), "pki"), authority.Options{DNSNames: []string{"elsewhere"}})
	check(t, err)
	return (&house{keys: keys}).signer(t, "it")
}

func TestACatalogueGoesToTheAgents(t *testing.T) {
	h := build(t)
	h.serve(t)
	c := fleetv1.NewReferenceServiceClient(h.operator(t, "anna"))
	by := h.signer(t, "it")
	second := sign(t, signed.VPNCatalogue, `{"format": 1, "sequence": 2, "clients": []}`, by)
	last, err := imports(t, c, &fleetv1.ImportReferencesRequest{SignedFile: second})
	check(t, err)
	if last.GetImported().GetKind() != signed.VPNCatalogue || len(h.catalogues) != 1 || string(h.catalogues[0]) != string(second) {
		t.Errorf("%v", last)
	}
	for _, content := range []string{`{"format": 1, "sequence": 1}`, `{"format": 1, "sequence": 2}`} {
		for _, allow := range []bool{false, true} { // agents ask nobody
			_, err = imports(t, c, &fleetv1.ImportReferencesRequest{SignedFile: sign(t, signed.VPNCatalogue, content, by), AllowOlder: allow})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "agents never go back") {
				t.Errorf("%s, allowed %v: %v", content, allow, err)
			}
		}
	}
	if len(h.verifier.references) != 0 {
		t.Error("a catalogue became reference values")
	}
	answer, err := c.ShowReferences(t.Context(), &fleetv1.ShowReferencesRequest{Kind: signed.VPNCatalogue})
	check(t, err)
	if answer.GetVersion().GetVersion() != 1 || answer.GetInForce() != nil {
		t.Errorf("%v", answer)
	}
	// The signer's certificate ends before the catalogue does.
	anew := sign(t, signed.VPNCatalogue, `{"format": 1, "sequence": 2, "clients": []}`, h.signer(t, "next"))
	if _, err := imports(t, c, &fleetv1.ImportReferencesRequest{SignedFile: anew}); err != nil || string(h.catalogues[1]) != string(anew) {
		t.Errorf("signed anew: %v", err)
	}
	if _, err := c.ShowReferences(t.Context(), &fleetv1.ShowReferencesRequest{Kind: "policy"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
}
