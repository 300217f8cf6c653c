// Package bootlogtest makes event logs, and the PCRs they lead to, for tests.
package bootlogtest

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"unicode/utf16"
)

// Event is one entry of a log.
type Event struct {
	PCR, Type uint32
	Digest    []byte
	Data      []byte
}

// Types of events (PFP 1.05, 10.4.1).
const (
	noAction    = 3
	separator   = 4
	variable    = 0x80000001
	application = 0x80000003
	action      = 0x80000007
	authority   = 0x800000e0
)

// Builder makes a log event by event.
type Builder struct {
	Events   []Event
	locality byte
}

// New starts an empty log.
func New() *Builder { return &Builder{} }

// SecureBoot is the log of a notebook that started shim and GRUB with Secure
// Boot on.
func SecureBoot() *Builder {
	b := New()
	b.Text(0, "firmware 1.2.3")
	b.Variable(7, "SecureBoot", []byte{1})
	b.Variable(7, "PK", []byte("platform key"))
	b.Variable(7, "KEK", []byte("key exchange keys"))
	b.Variable(7, "db", []byte("db"))
	b.Variable(7, "dbx", []byte("dbx"))
	b.Text(4, "Calling EFI Application from Boot Option")
	for _, pcr := range []uint32{0, 1, 2, 3, 4, 5, 6, 7} {
		b.Separator(pcr)
	}
	b.Raw(7, authority, VariableData("db", []byte("the key of shim")))
	b.Program("shim")
	b.Raw(7, authority, VariableData("SbatLevel", []byte("sbat,1")))
	b.Program("grub")
	return b
}

// Raw measures data.
func (b *Builder) Raw(pcr, kind uint32, data []byte) *Builder {
	sum := sha256.Sum256(data)
	b.Events = append(b.Events, Event{PCR: pcr, Type: kind, Digest: sum[:], Data: data})
	return b
}

// Variable measures a variable of the Secure Boot configuration.
func (b *Builder) Variable(pcr uint32, name string, content []byte) *Builder {
	return b.Raw(pcr, variable, VariableData(name, content))
}

// Text measures a text.
func (b *Builder) Text(pcr uint32, text string) *Builder { return b.Raw(pcr, action, []byte(text)) }

// Separator measures a separator.
func (b *Builder) Separator(pcr uint32) *Builder { return b.Raw(pcr, separator, make([]byte, 4)) }

// Program measures a boot loader: not its data, but its image.
func (b *Builder) Program(image string) *Builder {
	b.Events = append(b.Events, Event{PCR: 4, Type: application, Digest: Digest(image), Data: []byte{0x11, 0x22}})
	return b
}

// Digest is the digest of an image.
func Digest(image string) []byte {
	sum := sha256.Sum256([]byte(image))
	return sum[:]
}

// Locality says from where the machine was started.
func (b *Builder) Locality(l byte) *Builder {
	b.locality = l
	b.Events = append(b.Events, Event{Type: noAction, Digest: make([]byte, 32), Data: append([]byte("StartupLocality\x00"), l)})
	return b
}

// Edit changes an event of the log.
func (b *Builder) Edit(i int, edit func(*Event)) *Builder {
	edit(&b.Events[i])
	return b
}

// Without leaves an event out.
func (b *Builder) Without(i int) *Builder {
	b.Events = slices.Delete(b.Events, i, i+1)
	return b
}

// PCR is the value that a TPM has after these events.
func (b *Builder) PCR(pcr uint32) []byte {
	value := make([]byte, 32)
	if pcr == 0 {
		value[31] = b.locality
	}
	for _, e := range b.Events {
		if e.PCR == pcr && e.Type != noAction {
			sum := sha256.Sum256(slices.Concat(value, e.Digest))
			value = sum[:]
		}
	}
	return value
}

// Log is the log as the operating system hands it out.
func (b *Builder) Log() []byte {
	le := binary.LittleEndian
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2)
	spec = le.AppendUint32(spec, 1)
	spec = le.AppendUint16(spec, 0x000b)
	spec = le.AppendUint16(spec, 32)
	spec = append(spec, 0)
	log := le.AppendUint32(nil, 0)
	log = le.AppendUint32(log, noAction)
	log = append(log, make([]byte, 20)...)
	log = le.AppendUint32(log, uint32(len(spec)))
	log = append(log, spec...)
	for _, e := range b.Events {
		log = le.AppendUint32(log, e.PCR)
		log = le.AppendUint32(log, e.Type)
		log = le.AppendUint32(log, 1)
		log = le.AppendUint16(log, 0x000b)
		log = append(log, e.Digest...)
		log = le.AppendUint32(log, uint32(len(e.Data)))
		log = append(log, e.Data...)
	}
	return log
}

// VariableData is a variable of UEFI as it is measured.
func VariableData(name string, content []byte) []byte {
	guid := "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c"
	switch name {
	case "db", "dbx":
		guid = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f"
	case "SbatLevel", "MokList":
		guid = "\x50\xab\x5d\x60\x46\xe0\x00\x43\xab\xb6\x3d\xd8\x10\xdd\x8b\x23"
	}
	return variableData(guid, name, content)
}

// ForeignVariable is a variable of that name that is not firmware's.
func ForeignVariable(name string, content []byte) []byte {
	return variableData("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10", name, content)
}

func variableData(guid, name string, content []byte) []byte {
	le := binary.LittleEndian
	units := utf16.Encode([]rune(name))
	data := le.AppendUint64([]byte(guid), uint64(len(units)))
	data = le.AppendUint64(data, uint64(len(content)))
	for _, u := range units {
		data = le.AppendUint16(data, u)
	}
	return append(data, content...)
}
