// Package posture holds what agent and collector both have to know of
// Evidence: which sections it has, how its digest is made, how it is sent in
// parts and put together again, and how large it may be.
//
// Rules. The digest covers what was read, not when or how fast: an unchanged
// notebook keeps its digest. Sections are sent whole; a section that is absent
// from a delta is unchanged.
package posture

import (
	"bytes"
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Capability is what this build understands of agent.v1. It rises by one with
// every change that the other side must know about:
//
//	1: enrolment with a software key, full evidence, delta, heartbeat, renewal.
//	2: VpnCatalogue. The collector sends one only to agents that say 2 or more;
//	   the rest of what is new are fields that an older side ignores.
//	3: keys in the TPM, quotes, PresenceCheck, VPN keys, tunnel proofs. The
//	   collector sends the new kinds of messages only to agents that say 3 or
//	   more.
const Capability = 3

// Sections lists the names of Evidence's sections in the order of their field
// numbers: "platform", "volumes" and so on.
func Sections() []string {
	fields := (&posturev1.Evidence{}).ProtoReflect().Descriptor().Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = string(fields.Get(i).Name())
	}
	return names
}

// ReadingOf returns the reading of a section. For a section that is absent or
// has no reading it returns a FAILED one that says so, for an unknown name
// too: what was not read is never fine.
func ReadingOf(ev *posturev1.Evidence, section string) *posturev1.Reading {
	m := ev.ProtoReflect()
	field := m.Descriptor().Fields().ByName(protoreflect.Name(section))
	if field == nil {
		return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_FAILED, Reason: "no such section"}
	}
	if !m.Has(field) {
		return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_FAILED, Reason: "not reported"}
	}
	s, ok := m.Get(field).Message().Interface().(interface{ GetReading() *posturev1.Reading })
	if !ok || s.GetReading().GetState() == posturev1.ReadingState_READING_STATE_UNSPECIFIED {
		return &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_FAILED, Reason: "reported without a reading"}
	}
	return s.GetReading()
}

// Digest is the SHA-256 of evidence, without the times at which it was read.
// It returns an error only for evidence that cannot be marshalled (invalid
// UTF-8).
func Digest(ev *posturev1.Evidence) ([]byte, error) {
	b, err := marshalStable(ev.ProtoReflect())
	if err != nil {
		return nil, fmt.Errorf("marshalling evidence: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// Diff returns the sections of now that differ from before, whole, or nil when
// none does. Times of reading do not count as a difference.
func Diff(before, now *posturev1.Evidence) *posturev1.Evidence {
	delta := &posturev1.Evidence{}
	changed := false
	from, to, out := before.ProtoReflect(), now.ProtoReflect(), delta.ProtoReflect()
	fields := to.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !to.Has(f) || from.Has(f) && sameSection(from.Get(f).Message(), to.Get(f).Message()) {
			continue
		}
		out.Set(f, to.Get(f))
		changed = true
	}
	if !changed {
		return nil
	}
	return delta
}

// Merge returns base with the sections of delta in place of its own. It shares
// sections with both and changes neither.
func Merge(base, delta *posturev1.Evidence) *posturev1.Evidence {
	merged := &posturev1.Evidence{}
	out := merged.ProtoReflect()
	for _, ev := range []*posturev1.Evidence{base, delta} {
		ev.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			out.Set(f, v)
			return true
		})
	}
	out.SetUnknown(mergeUnknown(base.ProtoReflect().GetUnknown(), delta.ProtoReflect().GetUnknown()))
	return merged
}

// mergeUnknown does the same for sections that only a newer agent knows.
func mergeUnknown(base, delta protoreflect.RawFields) protoreflect.RawFields {
	var merged protoreflect.RawFields
	replaced := map[protowire.Number]bool{}
	eachField(delta, func(number protowire.Number, _ []byte) { replaced[number] = true })
	eachField(base, func(number protowire.Number, field []byte) {
		if !replaced[number] {
			merged = append(merged, field...)
		}
	})
	return append(merged, delta...)
}

// eachField calls f for every field of a well-formed message.
func eachField(wire []byte, f func(number protowire.Number, field []byte)) {
	for len(wire) > 0 {
		number, kind, tag := protowire.ConsumeTag(wire)
		size := tag + protowire.ConsumeFieldValue(number, kind, wire[tag:])
		f(number, wire[:size])
		wire = wire[size:]
	}
}

func sameSection(a, b protoreflect.Message) bool {
	p, errA := marshalStable(a)
	q, errB := marshalStable(b)
	return errA == nil && errB == nil && bytes.Equal(p, q)
}

// marshalStable marshals m without the times of its readings.
func marshalStable(m protoreflect.Message) ([]byte, error) {
	wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
	if err != nil {
		return nil, err
	}
	return appendStable(make([]byte, 0, len(wire)), wire, m.Descriptor()), nil
}

// appendStable appends a marshalled message without the times of its readings.
// It works on the wire format: a digest is made for every report, and walking
// messages by reflection costs several times as much. wire was marshalled just
// now, so it is well formed.
func appendStable(dst, wire []byte, of protoreflect.MessageDescriptor) []byte {
	reading := of.FullName() == readingName
	for len(wire) > 0 {
		number, kind, tag := protowire.ConsumeTag(wire)
		field := wire[:tag+protowire.ConsumeFieldValue(number, kind, wire[tag:])]
		wire = wire[len(field):]
		if reading && (number == observedAtField || number == durationField) {
			continue
		}
		f := of.Fields().ByNumber(number)
		if kind != protowire.BytesType || f == nil || f.Message() == nil || !holdsReadings(f.Message()) {
			dst = append(dst, field...)
			continue
		}
		content, _ := protowire.ConsumeBytes(field[tag:])
		stable := appendStable(make([]byte, 0, len(content)), content, f.Message())
		dst = protowire.AppendBytes(append(dst, field[:tag]...), stable)
	}
	return dst
}

const (
	readingName     = protoreflect.FullName("pfoertner.posture.v1.Reading")
	observedAtField = protowire.Number(4)
	durationField   = protowire.Number(5)
)

// holdsReadings says whether there are times in a message: in a Reading, and in
// messages that have one. A message with a Reading anywhere below it has one
// itself; a test holds the protocol to that.
func holdsReadings(m protoreflect.MessageDescriptor) bool {
	return m.FullName() == readingName || m.Fields().ByName("reading") != nil
}

// FromNewer says whether evidence has fields that this build does not know:
// its digest can't be checked, because the agent that made it knows them.
func FromNewer(ev *posturev1.Evidence) bool { return hasUnknown(ev.ProtoReflect()) }

func hasUnknown(m protoreflect.Message) bool {
	found := len(m.GetUnknown()) > 0
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case found || f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := 0; i < v.List().Len() && !found; i++ {
				found = hasUnknown(v.List().Get(i).Message())
			}
		default:
			found = hasUnknown(v.Message())
		}
		return !found
	})
	return found
}
