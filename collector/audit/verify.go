package audit

import (
	"bytes"
	"fmt"
)

// FaultKind is what is wrong with a place in the chain.
type FaultKind string

// What can be wrong.
const (
	// Missing: a record that was there is gone.
	Missing FaultKind = "missing"
	// Changed: a record is not the one that was written.
	Changed FaultKind = "changed"
	// Reordered: a record stands in another's place.
	Reordered FaultKind = "reordered"
)

// Fault is one finding about the chain.
type Fault struct {
	// Sequence is the place concerned; the first one of several missing. Zero
	// when the fault concerns no place that is known.
	Sequence uint64
	Kind     FaultKind
	// Message says it in words.
	Message string
}

// MaxFaults is how many faults a Verifier lists; it counts the rest.
const MaxFaults = 100

// displacement is how far around its place a record's true place is looked for.
const displacement = 64

// Verifier checks a chain record by record, from the first on, in constant
// memory. Give it every record with Next, then ask Finish.
type Verifier struct {
	last    Head
	broken  bool // the last record is known not to be the one written
	checked uint64
	noted   [][]byte
	faults  []Fault
	unnamed uint64
}

// NewVerifier returns a Verifier that stands at Genesis.
func NewVerifier() *Verifier { return &Verifier{last: Genesis()} }

// Note demands that the chain has a record with this hash: a head that was
// noted outside the database earlier.
func (v *Verifier) Note(hash []byte) {
	if !bytes.Equal(hash, Genesis().Hash) {
		v.noted = append(v.noted, bytes.Clone(hash))
	}
}

// Checked is how many records were given so far.
func (v *Verifier) Checked() uint64 { return v.checked }

// Sequence is the place of the record given last; 0 at the beginning.
func (v *Verifier) Sequence() uint64 { return v.last.Sequence }

// Next checks the next record as it was read.
func (v *Verifier) Next(s Sealed) {
	v.checked++
	expected := v.last.Sequence + 1
	if s.Sequence < expected {
		v.fault(s.Sequence, Reordered, "record %d stands behind record %d", s.Sequence, v.last.Sequence)
		return
	}
	if s.Sequence > expected {
		v.missing(expected, s.Sequence-1)
	}

	sound := bytes.Equal(s.sum(s.Sequence), s.Hash)
	switch {
	case !sound:
		if from, ok := s.displaced(); ok {
			v.fault(s.Sequence, Reordered, "record %d stands in the place of record %d", from, s.Sequence)
		} else {
			v.fault(s.Sequence, Changed, "record %d does not match its hash", s.Sequence)
		}
	case s.Sequence == 1 && !bytes.Equal(s.Previous, v.last.Hash):
		v.fault(1, Changed, "record 1 does not follow the beginning of the log")
	case s.Sequence == expected && !v.broken && !bytes.Equal(s.Previous, v.last.Hash):
		v.fault(v.last.Sequence, Changed, "record %d is not the one that record %d was written after", v.last.Sequence, s.Sequence)
	}
	for i, hash := range v.noted {
		if sound && bytes.Equal(hash, s.Hash) {
			v.noted = append(v.noted[:i], v.noted[i+1:]...)
			break
		}
	}
	v.last, v.broken = s.Head(), !sound
}

// Finish ends the check against the head that was kept apart from the records
// and returns all faults; none means that the chain is whole. A Verifier is
// used up by it.
func (v *Verifier) Finish(head Head) []Fault {
	switch {
	case v.last.Sequence < head.Sequence:
		v.missing(v.last.Sequence+1, head.Sequence)
	case v.last.Sequence > head.Sequence:
		v.fault(head.Sequence+1, Changed, "records go on to %d, behind the head at %d", v.last.Sequence, head.Sequence)
	case !bytes.Equal(v.last.Hash, head.Hash):
		v.fault(head.Sequence, Changed, "record %d is not the one that the head names", head.Sequence)
	}
	for _, hash := range v.noted {
		v.fault(0, Missing, "no sound record has the noted hash %x", hash)
	}
	if v.unnamed > 0 {
		v.faults = append(v.faults, Fault{Kind: Changed, Message: fmt.Sprintf("%d more faults are not listed", v.unnamed)})
	}
	return v.faults
}

func (v *Verifier) missing(from, to uint64) {
	if from == to {
		v.fault(from, Missing, "record %d is missing", from)
		return
	}
	v.fault(from, Missing, "records %d to %d are missing", from, to)
}

func (v *Verifier) fault(sequence uint64, kind FaultKind, format string, args ...any) {
	if len(v.faults) == MaxFaults {
		v.unnamed++
		return
	}
	v.faults = append(v.faults, Fault{Sequence: sequence, Kind: kind, Message: fmt.Sprintf(format, args...)})
}

// displaced finds the place near its own at which a record's hash is right.
func (s Sealed) displaced() (uint64, bool) {
	first := max(s.Sequence, displacement+1) - displacement
	for at := first; at <= s.Sequence+displacement; at++ {
		if bytes.Equal(s.sum(at), s.Hash) {
			return at, true
		}
	}
	return 0, false
}
