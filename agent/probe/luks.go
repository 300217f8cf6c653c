package probe

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// nullCipher is dm-crypt's cipher that stores everything in clear. The kernel
// takes it as "cipher_null-ecb" and as "capi:ecb(cipher_null)-…".
const nullCipher = "cipher_null"

func isNull(cipher string) bool { return strings.Contains(cipher, nullCipher) }

// errNoLUKS says that a device does not begin with a LUKS header.
var errNoLUKS = errors.New("no LUKS header")

// luksHeader is what a LUKS header says of its volume, without keys, salts
// and digests.
type luksHeader struct {
	version int
	// uuid names the volume, as 32 hex digits; it stays on the notebook.
	uuid string
	// cipher is that of the weakest segment: the null cipher as soon as any
	// part is stored in clear.
	cipher       string
	keyBits      uint32
	keyslots     uint32 // active ones
	kdfs         []string
	tokenTypes   []string
	requirements []string
	opal         bool // the drive encrypts too, or alone
	// keyInClear is set when a key slot does not encrypt the volume key: any
	// passphrase opens the volume.
	keyInClear bool
}

var (
	luksMagic       = []byte("LUKS\xba\xbe")
	luksSecondMagic = []byte("SKUL\xba\xbe") // of LUKS2's second copy
)

// parseLUKS reads the header at the beginning of a device: LUKS1
// (on-disk format specification 1.2.3, 3.1) or LUKS2 (1.1.1, 2). It returns
// errNoLUKS when the magic is missing.
func parseLUKS(r io.Reader) (*luksHeader, error) {
	head := make([]byte, luks1Size)
	switch n, err := io.ReadFull(r, head); {
	case n < len(luksMagic) || !bytes.HasPrefix(head[:n], luksMagic):
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, err
		}
		return nil, errNoLUKS
	case err != nil:
		return nil, fmt.Errorf("LUKS header is cut off: %w", err)
	}
	switch version := binary.BigEndian.Uint16(head[6:]); version {
	case 1:
		return parseLUKS1(head)
	case 2:
		return readLUKS2(head, r)
	default:
		return nil, fmt.Errorf("unknown LUKS version %d", version)
	}
}

const (
	luks1Size       = 592
	luks1Slots      = 8
	luks1SlotsAt    = 208
	luks1SlotSize   = 48
	luks1SlotActive = 0x00AC71F3
)

func parseLUKS1(head []byte) (*luksHeader, error) {
	cipher := cString(head[8:40]) + "-" + cString(head[40:72])
	if !plainWord(cipher) {
		return nil, errors.New("the LUKS1 header's cipher is unreadable")
	}
	h := &luksHeader{
		version: 1,
		uuid:    bareUUID(cString(head[168:208])),
		cipher:  cipher,
		keyBits: binary.BigEndian.Uint32(head[108:]) * 8,
	}
	for i := range luks1Slots {
		if binary.BigEndian.Uint32(head[luks1SlotsAt+i*luks1SlotSize:]) == luks1SlotActive {
			h.keyslots++
			h.kdfs = append(h.kdfs, "pbkdf2")
		}
	}
	return h, nil
}

const (
	luks2BinarySize = 4096 // the JSON area follows
	luks2MinSize    = 16 << 10
	luks2MaxSize    = 4 << 20
)

// readLUKS2 reads the rest of the header, of which head is the beginning. A
// header that is half written says nothing; then its second copy, which is
// written only after the first, is read.
func readLUKS2(head []byte, r io.Reader) (*luksHeader, error) {
	size := binary.BigEndian.Uint64(head[8:])
	if size < luks2MinSize || size > luks2MaxSize {
		return nil, errors.New("the LUKS2 header's size is out of range")
	}
	whole := make([]byte, size)
	copy(whole, head)
	if _, err := io.ReadFull(r, whole[len(head):]); err != nil {
		return nil, fmt.Errorf("LUKS2 header is cut off: %w", err)
	}
	h, err := parseLUKS2(whole)
	if errors.Is(err, errLUKS2Checksum) {
		if _, cut := io.ReadFull(r, whole); cut != nil || !bytes.HasPrefix(whole, luksSecondMagic) {
			return nil, err
		}
		return parseLUKS2(whole)
	}
	return h, err
}

var errLUKS2Checksum = errors.New("the LUKS2 header's checksum does not match")

