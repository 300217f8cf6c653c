// Package bootlog reads what firmware and boot loaders say they measured (the
// event log of the TCG PC Client Platform Firmware Profile, PFP 1.05, 10) and
// takes from it only what quoted PCRs confirm.
//
// Rules. A log is written by the machine that is judged: it is at most 1 MB,
// reading it cannot panic, and nothing is believed that a digest does not
// cover. Digests cover neither the type of an event nor, often, its data; so
// types are ignored, and data counts only if it hashes to its digest. What is
// left open is unknown, which is the zero value of all facts.
package bootlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrLog is the error for a log that is missing, malformed, too long, without
// SHA-256, or contradicts the quoted PCRs.
var ErrLog = errors.New("event log is not usable")

const (
	// MaxBytes is how long a log may be.
	MaxBytes  = 1 << 20
	maxEvents = 10_000
	maxBanks  = 16

	noAction  = 3 // EV_NO_ACTION: not measured
	algSHA256 = 0x000b
)

// event is one measured event (TCG_PCR_EVENT2), of the SHA-256 bank.
type event struct {
	pcr    uint32
	digest [sha256.Size]byte
	data   []byte
}

// proven says whether the digest covers the data.
func (e event) proven() bool { return sha256.Sum256(e.data) == e.digest }

// Log is an event log, of which nothing is confirmed yet. Nil is an empty one.
type Log struct {
	events []event
	// locality is where the first code of this machine came from; PCR 0 starts
	// with it (PFP 1.05, 10.4.5.3).
	locality byte
}

// Parse reads a log (crypto agile, little-endian). The error wraps ErrLog.
func Parse(raw []byte) (*Log, error) {
	if len(raw) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrLog)
	}
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("%w: %d bytes", ErrLog, len(raw))
	}
	r := &reader{rest: raw}
	banks, err := parseHeader(r)
	if err != nil {
		return nil, err
	}
	log := &Log{}
	for len(r.rest) > 0 {
		if len(log.events) == maxEvents {
			return nil, fmt.Errorf("%w: more than %d events", ErrLog, maxEvents)
		}
		if err := log.parseEvent(r, banks); err != nil {
			return nil, err
		}
	}
	return log, nil
}

// parseHeader reads the first event, which is in the format of TPM 1.2 and
// holds TCG_EfiSpecIDEvent: the banks, and how long their digests are.
func parseHeader(r *reader) (banks map[uint16]int, err error) {
	r.u32() // PCR 0
	kind := r.u32()
	r.take(20) // SHA-1, all zero
	spec := &reader{rest: r.take(int(r.u32()))}
	if r.short || kind != noAction || !bytes.Equal(spec.take(16), []byte("Spec ID Event03\x00")) {
		return nil, fmt.Errorf("%w: it has no crypto agile header", ErrLog)
	}
	spec.take(8) // class of the platform, versions, size of UINTN
	n := spec.u32()
	if n == 0 || n > maxBanks {
		return nil, fmt.Errorf("%w: %d banks", ErrLog, n)
	}
	banks = make(map[uint16]int, n)
	for range n {
		banks[spec.u16()] = int(spec.u16())
	}
	if spec.short || banks[algSHA256] != sha256.Size {
		return nil, fmt.Errorf("%w: it has no SHA-256", ErrLog)
	}
	return banks, nil
}

func (l *Log) parseEvent(r *reader, banks map[uint16]int) error {
	pcr, kind, digests := r.u32(), r.u32(), r.u32()
	if r.short || pcr >= 24 || digests > maxBanks {
		return fmt.Errorf("%w: malformed event", ErrLog)
	}
	e, found := event{pcr: pcr}, false
	for range digests {
		alg := r.u16()
		size, known := banks[alg]
		if !known {
			return fmt.Errorf("%w: digest of bank %04x, which its header does not name", ErrLog, alg)
		}
		digest := r.take(size)
		if alg == algSHA256 && len(digest) == sha256.Size {
			e.digest, found = [sha256.Size]byte(digest), true
		}
	}
	e.data = r.take(int(r.u32()))
	if r.short {
		return fmt.Errorf("%w: it is cut off", ErrLog)
	}
	if kind == noAction {
		l.noteLocality(e)
		return nil
	}
	if !found {
		return fmt.Errorf("%w: event without SHA-256", ErrLog)
	}
	l.events = append(l.events, e)
	return nil
}

// noteLocality reads TCG_EfiStartupLocalityEvent. It is not measured: a wrong
// one leads to another PCR 0.
func (l *Log) noteLocality(e event) {
	if where, ok := bytes.CutPrefix(e.data, []byte("StartupLocality\x00")); ok && e.pcr == 0 && len(where) == 1 {
		l.locality = where[0]
	}
}

// of returns the events of one PCR.
func (l *Log) of(pcr uint32) []event {
	if l == nil {
		return nil
	}
	var of []event
	for _, e := range l.events {
		if e.pcr == pcr {
			of = append(of, e)
		}
	}
	return of
}

// Replay returns the values that the PCRs have if the log is true.
func (l *Log) Replay(pcrs []uint32) [][]byte {
	values := make([][]byte, len(pcrs))
	for i, pcr := range pcrs {
		var value [sha256.Size]byte
		if pcr == 0 && l != nil {
			value[sha256.Size-1] = l.locality
		}
		for _, e := range l.of(pcr) {
			value = sha256.Sum256(append(value[:], e.digest[:]...))
		}
		values[i] = value[:]
	}
	return values
}

// reader reads little-endian numbers. Behind the end it reads zeros.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.rest) {
		r.rest, r.short = nil, true
		return nil
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}
