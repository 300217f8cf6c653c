package posture_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const collectionList = "../../docs/collection.md"

// evidenceFields names every field that evidence, and what a TPM vouches for,
// can hold, as "Message.field", through all messages of this package in them.
func evidenceFields() map[string]bool {
	root := (&posturev1.Evidence{}).ProtoReflect().Descriptor()
	fields := map[string]bool{}
	seen := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] || m.ParentFile().Package() != root.ParentFile().Package() {
			return
		}
		seen[m.FullName()] = true
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			fields[strings.TrimPrefix(string(f.FullName()), string(m.ParentFile().Package())+".")] = true
			if f.Message() != nil {
				walk(f.Message())
			}
		}
	}
	walk(root)
	walk((&posturev1.Attestation{}).ProtoReflect().Descriptor())
	return fields
}

// listedFields reads the rows of the tables: "| `Message.field` | what | why | kept |".
func listedFields(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(collectionList)
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([^`]+)` \\|([^|]*)\\|([^|]*)\\|([^|]*)\\|$")
	listed := map[string][]string{}
	for _, match := range row.FindAllStringSubmatch(string(page), -1) {
		if listed[match[1]] != nil {
			t.Errorf("%s names %s twice", collectionList, match[1])
		}
		listed[match[1]] = match[2:]
	}
	return listed
}

func TestEveryFieldOfEvidenceIsOnTheCollectionList(t *testing.T) {
	fields, listed := evidenceFields(), listedFields(t)
	if len(fields) < 100 {
		t.Fatalf("only %d fields of evidence were found", len(fields))
	}
	for field := range fields {
		if listed[field] == nil {
			t.Errorf("%s does not name %s: nothing may be collected that is not on the list", collectionList, field)
		}
	}
	for field, columns := range listed {
		if !fields[field] {
			t.Errorf("%s names %s, which evidence does not have", collectionList, field)
		}
		for i, column := range []string{"what it is", "why it is needed", "how long it is kept"} {
			if strings.TrimSpace(columns[i]) == "" {
				t.Errorf("%s does not say of %s %s", collectionList, field, column)
			}
		}
		if kept := strings.TrimSpace(columns[2]); kept != "newest" && kept != "with findings" {
			t.Errorf("%s keeps %s %q, which the page does not explain", collectionList, field, kept)
		}
	}
}
