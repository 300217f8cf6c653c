// Package audit is the collector's log of what was decided and by whom, as a
// chain: every record carries the hash of the one before it, so that a record
// that was changed, removed or moved is found.
//
// Rules. The package is pure: it makes and checks records and knows nothing of
// where they lie. The store appends a record in the transaction of what it
// records. A chain proves that nothing before its newest hash was touched; who
// can rewrite the whole database can rewrite the whole chain, so note the
// newest hash elsewhere from time to time and verify against it.
//
// Compatibility. The encoding that is hashed is version 1 and never changes. A
// new field means a new version with a new Genesis.
package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// version stands first in everything that is hashed.
const version = "pfoertner audit log, version 1\n"

// Record is one thing that happened. Texts name machines, rules and operators
// by their certificate names, never persons or secrets.
type Record struct {
	// At is when it happened by the collector's clock, to the nanosecond.
	At time.Time
	// Kind is what happened, dotted lower case: "token.created".
	Kind string
	// Actor is the operator, gateway or device that did it; empty for the
	// collector itself.
	Actor string
	// DeviceID and AssetNumber name the notebook concerned; empty when none is.
	DeviceID    string
	AssetNumber string
	// Details holds what else explains the record, by name.
	Details map[string]string
}

// Sealed is a record in its place in the chain.
type Sealed struct {
	// Sequence counts from 1 without a gap.
	Sequence uint64
	Record
	// Previous is the hash of the record before, of Genesis for the first one.
	Previous []byte
	// Hash covers sequence, record and Previous.
	Hash []byte
}

// Head is the end of a chain: the sequence and hash of its newest record.
type Head struct {
	Sequence uint64
	Hash     []byte
}

// Genesis is the head of an empty chain; the first record follows it.
func Genesis() Head {
	sum := sha256.Sum256([]byte(version))
	return Head{Hash: sum[:]}
}

// Seal puts a record behind the head. The record it returns is what has to be
// stored: time in UTC, texts in valid UTF-8 without NUL, so that every database
// gives back what was hashed.
func (h Head) Seal(r Record) Sealed {
	s := Sealed{Sequence: h.Sequence + 1, Record: clean(r), Previous: h.Hash}
	s.Hash = s.sum(s.Sequence)
	return s
}

// Head is the head of the chain that ends with s.
func (s Sealed) Head() Head { return Head{Sequence: s.Sequence, Hash: s.Hash} }

var kinds = regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+$`)

// Validate returns an error for a record that must not enter the log: without a
// time that fits into nanoseconds since 1970, or without a dotted lower case
// kind.
func (r Record) Validate() error {
	if r.At.Year() < 1970 || r.At.Year() > 2261 {
		return errors.New("audit record: time missing or out of range")
	}
	if !kinds.MatchString(r.Kind) {
		return fmt.Errorf("audit record: kind %q is not dotted lower case", r.Kind)
	}
	return nil
}

func clean(r Record) Record {
	r.At = r.At.UTC().Round(0)
	r.Kind, r.Actor = cleanText(r.Kind), cleanText(r.Actor)
	r.DeviceID, r.AssetNumber = cleanText(r.DeviceID), cleanText(r.AssetNumber)
	details := make(map[string]string, len(r.Details))
	for _, k := range slices.Sorted(maps.Keys(r.Details)) {
		details[cleanText(k)] = cleanText(r.Details[k])
	}
	r.Details = details
	return r
}

func cleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// sum is the hash that the record has at a sequence. Every text is preceded by
// its length, so that no two records share an encoding.
func (s Sealed) sum(sequence uint64) []byte {
	h := sha256.New()
	h.Write([]byte(version))
	number(h, sequence)
	text(h, string(s.Previous))
	number(h, uint64(s.At.UnixNano()))
	text(h, s.Kind)
	text(h, s.Actor)
	text(h, s.DeviceID)
	text(h, s.AssetNumber)
	number(h, uint64(len(s.Details)))
	for _, k := range slices.Sorted(maps.Keys(s.Details)) {
		text(h, k)
		text(h, s.Details[k])
	}
	return h.Sum(nil)
}

func number(h hash.Hash, n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	h.Write(b[:])
}

func text(h hash.Hash, s string) {
	number(h, uint64(len(s)))
	h.Write([]byte(s))
}
