package attest

import "encoding/binary"

// reader reads what a TPM marshals: big-endian, byte strings with a length in
// front. Behind the end it reads zeros, and done says no.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.rest) {
		r.rest, r.short = nil, true
		return make([]byte, min(n, 8))
	}
	b := r.rest[:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) u8() uint8   { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

// sized reads a TPM2B. It is empty when the input is too short.
func (r *reader) sized() []byte {
	b := r.take(int(r.u16()))
	if r.short {
		return nil
	}
	return b
}

// done says that everything was there, and nothing is left.
func (r *reader) done() bool { return !r.short && len(r.rest) == 0 }
