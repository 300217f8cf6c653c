//go:build linux

package debian_test

import "google.golang.org/protobuf/reflect/protoreflect"

// timeless takes from evidence when, and how fast, it was read.
func timeless(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Name() == "observed_at" || f.Name() == "duration":
			m.Clear(f)
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				timeless(v.List().Get(i).Message())
			}
		default:
			timeless(v.Message())
		}
		return true
	})
}
