package probe

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
)

// cryptTable is what the kernel says of a mapping that ought to be dm-crypt's.
type cryptTable struct {
	cipher  string // of the weakest segment
	keyBits uint32 // of the shortest key
	// others is set when a part of the mapping is not dm-crypt's: it may be
	// stored in clear.
	others bool
}

// table asks for the table of a mapping, without its key.
func (r *volumeReader) table(ctx context.Context, l layer) (cryptTable, error) {
	if r.mappings == nil {
		return cryptTable{}, errors.New("device-mapper cannot be asked on this machine")
	}
	number, err := r.storage.attribute(l.dir + "/dev")
	if err != nil {
		return cryptTable{}, err
	}
	segments, err := r.mappings.Segments(ctx, number)
	if err != nil {
		return cryptTable{}, err
	}
	return parseCryptTable(segments)
}

// parseCryptTable reads the texts of a mapping's segments, such as
// "target_name=crypt,target_version=1.24.0,…,cipher_string=aes-xts-plain64,key_size=64,…;".
func parseCryptTable(segments []string) (cryptTable, error) {
	var t cryptTable
	for _, s := range segments {
		target, ok := strings.CutPrefix(s, "target_name=")
		if !ok {
			return cryptTable{}, errors.New("this kernel does not tell a mapping's cipher without its key")
		}
		if !strings.HasPrefix(target, "crypt,") {
			t.others = true
			continue
		}
		// The kernel's own notation of a cipher has commas in it; what follows
		// it is always the size of the key.
		_, rest, _ := strings.Cut(target, ",cipher_string=")
		cipher, rest, _ := strings.Cut(rest, ",key_size=")
		size, _, _ := strings.Cut(rest, ",")
		bytes, err := strconv.ParseUint(size, 10, 12)
		if err != nil || !plainWord(cipher) {
			return cryptTable{}, errors.New("device-mapper names no cipher")
		}
		if bits := uint32(bytes) * 8; t.cipher == "" || bits < t.keyBits {
			t.keyBits = bits
		}
		t.cipher = weakerCipher(t.cipher, cipher)
	}
	if t.cipher == "" && !t.others {
		return cryptTable{}, errors.New("the mapping has no table")
	}
	return t, nil
}

// agrees says whether the kernel does what the header says. While a volume is
// encrypted anew its mapping changes all the time, and a drive that encrypts
// by itself may have no dm-crypt above it.
func (t cryptTable) agrees(h *luksHeader) bool {
	changing := slices.ContainsFunc(h.requirements, func(r string) bool { return strings.HasPrefix(r, "online-reencrypt") })
	return changing || h.opal || !t.others && isNull(t.cipher) == isNull(h.cipher)
}
