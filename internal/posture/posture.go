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

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Capability is what this build understands of agent.v1. It rises by one with
// every change that the other side must know about:
//
//	1: enrolment with a software key, full evidence, delta, heartbeat, renewal.
const Capability = 1

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
	return merged
}

func sameSection(a, b protoreflect.Message) bool {
	p, errA := marshalStable(a)
	q, errB := marshalStable(b)
	return errA == nil && errB == nil && bytes.Equal(p, q)
}

// marshalStable marshals m without the times of its readings.
func marshalStable(m protoreflect.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(withoutTimes(m).Interface())
}

// observed is every message that holds a Reading.
type observed interface {
	GetReading() *posturev1.Reading
}

// withoutTimes returns m with observed_at and duration removed from every
// Reading in it. It copies the messages on the way to a Reading and shares all
// others with m, because most of evidence is lists that hold none: a message
// with a Reading somewhere below it has one itself (a test holds the protocol
// to that), or is the Evidence.
func withoutTimes(m protoreflect.Message) protoreflect.Message {
	if r, ok := m.Interface().(*posturev1.Reading); ok {
		return (&posturev1.Reading{State: r.GetState(), Reason: r.GetReason(), Source: r.GetSource()}).ProtoReflect()
	}
	if !holdsReadings(m) {
		return m
	}
	stable := m.New()
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
			stable.Set(f, v)
		case f.IsList():
			stable.Set(f, listWithoutTimes(stable.NewField(f), v.List()))
		default:
			stable.Set(f, protoreflect.ValueOfMessage(withoutTimes(v.Message())))
		}
		return true
	})
	return stable
}

func listWithoutTimes(into protoreflect.Value, from protoreflect.List) protoreflect.Value {
	if from.Len() == 0 || !holdsReadings(from.Get(0).Message()) {
		return protoreflect.ValueOfList(from)
	}
	for i := range from.Len() {
		into.List().Append(protoreflect.ValueOfMessage(withoutTimes(from.Get(i).Message())))
	}
	return into
}

func holdsReadings(m protoreflect.Message) bool {
	switch m.Interface().(type) {
	case *posturev1.Evidence, observed:
		return true
	}
	return false
}
