package bootlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unicode/utf16"
)

// Ternary is a fact that may be open. The zero value is Unknown.
type Ternary int

// The states of a fact.
const (
	Unknown Ternary = iota
	No
	Yes
)

func (t Ternary) String() string { return [...]string{"unknown", "no", "yes"}[t] }

// Facts are what the quoted PCRs confirm of a log.
type Facts struct {
	// Replayed are the PCRs whose quoted value the log leads to.
	Replayed []uint32
	// Separated are those of them with exactly one separator, which firmware
	// measures when it hands over to boot loaders.
	Separated []uint32
	// SecureBoot: firmware starts only what its keys have signed.
	SecureBoot Ternary
	// SetupMode: there is no platform key, so anybody can replace the others.
	SetupMode Ternary
	// PK, KEK, DB and DBX are the SHA-256 of the variables that hold the keys
	// and the lists of what may and what may never start; nil is unknown.
	PK, KEK, DB, DBX []byte
	// Warnings are what firmware measured beside them ("UEFI Debug Mode", "DMA
	// Protection Disabled").
	Warnings []string
	// Authorities are the keys that what was started was signed with, in order.
	Authorities []Authority
	// Loaders are the digests of what was started (Authenticode), in order.
	Loaders [][]byte
}

// Authority is what let a program start.
type Authority struct {
	// Digest is its measurement.
	Digest []byte
	// Variable is where it stood: "db", "MokList", "SbatLevel"; empty when the
	// log does not say so provably.
	Variable string
}

const (
	pcrLoaders    = 4
	pcrSecureBoot = 7
)

// Facts returns what the quoted PCRs (SHA-256 bank, by number) confirm. The
// error wraps ErrLog and says why facts are missing; those that are there hold
// nevertheless.
func (l *Log) Facts(quoted map[uint32][]byte) (*Facts, error) {
	f := &Facts{}
	for pcr, value := range quoted {
		if bytes.Equal(l.Replay([]uint32{pcr})[0], value) {
			f.Replayed = append(f.Replayed, pcr)
		}
	}
	slices.Sort(f.Replayed)
	for _, pcr := range f.Replayed {
		if n := len(separators(l.of(pcr))); n == 1 {
			f.Separated = append(f.Separated, pcr)
		}
	}
	return f, errors.Join(f.readLoaders(l), f.readSecureBoot(l))
}

func (f *Facts) confirmed(pcr uint32) error {
	switch {
	case !slices.Contains(f.Replayed, pcr):
		return fmt.Errorf("%w: PCR %d is another than it leads to", ErrLog, pcr)
	case !slices.Contains(f.Separated, pcr):
		return fmt.Errorf("%w: PCR %d has not exactly one separator", ErrLog, pcr)
	}
	return nil
}

// readLoaders takes every event of PCR 4 for a program, unless it is provably
// something else.
func (f *Facts) readLoaders(l *Log) error {
	if err := f.confirmed(pcrLoaders); err != nil {
		return err
	}
	for _, e := range l.of(pcrLoaders) {
		if !isSeparator(e) && !isText(e) {
			f.Loaders = append(f.Loaders, e.digest[:])
		}
	}
	return nil
}