// parseLUKS2 reads one whole copy and changes it while it checks its checksum.
func parseLUKS2(whole []byte) (*luksHeader, error) {
	if algorithm := cString(whole[72:104]); algorithm != "sha256" {
		return nil, errors.New("the LUKS2 header's checksum is of an unknown kind")
	}
	stored := whole[448:512]
	want := bytes.Clone(stored[:sha256.Size])
	clear(stored)
	if sum := sha256.Sum256(whole); !bytes.Equal(sum[:], want) {
		return nil, errLUKS2Checksum
	}
	area := whole[luks2BinarySize:]
	end := bytes.IndexByte(area, 0)
	if end < 0 {
		return nil, errors.New("the LUKS2 header's JSON area has no end")
	}
	h, err := parseLUKS2Metadata(area[:end])
	if err != nil {
		return nil, err
	}
	h.uuid = bareUUID(cString(whole[168:208]))
	return h, nil
}

// luks2Metadata is the part of a LUKS2 JSON area that we judge.
type luks2Metadata struct {
	Keyslots map[string]struct {
		Type    string `json:"type"`
		KeySize uint32 `json:"key_size"` // bytes
		Area    struct {
			Encryption string `json:"encryption"`
		} `json:"area"`
		KDF struct {
			Type string `json:"type"`
		} `json:"kdf"`
	} `json:"keyslots"`
	Segments map[string]luks2Segment `json:"segments"`
	Tokens   map[string]struct {
		Type string `json:"type"`
	} `json:"tokens"`
	Config struct {
		Requirements struct {
			Mandatory []string `json:"mandatory"`
		} `json:"requirements"`
	} `json:"config"`
}

type luks2Segment struct {
	Type       string   `json:"type"`
	Encryption string   `json:"encryption"`
	Flags      []string `json:"flags"`
}

// parseLUKS2Metadata reads the JSON area.
func parseLUKS2Metadata(area []byte) (*luksHeader, error) {
	var meta luks2Metadata
	if err := json.Unmarshal(area, &meta); err != nil {
		return nil, errors.New("the LUKS2 header's JSON area is unreadable")
	}
	h := &luksHeader{version: 2}
	for _, slot := range meta.Keyslots {
		if slot.Type != "luks2" { // "reencrypt" slots open nothing
			continue
		}
		h.keyslots++
		h.kdfs = append(h.kdfs, word(slot.KDF.Type))
		h.keyInClear = h.keyInClear || isNull(slot.Area.Encryption)
		if bits := slot.KeySize * 8; h.keyBits == 0 || bits < h.keyBits {
			h.keyBits = bits
		}
	}
	for _, token := range meta.Tokens {
		h.tokenTypes = append(h.tokenTypes, word(token.Type))
	}
	for _, requirement := range meta.Config.Requirements.Mandatory {
		h.requirements = append(h.requirements, word(requirement))
	}
	// JSON objects come in any order; evidence must not change with it.
	slices.Sort(h.kdfs)
	slices.Sort(h.tokenTypes)
	slices.Sort(h.requirements)
	for _, segment := range meta.Segments {
		if slices.ContainsFunc(segment.Flags, func(f string) bool { return strings.HasPrefix(f, "backup-") }) {
			continue // what a running re-encryption remembers, not what is on the disk
		}
		cipher, err := segment.cipher()
		if err != nil {
			return nil, err
		}
		h.opal = h.opal || strings.HasPrefix(segment.Type, "hw-opal")
		h.cipher = weakerCipher(h.cipher, cipher)
	}
	if h.cipher == "" {
		return nil, errors.New("the LUKS2 header names no cipher")
	}
	return h, nil
}

func (s luks2Segment) cipher() (string, error) {
	switch s.Type {
	case "crypt", "hw-opal-crypt":
		if !plainWord(s.Encryption) {
			return "", errors.New("the LUKS2 header's cipher is unreadable")
		}
		return s.Encryption, nil
	case "hw-opal":
		return "hw-opal", nil
	case "linear": // not yet or no longer encrypted
		return nullCipher, nil
	default:
		return "", errors.New("the LUKS2 header has a segment of an unknown type")
	}
}

// weakerCipher prefers the one that is no encryption; among others the choice
// must only be the same every time.
func weakerCipher(a, b string) string {
	switch {
	case a == "" || isNull(b):
		return b
	case b == "" || isNull(a):
		return a
	default:
		return min(a, b)
	}
}

// cString is a C string in a field of fixed length.
func cString(field []byte) string {
	s, _, _ := bytes.Cut(field, []byte{0})
	return string(s)
}

func bareUUID(s string) string {
	return strings.ToLower(strings.ReplaceAll(s, "-", ""))
}

// word lets only short technical names pass into evidence: headers have room
// for free text that may name a person.
func word(s string) string {
	if !plainWord(s) {
		return "other"
	}
	return s
}

func plainWord(s string) bool {
	const also = "-_:.,()+"
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune(also, r))
	})
}
