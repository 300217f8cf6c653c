package posture

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of one message on arrival. They are far above what a real notebook
// sends and far below what could hurt the collector.
const (
	// MaxMessageBytes is the largest message of an agent; gRPC servers and
	// clients are set to it.
	MaxMessageBytes = 1 << 20
	// MaxStringBytes is the longest string field.
	MaxStringBytes = 4 << 10
	// MaxBytesBytes is the longest bytes field but an event log.
	MaxBytesBytes = 64 << 10
	// MaxEventLogBytes is the longest TPM event log (agent.v1 Quote, Proof):
	// what is left of a message for all else in it is plenty.
	MaxEventLogBytes = 960 << 10
	// MaxListLength is the longest repeated field.
	MaxListLength = 4096
	// MaxDepth is the deepest nesting of messages.
	MaxDepth = 16
	// minLimit is the least that any of these limits takes to be exceeded: a
	// smaller message needs no look inside. (An entry of a list takes two bytes;
	// no message of ours contains itself, so nesting is bounded by the protocol.)
	minLimit = MaxStringBytes
	// MaxListedUpdates is how many pending updates are listed one by one.
	MaxListedUpdates = 1000
)

// CheckLimits returns an error that names the first field of a message that is
// too long, has too many entries or is nested too deep. That text is UTF-8 was
// checked when the message was unmarshalled.
func CheckLimits(m proto.Message) error {
	n := proto.Size(m)
	if n > MaxMessageBytes {
		return fmt.Errorf("message of %d bytes: at most %d are taken", n, MaxMessageBytes)
	}
	if n <= minLimit {
		return nil
	}
	if e := walk(m.ProtoReflect(), 0); e != nil {
		return e.under(string(m.ProtoReflect().Descriptor().Name()))
	}
	return nil
}

// excess is one field beyond its limit. Its path grows on the way up, so that
// messages within the limits cost no text.
type excess struct{ path, what string }

func (e *excess) Error() string { return e.path + ": " + e.what }

func (e *excess) under(name string) *excess {
	e.path = name + e.path
	return e
}

func tooMuch(format string, args ...any) *excess { return &excess{what: fmt.Sprintf(format, args...)} }

func walk(m protoreflect.Message, depth int) (found *excess) {
	if depth > MaxDepth {
		return tooMuch("nested deeper than %d", MaxDepth)
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			found = walkMap(f, v.Map(), depth)
		case f.IsList():
			found = walkList(f, v.List(), depth)
		default:
			found = walkValue(f, v, depth)
		}
		if found != nil {
			found.under("." + string(f.Name()))
		}
		return found == nil
	})
	return found
}

func walkList(f protoreflect.FieldDescriptor, l protoreflect.List, depth int) *excess {
	if l.Len() > MaxListLength {
		return tooMuch("%d entries, at most %d are taken", l.Len(), MaxListLength)
	}
	for i := range l.Len() {
		if e := walkValue(f, l.Get(i), depth); e != nil {
			return e.under(fmt.Sprintf("[%d]", i))
		}
	}
	return nil
}

func walkMap(f protoreflect.FieldDescriptor, m protoreflect.Map, depth int) (found *excess) {
	if m.Len() > MaxListLength {
		return tooMuch("%d entries, at most %d are taken", m.Len(), MaxListLength)
	}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if found = walkValue(f.MapKey(), k.Value(), depth); found == nil {
			found = walkValue(f.MapValue(), v, depth)
		}
		return found == nil
	})
	return found
}

func walkValue(f protoreflect.FieldDescriptor, v protoreflect.Value, depth int) *excess {
	switch f.Kind() {
	case protoreflect.StringKind:
		if n := len(v.String()); n > MaxStringBytes {
			return tooMuch("%d bytes of text, at most %d are taken", n, MaxStringBytes)
		}
	case protoreflect.BytesKind:
		if n, most := len(v.Bytes()), maxBytes(f); n > most {
			return tooMuch("%d bytes, at most %d are taken", n, most)
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return walk(v.Message(), depth+1)
	}
	return nil
}

// maxBytes is the limit of a bytes field.
func maxBytes(f protoreflect.FieldDescriptor) int {
	switch f.FullName() {
	case "pfoertner.agent.v1.Proof.event_log", "pfoertner.agent.v1.Quote.event_log":
		return MaxEventLogBytes
	}
	return MaxBytesBytes
}
