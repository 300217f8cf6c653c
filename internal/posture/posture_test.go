package posture

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func read(at time.Time) *posturev1.Reading {
	return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, ObservedAt: timestamppb.New(at), Duration: durationpb.New(time.Duration(at.Nanosecond()))}
}

func sample(at time.Time) *posturev1.Evidence {
	return &posturev1.Evidence{
		Platform: &posturev1.Platform{Reading: read(at), KernelRelease: "6.12", BootedAt: timestamppb.New(time.Unix(1000, 0))},
		Volumes: &posturev1.Volumes{Reading: read(at), Volumes: []*posturev1.Volume{
			{Reading: read(at), Paths: []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{{Type: posturev1.LayerType_LAYER_TYPE_LUKS2}}}}},
		}},
		Patch: &posturev1.Patch{Reading: read(at), KernelReading: read(at), Pending: []*posturev1.PendingUpdate{{Package: "openssl", FirstSeenAt: timestamppb.New(time.Unix(2000, 0))}}},
	}
}

func TestDigestIgnoresOnlyWhenItWasRead(t *testing.T) {
	first, err := Digest(sample(time.Unix(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	later := sample(time.Unix(9, 9))
	untouched := proto.CloneOf(later)
	second, err := Digest(later)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("an unchanged notebook changed its digest")
	}
	if !proto.Equal(later, untouched) {
		t.Error("making a digest changed the evidence")
	}
	for name, change := range map[string]func(*posturev1.Evidence){
		"a reading's state": func(ev *posturev1.Evidence) {
			ev.Patch.KernelReading.State = posturev1.ReadingState_READING_STATE_FAILED
		},
		"a nested reading":       func(ev *posturev1.Evidence) { ev.Volumes.Volumes[0].Reading.Reason = "torn header" },
		"a layer":                func(ev *posturev1.Evidence) { ev.Volumes.Volumes[0].Paths[0].Layers[0].Cipher = "cipher_null-ecb" },
		"a time that is a fact":  func(ev *posturev1.Evidence) { ev.Patch.Pending[0].FirstSeenAt = timestamppb.New(time.Unix(2001, 0)) },
		"a section that is gone": func(ev *posturev1.Evidence) { ev.Volumes = nil },
	} {
		ev := sample(time.Unix(1, 1))
		change(ev)
		got, err := Digest(ev)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(got, first) {
			t.Errorf("%s changed, the digest did not", name)
		}
	}
}

func TestDiffAndMergeAreInverse(t *testing.T) {
	before, now := sample(time.Unix(1, 1)), sample(time.Unix(5, 5))
	if d := Diff(before, now); d != nil {
		t.Fatalf("nothing changed but %v", d)
	}
	now.Volumes.Volumes[0].Paths[0].Layers[0].Type = posturev1.LayerType_LAYER_TYPE_DISK
	delta := Diff(before, now)
	if delta.GetVolumes() == nil || delta.GetPlatform() != nil || delta.GetPatch() != nil {
		t.Fatalf("delta is %v", delta)
	}
	merged, err := Digest(Merge(before, delta))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := Digest(now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(merged, whole) {
		t.Error("base and delta make other evidence than was read")
	}
}

func TestSectionsOfANewerAgentAreMergedToo(t *testing.T) {
	section := func(number protowire.Number, says string) []byte {
		return protowire.AppendString(protowire.AppendTag(nil, number, protowire.BytesType), says)
	}
	base, delta := &posturev1.Evidence{}, &posturev1.Evidence{}
	base.ProtoReflect().SetUnknown(append(section(98, "stays"), section(99, "is replaced")...))
	delta.ProtoReflect().SetUnknown(section(99, "is new"))
	want := append(section(98, "stays"), section(99, "is new")...)
	if got := Merge(base, delta).ProtoReflect().GetUnknown(); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSectionWithoutReadingCountsAsFailed(t *testing.T) {
	ev := &posturev1.Evidence{Patch: &posturev1.Patch{}}
	for _, section := range append(Sections(), "nonsense") {
		if s := ReadingOf(ev, section).GetState(); s != posturev1.ReadingState_READING_STATE_FAILED {
			t.Errorf("%s: %s", section, s)
		}
	}
	if got := ReadingOf(sample(time.Unix(1, 1)), "patch").GetState(); got != posturev1.ReadingState_READING_STATE_OBSERVED {
		t.Errorf("patch was read, but is %s", got)
	}
}

// Digest looks only into messages that have a Reading themselves: one that has
// it deeper down would keep its times.
func TestEveryMessageAboveAReadingHasOneItself(t *testing.T) {
	reading := (&posturev1.Reading{}).ProtoReflect().Descriptor()
	evidence := (&posturev1.Evidence{}).ProtoReflect().Descriptor()
	var holds func(protoreflect.MessageDescriptor) bool
	holds = func(m protoreflect.MessageDescriptor) bool {
		found := false
		for i := range m.Fields().Len() {
			sub := m.Fields().Get(i).Message()
			found = found || sub == reading || sub != nil && holds(sub)
		}
		if found && m != evidence && m.Fields().ByName("reading") == nil {
			t.Errorf("%s holds readings but has none itself", m.FullName())
		}
		return found
	}
	if !holds(evidence) {
		t.Fatal("no reading in evidence: this test looks at the wrong thing")
	}
}

func TestLimitsNameTheFieldThatIsTooMuch(t *testing.T) {
	long := strings.Repeat("x", MaxStringBytes+1)
	for says, m := range map[string]proto.Message{
		"Evidence.platform.edition":                               &posturev1.Evidence{Platform: &posturev1.Platform{Edition: long}},
		"Evidence.patch.pending[1].package":                       &posturev1.Evidence{Patch: &posturev1.Patch{Pending: []*posturev1.PendingUpdate{{}, {Package: long}}}},
		"Evidence.patch.pending: 4097 entries":                    &posturev1.Evidence{Patch: &posturev1.Patch{Pending: make([]*posturev1.PendingUpdate, MaxListLength+1)}},
		"Hello.csr: 65537 bytes":                                  &agentv1.Hello{Csr: make([]byte, MaxBytesBytes+1)},
		"Quote.event_log: 983041 bytes":                           &agentv1.Quote{EventLog: make([]byte, MaxEventLogBytes+1)},
		"Proof.quote: 65537 bytes":                                &agentv1.Proof{Quote: make([]byte, MaxBytesBytes+1)},
		"message of":                                              &posturev1.Evidence{Platform: &posturev1.Platform{Edition: strings.Repeat("x", MaxMessageBytes)}},
		"Evidence.volumes.volumes[0].paths[0].layers[0].kdfs[0]:": &posturev1.Evidence{Volumes: &posturev1.Volumes{Volumes: []*posturev1.Volume{{Paths: []*posturev1.StoragePath{{Layers: []*posturev1.StorageLayer{{Kdfs: []string{long}}}}}}}}},
	} {
		if err := CheckLimits(m); err == nil || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("got %v, want an error that begins with %q", err, says)
		}
	}
	if err := CheckLimits(sample(time.Unix(1, 1))); err != nil {
		t.Errorf("real evidence is refused: %v", err)
	}
	if err := CheckLimits(&agentv1.Quote{EventLog: make([]byte, MaxEventLogBytes)}); err != nil {
		t.Errorf("the longest event log is refused: %v", err)
	}
}

// CheckLimits trusts small messages because none can be nested without end.
func TestNoMessageContainsItself(t *testing.T) {
	var look func(m protoreflect.MessageDescriptor, above []protoreflect.FullName)
	look = func(m protoreflect.MessageDescriptor, above []protoreflect.FullName) {
		if slices.Contains(above, m.FullName()) || len(above) > MaxDepth {
			t.Fatalf("%s is nested without end: %v", m.FullName(), above)
		}
		for i := range m.Fields().Len() {
			if sub := m.Fields().Get(i).Message(); sub != nil {
				look(sub, append(slices.Clone(above), m.FullName()))
			}
		}
	}
	for _, file := range []protoreflect.FileDescriptor{
		posturev1.File_pfoertner_posture_v1_evidence_proto, agentv1.File_pfoertner_agent_v1_session_proto, agentv1.File_pfoertner_agent_v1_enrolment_proto,
		agentv1.File_pfoertner_agent_v1_tunnel_proto, posturev1.File_pfoertner_posture_v1_attestation_proto, fleetv1.File_pfoertner_fleet_v1_orders_proto,
		gatev1.File_pfoertner_gate_v1_gate_proto, fleetv1.File_pfoertner_fleet_v1_fleet_proto,
	} {
		for i := range file.Messages().Len() {
			look(file.Messages().Get(i), nil)
		}
	}
}

func TestEvidenceOfANewerAgentIsRecognised(t *testing.T) {
	ev := sample(time.Unix(1, 1))
	if FromNewer(ev) {
		t.Error("our own evidence seems to be a newer agent's")
	}
	newer := protowire.AppendString(protowire.AppendTag(nil, 99, protowire.BytesType), "what we do not know")
	ev.Volumes.Volumes[0].Paths[0].Layers[0].ProtoReflect().SetUnknown(newer)
	if !FromNewer(ev) {
		t.Error("a field that we do not know was not seen")
	}
}

func FuzzEvidence(f *testing.F) {
	b, err := proto.Marshal(sample(time.Unix(1, 1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		ev := &posturev1.Evidence{}
		if proto.Unmarshal(b, ev) != nil || CheckLimits(ev) != nil {
			return
		}
		a, err := Digest(ev)
		if err != nil {
			t.Fatalf("evidence within limits has no digest: %v", err)
		}
		again, err := Digest(Merge(ev, ev))
		if err != nil || !bytes.Equal(a, again) {
			t.Fatalf("merging evidence with itself changed it: %v", err)
		}
		for _, s := range Sections() {
			ReadingOf(ev, s)
		}
	})
}

func BenchmarkDigest(b *testing.B) {
	ev := sample(time.Unix(1, 1))
	for b.Loop() {
		if _, err := Digest(ev); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckLimits(b *testing.B) {
	ev := sample(time.Unix(1, 1))
	for b.Loop() {
		if err := CheckLimits(ev); err != nil {
			b.Fatal(err)
		}
	}
}
