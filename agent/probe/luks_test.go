package probe

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func TestLUKSHeadersOfCryptsetup(t *testing.T) {
	tests := []struct {
		file string
		want luksHeader
	}{
		{"luks1.img", luksHeader{version: 1, uuid: luks1UUID, cipher: "aes-xts-plain64", keyBits: 512,
			keyslots: 1, kdfs: []string{"pbkdf2"}}},
		{"luks2.img", luksHeader{version: 2, uuid: luks2UUID, cipher: "aes-xts-plain64", keyBits: 512,
			keyslots: 1, kdfs: []string{"argon2id"}}},
		{"luks2-two-slots.img", luksHeader{version: 2, uuid: luks2UUID, cipher: "aes-xts-plain64", keyBits: 512,
			keyslots: 2, kdfs: []string{"argon2id", "pbkdf2"}, tokenTypes: []string{"clevis"}}},
		{"luks2-reencrypting.img", luksHeader{version: 2, uuid: luks2UUID, cipher: "aes-xts-plain64", keyBits: 512,
			keyslots: 3, kdfs: []string{"argon2id", "argon2id", "pbkdf2"}, requirements: []string{"online-reencrypt-v2"}}},
		// Its second copy is whole.
		{"luks2-half-written.img", luksHeader{version: 2, uuid: luks2UUID, cipher: "aes-xts-plain64", keyBits: 512,
			keyslots: 2, kdfs: []string{"pbkdf2", "pbkdf2"}, requirements: []string{"online-reencrypt-v2"}}},
	}
	for _, test := range tests {
		t.Run(test.file, func(t *testing.T) {
			got, err := parseLUKS(bytes.NewReader(capture(t, test.file)))
			if err != nil {
				t.Fatal(err)
			}
			expectHeader(t, got, test.want)
		})
	}
}

func TestLUKSHeadersThatProtectNothing(t *testing.T) {
	luks2 := capture(t, "luks2.img")
	luks1Null := capture(t, "luks1.img")
	copy(luks1Null[8:], "cipher_null\x00")
	copy(luks1Null[40:], "ecb\x00")
	tests := []struct {
		name   string
		header []byte
		cipher string
		clear  bool
	}{
		{"LUKS1 with the null cipher", luks1Null, "cipher_null-ecb", false},
		{"LUKS2 with the null cipher", forge(t, luks2,
			`"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"iv_tweak":"0","encryption":"cipher_null-ecb"`), "cipher_null-ecb", false},
		{"LUKS2 with the null cipher in the kernel's words", forge(t, luks2,
			`"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"iv_tweak":"0","encryption":"capi:ecb(cipher_null)-plain"`),
			"capi:ecb(cipher_null)-plain", false},
		{"a key slot that does not encrypt", forge(t, luks2,
			`"size":"258048","encryption":"aes-xts-plain64"`, `"size":"258048","encryption":"cipher_null-ecb"`), "aes-xts-plain64", true},
		{"a part that is not yet encrypted", forge(t, luks2,
			`"segments":{`, `"segments":{"9":{"type":"linear","offset":"0","size":"512"},`), "cipher_null", false},
		{"only the drive encrypts", forge(t, luks2, `"type":"crypt"`, `"type":"hw-opal"`), "hw-opal", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, err := parseLUKS(bytes.NewReader(test.header))
			if err != nil {
				t.Fatal(err)
			}
			if h.cipher != test.cipher || h.keyInClear != test.clear {
				t.Errorf("cipher %q, key in clear %v", h.cipher, h.keyInClear)
			}
		})
	}
}

