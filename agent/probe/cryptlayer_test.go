package probe

import (
	"bytes"
	"slices"
	"testing"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestCryptLayersAreBelievedOnlyByTheirOwnHeader(t *testing.T) {
	const path = " > partition > disk"
	tests := []struct {
		name   string
		header func(t *testing.T) []byte
		uuid   string
		want   string
		// contradictions as "subject: says a, says b"
		contradictions []string
	}{
		{"the null cipher under a good name", func(t *testing.T) []byte {
			return forge(t, capture(t, "luks2.img"), `"0","encryption":"aes-xts-plain64"`, `"0","encryption":"cipher_null-ecb"`)
		}, uuidOf("LUKS2", "root"), "luks2(cipher_null-ecb)", nil},

		{"a key slot in clear", func(t *testing.T) []byte {
			return forge(t, capture(t, "luks2.img"), `"258048","encryption":"aes-xts-plain64"`, `"258048","encryption":"cipher_null-ecb"`)
		}, uuidOf("LUKS2", "root"), "luks2(aes-xts-plain64 key on_plaintext: a key slot keeps the volume key in clear)", nil},

		{"being encrypted anew", func(t *testing.T) []byte { return capture(t, "luks2-reencrypting.img") },
			uuidOf("LUKS2", "root"), "luks2(aes-xts-plain64 online-reencrypt-v2)", nil},

		{"a detached header", func(t *testing.T) []byte { return bytes.Repeat([]byte{0x7f}, 4096) },
			uuidOf("LUKS2", "root"), "luks2( unverified: no LUKS header on the device: it is detached)", nil},

		{"a detached header, and an old one on the device", func(t *testing.T) []byte { return capture(t, "luks2.img") },
			"CRYPT-LUKS2-00000000000000000000000000000000-root",
			"luks2( unverified: the header on the device is not that of the mapping)",
			[]string{"volumes[0].paths[0].layers[0].header: opened from another header, aes-xts-plain64"}},

		{"a header of another version", func(t *testing.T) []byte { return capture(t, "luks1.img") },
			"CRYPT-LUKS2-" + luks1UUID + "-root",
			"luks2( unverified: the header on the device is not that of the mapping)",
			[]string{"volumes[0].paths[0].layers[0].type: LUKS2, LUKS1"}},

		{"OPAL in the header only", func(t *testing.T) []byte {
			return forge(t, capture(t, "luks2.img"), `"type":"crypt"`, `"type":"hw-opal"`)
		}, uuidOf("LUKS2", "root"),
			"luks2( unverified: the header on the device is not that of the mapping)",
			[]string{"volumes[0].paths[0].layers[0].type: LUKS2, LUKS2_OPAL"}},

		{"a plain mapping over a LUKS device", func(t *testing.T) []byte { return capture(t, "luks2.img") },
			"CRYPT-PLAIN-root",
			"plain_crypt( unverified: a dm-crypt mapping without a header: device-mapper cannot be asked on this machine)",
			[]string{"volumes[0].paths[0].layers[0].type: PLAIN_CRYPT, LUKS2"}},

		{"a damaged header", func(t *testing.T) []byte {
			h := capture(t, "luks2.img")
			h[5000]++
			return h
		}, uuidOf("LUKS2", "root"), "luks2( unverified: the LUKS2 header's checksum does not match)", nil},

		{"a name that only begins like a crypt layer", func(t *testing.T) []byte { return capture(t, "luks2.img") },
			"CRYPTO-LUKS2-aaaa-root", "other", nil},

		{"a mapping that somebody made by hand", func(t *testing.T) []byte { return nil }, "", "other", nil},

		{"VeraCrypt has no LUKS header", func(t *testing.T) []byte { return nil }, "CRYPT-TCRYPT-aaaa-root",
			"plain_crypt( unverified: a dm-crypt mapping without a header: device-mapper cannot be asked on this machine)", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine()
			m.disk("sda", "8:0", "8:1")
			m.header("sda1", test.header(t))
			m.mapping("dm-0", "254:0", "root", test.uuid, "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
			v := expectVolumes(t, m.host(), []string{"root ext4: " + test.want + path})
			var got []string
			for _, c := range v.GetContradictions() {
				got = append(got, c.GetSubject()+": "+c.GetSaysA()+", "+c.GetSaysB())
			}
			if !slices.Equal(got, test.contradictions) {
				t.Errorf("contradictions %q", got)
			}
		})
	}
}

func TestCryptLayersCarryWhatTheHeaderSays(t *testing.T) {
	m := encryptedMachine(t)
	m.header("sda1", capture(t, "luks2-two-slots.img"))
	v := expectVolumes(t, m.host(), []string{"root ext4: " + verified})
	l := v.GetVolumes()[0].GetPaths()[0].GetLayers()[0]
	if l.GetKeyBits() != 512 || l.GetKeyslots() != 2 || l.GetVerifiedBy() != posturev1.VerifiedBy_VERIFIED_BY_HEADER ||
		!slices.Equal(l.GetKdfs(), []string{"argon2id", "pbkdf2"}) || !slices.Equal(l.GetTokenTypes(), []string{"clevis"}) {
		t.Errorf("%v", l)
	}
}

func TestCryptLayersWithoutUdevAreReadByTheKernelsName(t *testing.T) {
	m := encryptedMachine(t)
	delete(m.MapFS, "dev/block/8:1")
	expectVolumes(t, m.host(), []string{"root ext4: " + verified})
}