// readSecureBoot reads PCR 7. Before the separator firmware measures its keys,
// whose data the digests must cover, without exception: a program that runs
// later can extend the PCR, but not get before the separator. After it come
// the authorities.
func (f *Facts) readSecureBoot(l *Log) error {
	if err := f.confirmed(pcrSecureBoot); err != nil {
		return err
	}
	events := l.of(pcrSecureBoot)
	end := separators(events)[0]
	keys, warnings := map[string][]byte{}, []string(nil)
	for _, e := range events[:end] {
		v, isVariable := parseVariable(e.data)
		switch {
		case !e.proven():
			return fmt.Errorf("%w: data in PCR 7 is not what was measured", ErrLog)
		case isVariable && v.isKey():
			if _, twice := keys[v.name]; !twice {
				keys[v.name] = v.data
			} else if v.name == "db" { // an entry of it: a driver was signed with it
				f.Authorities = append(f.Authorities, Authority{Digest: e.digest[:], Variable: v.name})
			} else {
				return fmt.Errorf("%w: PCR 7 has %s twice", ErrLog, v.name)
			}
		case isVariable: // further configuration
		case isText(e):
			warnings = append(warnings, string(bytes.TrimRight(e.data, "\x00")))
		default:
			return fmt.Errorf("%w: unknown event in PCR 7", ErrLog)
		}
	}
	for _, e := range events[end+1:] {
		a := Authority{Digest: e.digest[:]}
		if v, ok := parseVariable(e.data); ok && e.proven() {
			if v.isKey() && v.name != "db" {
				return fmt.Errorf("%w: PCR 7 has %s after the separator", ErrLog, v.name)
			}
			a.Variable = v.name
		}
		f.Authorities = append(f.Authorities, a)
	}
	f.Warnings = warnings
	f.PK, f.KEK, f.DB, f.DBX = sum(keys, "PK"), sum(keys, "KEK"), sum(keys, "db"), sum(keys, "dbx")
	if pk, ok := keys["PK"]; ok {
		f.SetupMode = ternary(len(pk) == 0)
	}
	if on := keys["SecureBoot"]; len(on) == 1 && on[0] <= 1 {
		f.SecureBoot = ternary(on[0] == 1)
	}
	return nil
}

func ternary(yes bool) Ternary {
	if yes {
		return Yes
	}
	return No
}

func sum(keys map[string][]byte, name string) []byte {
	content, ok := keys[name]
	if !ok {
		return nil
	}
	s := sha256.Sum256(content)
	return s[:]
}

// separators returns the places of the separators among the events, by their
// digest alone: the type is not measured.
func separators(events []event) []int {
	var at []int
	for i, e := range events {
		if isSeparator(e) {
			at = append(at, i)
		}
	}
	return at
}

// isSeparator knows EV_SEPARATOR (PFP 1.05, 10.4.1): four bytes, all 00 or all
// FF; 00000001 tells of an error and is none.
func isSeparator(e event) bool {
	return e.digest == sha256.Sum256([]byte{0, 0, 0, 0}) || e.digest == sha256.Sum256([]byte{0xff, 0xff, 0xff, 0xff})
}

// isText knows EV_EFI_ACTION by its data: a short text, which no program is.
func isText(e event) bool {
	text := bytes.TrimRight(e.data, "\x00")
	return len(text) > 0 && len(text) <= 128 && e.proven() &&
		!slices.ContainsFunc(text, func(b byte) bool { return b < ' ' || b > '~' })
}

// variable is UEFI_VARIABLE_DATA (PFP 1.05, 10.2.6).
type variable struct {
	guid [16]byte
	name string
	data []byte
}

const (
	globalGUID   = "\x61\xdf\xe4\x8b\xca\x93\xd2\x11\xaa\x0d\x00\xe0\x98\x03\x2b\x8c" // EFI_GLOBAL_VARIABLE
	securityGUID = "\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6f" // EFI_IMAGE_SECURITY_DATABASE
)

// isKey says whether a variable is one of the configuration of Secure Boot.
func (v variable) isKey() bool {
	switch v.name {
	case "SecureBoot", "PK", "KEK":
		return string(v.guid[:]) == globalGUID
	case "db", "dbx":
		return string(v.guid[:]) == securityGUID
	}
	return false
}

func parseVariable(raw []byte) (variable, bool) {
	r := &reader{rest: raw}
	var v variable
	copy(v.guid[:], r.take(16))
	nameLen, dataLen := r.u64(), r.u64()
	if r.short || nameLen > 256 || dataLen > MaxBytes {
		return variable{}, false
	}
	name := r.take(int(nameLen) * 2)
	v.data = r.take(int(dataLen))
	if r.short || len(r.rest) > 0 {
		return variable{}, false
	}
	units := make([]uint16, nameLen)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(name[2*i:])
	}
	v.name = string(utf16.Decode(units))
	return v, true
}