func TestLUKSHeadersThatCannotBeBelieved(t *testing.T) {
	luks1, luks2 := capture(t, "luks1.img"), capture(t, "luks2.img")
	damaged := bytes.Clone(luks2)
	damaged[5000]++
	huge := bytes.Clone(luks2)
	huge[8] = 1
	sha512 := bytes.Clone(luks2)
	copy(sha512[72:], "sha512\x00")
	damagedTwice := capture(t, "luks2-half-written.img")
	damagedTwice[len(damagedTwice)/2+5000]++
	future := bytes.Clone(luks1)
	future[7] = 3
	strange := bytes.Clone(luks1)
	copy(strange[8:], "\xff\xfe")
	tests := []struct {
		name   string
		header []byte
		want   string
	}{
		{"nothing", nil, "no LUKS header"},
		{"another file system", bytes.Repeat([]byte{0x53, 0xef}, 4096), "no LUKS header"},
		{"less than a header", []byte("LUKS\xba\xbe\x00\x02"), "LUKS header is cut off: unexpected EOF"},
		{"LUKS2 cut off", luks2[:8000], "LUKS2 header is cut off: unexpected EOF"},
		{"a flipped bit", damaged, "the LUKS2 header's checksum does not match"},
		{"a flipped bit in the second copy too", damagedTwice, "the LUKS2 header's checksum does not match"},
		{"another header where the second copy should be", append(bytes.Clone(damaged), luks2...), "the LUKS2 header's checksum does not match"},
		{"a size out of range", huge, "the LUKS2 header's size is out of range"},
		{"another checksum", sha512, "the LUKS2 header's checksum is of an unknown kind"},
		{"another version", future, "unknown LUKS version 3"},
		{"a cipher that is no word", strange, "the LUKS1 header's cipher is unreadable"},
		{"no JSON", forge(t, luks2, `{"keyslots"`, `{{`), "the LUKS2 header's JSON area is unreadable"},
		{"no segment", forge(t, luks2, `"segments":`, `"parts":`), "the LUKS2 header names no cipher"},
		{"an unknown segment", forge(t, luks2, `"type":"crypt"`, `"type":"magic"`), "the LUKS2 header has a segment of an unknown type"},
		{"a segment with free text", forge(t, luks2, `"iv_tweak":"0","encryption":"aes-xts-plain64"`, `"encryption":"Frau Muster"`), "the LUKS2 header's cipher is unreadable"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			h, err := parseLUKS(bytes.NewReader(test.header))
			if err == nil || err.Error() != test.want {
				t.Errorf("header %+v, error %v", h, err)
			}
		})
	}
	broken := errors.New("input/output error")
	if _, err := parseLUKS(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("a device that cannot be read: %v", err)
	}
}

func expectHeader(t *testing.T, got *luksHeader, want luksHeader) {
	t.Helper()
	same := got.version == want.version && got.uuid == want.uuid && got.cipher == want.cipher &&
		got.keyBits == want.keyBits && got.keyslots == want.keyslots && got.opal == want.opal &&
		got.keyInClear == want.keyInClear && slices.Equal(got.kdfs, want.kdfs) &&
		slices.Equal(got.tokenTypes, want.tokenTypes) && slices.Equal(got.requirements, want.requirements)
	if !same {
		t.Errorf("got  %+v\nwant %+v", *got, want)
	}
}

// Whatever lies on a disk, the parser ends, and what it lets into evidence is
// short and plain.
func FuzzLUKSHeader(f *testing.F) {
	for _, name := range []string{"luks1.img", "luks2.img", "luks2-two-slots.img", "luks2-reencrypting.img"} {
		f.Add(capture(f, name))
	}
	f.Add([]byte("LUKS\xba\xbe\x00\x01"))
	f.Fuzz(func(t *testing.T, content []byte) {
		h, err := parseLUKS(bytes.NewReader(content))
		if err != nil {
			return
		}
		expectPlainWords(t, h)
	})
}

// The checksum keeps a fuzzer away from the JSON area, so it has its own.
func FuzzLUKS2Metadata(f *testing.F) {
	for _, name := range []string{"luks2.img", "luks2-two-slots.img", "luks2-reencrypting.img"} {
		f.Add(bytes.TrimRight(capture(f, name)[luks2BinarySize:], "\x00"))
	}
	f.Add([]byte(`{"segments":{"0":{"type":"linear"}}}`))
	f.Add([]byte(`{"segments":{"0":{"type":"hw-opal-crypt","encryption":"aes-xts-plain64"}},"tokens":{"0":{"type":"a b"}}}`))
	f.Fuzz(func(t *testing.T, area []byte) {
		h, err := parseLUKS2Metadata(area)
		if err != nil {
			return
		}
		expectPlainWords(t, h)
		if bytes.Contains(area, []byte(`"linear"`)) && strings.Count(string(area), `"type"`) == 1 && !isNull(h.cipher) {
			t.Errorf("a clear segment has cipher %q", h.cipher)
		}
	})
}

func expectPlainWords(t *testing.T, h *luksHeader) {
	t.Helper()
	if h.cipher == "" {
		t.Error("a header without a cipher was taken")
	}
	for _, s := range slices.Concat([]string{h.cipher}, h.kdfs, h.tokenTypes, h.requirements) {
		if !plainWord(s) && s != h.cipher {
			t.Errorf("%q would be sent", s)
		}
	}
}
