package probe

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// cryptSegment is what Linux 6.1 says of a dm-crypt segment.
func cryptSegment(cipher string, keyBytes int) string {
	return fmt.Sprintf("target_name=crypt,target_version=1.24.0,allow_discards=n,same_cpu_crypt=n,submit_from_crypt_cpus=n,"+
		"no_read_workqueue=n,no_write_workqueue=n,iv_large_sectors=n,cipher_string=%s,key_size=%d,key_parts=1,key_extra_size=0,key_mac_size=0;",
		cipher, keyBytes)
}

const linearSegment = "target_name=linear,target_version=1.4.0,device_name=253:3,start=0;"

func TestTheKernelTellsWhatAMappingDoes(t *testing.T) {
	const path = " > partition > disk"
	noHeader := bytes.Repeat([]byte{0x7f}, 4096)
	luks2, null := capture(t, "luks2.img"), forge(t, capture(t, "luks2.img"),
		`"0","encryption":"aes-xts-plain64"`, `"0","encryption":"cipher_null-ecb"`)
	good := cryptSegment("aes-xts-plain64", 64)
	tests := []struct {
		name   string
		header []byte
		uuid   string
		table  []string
		want   string
		// contradictions as "subject: says a, says b"
		contradictions []string
	}{
		{"header and table agree", luks2, uuidOf("LUKS2", "root"), []string{good}, "luks2(aes-xts-plain64)", nil},
		{"a detached header", noHeader, uuidOf("LUKS2", "root"), []string{good}, "luks2(aes-xts-plain64 by table)", nil},
		{"a detached header with the null cipher", noHeader, uuidOf("LUKS2", "root"), []string{cryptSegment("cipher_null-ecb", 0)},
			"luks2(cipher_null-ecb by table)", nil},
		{"a detached header, one part in clear", noHeader, uuidOf("LUKS2", "root"), []string{good, linearSegment},
			"luks2( unverified: no LUKS header on the device: it is detached)", nil},
		{"a detached header, and the null cipher in one part", noHeader, uuidOf("LUKS2", "root"),
			[]string{good, cryptSegment("capi:ecb(cipher_null)-plain", 0)}, "luks2(capi:ecb(cipher_null)-plain by table)", nil},
		{"a kernel that does not tell", noHeader, uuidOf("LUKS2", "root"), []string{""},
			"luks2( unverified: no LUKS header on the device: it is detached)", nil},
		{"a good header over the null cipher", luks2, uuidOf("LUKS2", "root"), []string{cryptSegment("cipher_null-ecb", 0)},
			"luks2(aes-xts-plain64)", []string{"volumes[0].paths[0].layers[0].cipher: cipher_null-ecb, aes-xts-plain64"}},
		{"a good header over something else", luks2, uuidOf("LUKS2", "root"), []string{linearSegment},
			"luks2(aes-xts-plain64)", []string{"volumes[0].paths[0].layers[0].cipher: not dm-crypt, aes-xts-plain64"}},
		{"a null header over a real cipher", null, uuidOf("LUKS2", "root"), []string{good},
			"luks2(cipher_null-ecb)", []string{"volumes[0].paths[0].layers[0].cipher: aes-xts-plain64, cipher_null-ecb"}},
		{"being encrypted anew", capture(t, "luks2-reencrypting.img"), uuidOf("LUKS2", "root"), []string{linearSegment},
			"luks2(aes-xts-plain64 online-reencrypt-v2)", nil},
		{"plain dm-crypt", noHeader, "CRYPT-PLAIN-root", []string{good}, "plain_crypt(aes-xts-plain64 by table)", nil},
		{"plain dm-crypt with the null cipher", noHeader, "CRYPT-PLAIN-root", []string{cryptSegment("cipher_null-ecb", 0)},
			"plain_crypt(cipher_null-ecb by table)", nil},
		{"plain dm-crypt, one part in clear", noHeader, "CRYPT-PLAIN-root", []string{good, linearSegment},
			"plain_crypt( unverified: a part of the mapping is not dm-crypt's)", nil},
		{"plain dm-crypt that the kernel does not tell of", noHeader, "CRYPT-PLAIN-root", []string{""},
			"plain_crypt( unverified: a dm-crypt mapping without a header: this kernel does not tell a mapping's cipher without its key)", nil},
		{"a mapping without a table", noHeader, "CRYPT-PLAIN-root", nil,
			"plain_crypt( unverified: a dm-crypt mapping without a header: the mapping has no table)", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine()
			m.disk("sda", "8:0", "8:1")
			m.header("sda1", test.header)
			m.mapping("dm-0", "254:0", "root", test.uuid, "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
			m.tables = tables{"254:0": test.table}
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

func TestCryptTables(t *testing.T) {
	authenticated := "target_name=crypt,target_version=1.24.0,allow_discards=n,iv_large_sectors=n,integrity_tag_size=48,cipher_auth=hmac(sha256)," +
		"cipher_string=capi:authenc(hmac(sha256),xts(aes))-random,key_size=96,key_parts=1,key_extra_size=0,key_mac_size=32;"
	for _, good := range []struct {
		segments []string
		want     cryptTable
	}{
		{[]string{cryptSegment("aes-xts-plain64", 64)}, cryptTable{cipher: "aes-xts-plain64", keyBits: 512}},
		{[]string{authenticated}, cryptTable{cipher: "capi:authenc(hmac(sha256),xts(aes))-random", keyBits: 768}},
		{[]string{cryptSegment("aes-xts-plain64", 64), cryptSegment("aes-cbc-essiv:sha256", 32)},
			cryptTable{cipher: "aes-cbc-essiv:sha256", keyBits: 256}},
		{[]string{linearSegment}, cryptTable{others: true}},
	} {
		if got, err := parseCryptTable(good.segments); err != nil || got != good.want {
			t.Errorf("%q: %+v, %v", good.segments, got, err)
		}
	}
	for _, bad := range []string{
		"", "crypt", "target_name=crypt,", "0 100 crypt aes-xts-plain64 0123456789abcdef 0 8:1 0",
		strings.Replace(cryptSegment("aes-xts-plain64", 64), "key_size=64", "key_size=many", 1),
		strings.Replace(cryptSegment("aes-xts-plain64", 64), "cipher_string", "cipher", 1),
		cryptSegment("Frau Muster", 64),
	} {
		if got, err := parseCryptTable([]string{bad}); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzCryptTable(f *testing.F) {
	f.Add(cryptSegment("aes-xts-plain64", 64))
	f.Add(linearSegment)
	f.Add("target_name=crypt,cipher_string=,key_size=0,")
	f.Fuzz(func(t *testing.T, segment string) {
		table, err := parseCryptTable([]string{segment})
		if err == nil && !table.others && !plainWord(table.cipher) {
			t.Errorf("%q became the cipher %q", segment, table.cipher)
		}
	})
}
