package posture

import (
	"fmt"
	"unicode/utf8"

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
	// MaxBytesBytes is the longest bytes field (TPM event log apart).
	MaxBytesBytes = 64 << 10
	// MaxListLength is the longest repeated field.
	MaxListLength = 4096
	// MaxDepth is the deepest nesting of messages.
	MaxDepth = 16
	// MaxListedUpdates is how many pending updates are listed one by one.
	MaxListedUpdates = 1000
)

// CheckLimits walks a message that arrived and returns an error that names the
// first field that is too long, too many, too deep or not UTF-8.
func CheckLimits(m proto.Message) error {
	if n := proto.Size(m); n > MaxMessageBytes {
		return fmt.Errorf("message of %d bytes: at most %d are taken", n, MaxMessageBytes)
	}
	return checkLimits(m.ProtoReflect(), string(m.ProtoReflect().Descriptor().Name()), 0)
}

func checkLimits(m protoreflect.Message, path string, depth int) (err error) {
	if depth > MaxDepth {
		return fmt.Errorf("%s: nested deeper than %d", path, MaxDepth)
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := path + "." + string(f.Name())
		switch {
		case f.IsMap():
			err = checkMap(f, v.Map(), at, depth)
		case f.IsList():
			l := v.List()
			if l.Len() > MaxListLength {
				err = fmt.Errorf("%s: %d entries, at most %d are taken", at, l.Len(), MaxListLength)
				return false
			}
			for i := 0; i < l.Len() && err == nil; i++ {
				err = checkValue(f, l.Get(i), fmt.Sprintf("%s[%d]", at, i), depth)
			}
		default:
			err = checkValue(f, v, at, depth)
		}
		return err == nil
	})
	return err
}

func checkMap(f protoreflect.FieldDescriptor, m protoreflect.Map, at string, depth int) (err error) {
	if m.Len() > MaxListLength {
		return fmt.Errorf("%s: %d entries, at most %d are taken", at, m.Len(), MaxListLength)
	}
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if err = checkValue(f.MapKey(), k.Value(), at, depth); err == nil {
			err = checkValue(f.MapValue(), v, at, depth)
		}
		return err == nil
	})
	return err
}

func checkValue(f protoreflect.FieldDescriptor, v protoreflect.Value, at string, depth int) error {
	switch f.Kind() {
	case protoreflect.StringKind:
		s := v.String()
		if len(s) > MaxStringBytes {
			return fmt.Errorf("%s: %d bytes of text, at most %d are taken", at, len(s), MaxStringBytes)
		}
		if !utf8.ValidString(s) {
			return fmt.Errorf("%s: not UTF-8", at)
		}
	case protoreflect.BytesKind:
		if n := len(v.Bytes()); n > MaxBytesBytes {
			return fmt.Errorf("%s: %d bytes, at most %d are taken", at, n, MaxBytesBytes)
		}
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return checkLimits(v.Message(), at, depth+1)
	}
	return nil
}
