package probe

import (
	"testing"
)

func TestKeysThatNeedNoPerson(t *testing.T) {
	const (
		none      = "luks2(aes-xts-plain64)"
		plain     = "luks2(aes-xts-plain64 key on_plaintext)"
		encrypted = "luks2(aes-xts-plain64 key on_encrypted)"
		random    = "luks2(aes-xts-plain64 key random)"
	)
	unknown := func(why string) string { return "luks2(aes-xts-plain64 key unspecified: " + why + ")" }
	tests := []struct {
		name     string
		crypttab string
		build    func(m *machine) // nil: nothing more
		want     string
	}{
		{"no crypttab", "", nil, none},
		{"a person is asked", "data UUID=1 none luks\n", nil, none},
		{"two fields", "data UUID=1\n", nil, none},
		{"another mapping's key", "other UUID=1 /srv/key luks\n", nil, none},
		{"a key on the encrypted root", "data UUID=1 /etc/keys/data.key luks\n", nil, encrypted},
		{"a key on a plain volume", "data UUID=1 /srv/data.key luks\n", nil, plain},
		{"a link to a plain volume", "data UUID=1 /etc/keys/data.key luks\n", func(m *machine) {
			m.link("etc/keys", "../srv/keys")
		}, plain},
		{"an absolute link to a plain volume", "data UUID=1 /etc/data.key luks\n", func(m *machine) {
			m.link("etc/data.key", "/srv/data.key")
		}, plain},
		{"a key where systemd looks by itself", "data UUID=1 - luks\n", func(m *machine) {
			m.link("etc/cryptsetup-keys.d", "../srv")
			m.file("srv/data.key", "")
		}, plain},
		{"a new key at each boot", "data /dev/sda9 /dev/urandom swap\n", nil, random},
		{"a key on a stick", "data UUID=1 /key:LABEL=stick luks\n", func(m *machine) {
			m.link("dev/disk/by-label/stick", "../../sdb1")
		}, plain},
		{"a key on a stick that is not there", "data UUID=1 /key:LABEL=stick luks\n", nil,
			unknown("where the key lies is unknown: a device node belongs to no block device")},
		{"a device as key", "data UUID=1 /dev/sdb1 luks,keyfile-size=64\n", nil, plain},
		{"a key file sealed by the TPM", "data UUID=1 /srv/sealed luks,tpm2-device=auto\n", nil, none},
		{"a key derived from the encrypted root", "data UUID=1 root luks,keyscript=/lib/cryptsetup/scripts/decrypt_derived\n", nil, encrypted},
		{"a script that asks a person", "data UUID=1 data luks,keyscript=decrypt_keyctl\n", nil, none},
		{"a script that nobody knows", "data UUID=1 /srv/x luks,keyscript=/usr/local/sbin/key\n", nil,
			unknown("where the key lies is unknown: a key script brings it")},
		{"a key that something puts into memory", "data UUID=1 /run/key luks\n", func(m *machine) {
			m.mount("0:44", "/run", "tmpfs", "tmpfs")
		}, unknown("where the key lies is unknown: it is put into memory by something else")},
		{"a key copied into an initramfs on a plain /boot", "data UUID=1 /etc/keys/data.key luks\n", func(m *machine) {
			m.mount("sdb1", "/boot", "ext4", "/dev/sdb1")
			m.file("etc/cryptsetup-initramfs/conf-hook", "# KEYFILE_PATTERN=\nKEYFILE_PATTERN=\"/etc/keys/*.key\"\n")
		}, plain},
		{"a key copied into an initramfs on the encrypted root", "data UUID=1 /etc/keys/data.key luks\n", func(m *machine) {
			m.file("etc/cryptsetup-initramfs/conf-hook", "KEYFILE_PATTERN=/etc/keys/*.key\n")
		}, encrypted},
		{"a key in the initramfs by the kernel command line", "", func(m *machine) {
			m.mount("sdb1", "/boot", "ext4", "/dev/sdb1")
			m.file("proc/cmdline", "quiet rd.luks.key=7d9e5c44-2222-4c4c-9d9d-abcdef012345=/key\n")
		}, plain},
		{"another volume's key on the kernel command line", "", func(m *machine) {
			m.mount("sdb1", "/boot", "ext4", "/dev/sdb1")
			m.file("proc/cmdline", "rd.luks.key=00000000-2222-4c4c-9d9d-abcdef012345=/key\n")
		}, none},
		{"a key on a device by Arch's kernel parameter", "", func(m *machine) {
			m.file("proc/cmdline", "cryptkey=/dev/sdb1:ext4:/key\n")
		}, plain},
		{"a line that makes no sense", "data\n", nil, unknown("crypttab is unreadable: crypttab line 1: not two to four fields")},
		{"a relative key", "data UUID=1 key luks\n", nil, unknown("where the key lies is unknown: crypttab names no absolute path")},
		{"links in a circle", "data UUID=1 /etc/a luks\n", func(m *machine) {
			m.link("etc/a", "b")
			m.link("etc/b", "a")
		}, unknown("where the key lies is unknown: too many symbolic links")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := encryptedMachine(t)
			m.disk("sdc", "8:32", "8:33")
			m.luks(t, "dm-1", "254:1", "data", "sdc1")
			m.mount("sdb1", "/srv", "ext4", "/dev/sdb1")
			m.mount("dm-1", "/home", "ext4", "/dev/mapper/data")
			if test.crypttab != "" {
				m.file("etc/crypttab", test.crypttab)
			}
			if test.build != nil {
				test.build(m)
			}
			v := NewCollector(m.host(), []Probe{volumesProbe()}).Collect(t.Context()).GetVolumes()
			home := v.GetVolumes()[1]
			if got := layerText(home.GetPaths()[0].GetLayers()[0]); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

// A key beside its own null cipher, or on a volume whose key lies in clear, is
// as good as on a plain volume.
func TestAKeyOnANullCipherLiesInClear(t *testing.T) {
	m := encryptedMachine(t)
	m.header("sda1", forge(t, capture(t, "luks2.img"), `"0","encryption":"aes-xts-plain64"`, `"0","encryption":"cipher_null-ecb"`))
	m.luks(t, "dm-1", "254:1", "data", "sdb1")
	m.mount("dm-1", "/home", "ext4", "/dev/mapper/data")
	m.file("etc/crypttab", "data UUID=1 /etc/key luks\n")
	expectVolumes(t, m.host(), []string{
		"root ext4: luks2(cipher_null-ecb) > partition > disk",
		"home ext4: luks2(aes-xts-plain64 key on_plaintext) > partition > disk",
	})
}
