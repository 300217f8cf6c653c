package probe

import (
	"context"
	"testing"
)

func TestVolumesReadSwap(t *testing.T) {
	tests := []struct {
		name  string
		build func(t *testing.T, m *machine)
		want  []string // beside the root
	}{
		{"a plain swap partition", func(t *testing.T, m *machine) {
			m.swap("/dev/sdb1", "partition")
		}, []string{"swap swap: partition > disk"}},

		{"a swap file on an encrypted volume", func(t *testing.T, m *machine) {
			m.swap("/swapfile", "file")
		}, []string{"swap swap: " + verified}},

		{"a swap file that was deleted is still in use", func(t *testing.T, m *machine) {
			m.swap(`/swapfile\040(deleted)`, "file")
		}, []string{"swap swap: " + verified}},

		{"a swap file on a plain volume", func(t *testing.T, m *machine) {
			m.mount("sdb1", "/srv", "ext4", "/dev/sdb1")
			m.swap(`/srv/swap\040file`, "file")
		}, []string{"data ext4: partition > disk", "swap swap: partition > disk"}},

		{"a swap file on a btrfs with a plain member", func(t *testing.T, m *machine) {
			m.btrfs("1b1b-aaaa", "dm-0", "sdb1")
			m.mount("0:40", "/srv", "btrfs", "/dev/mapper/root")
			m.swap("/srv/swapfile", "file")
		}, []string{
			"data btrfs: " + verified + " | partition > disk",
			"swap swap: " + verified + " | partition > disk",
		}},

		{"plain dm-crypt with a new key at each boot", func(t *testing.T, m *machine) {
			m.mapping("dm-1", "254:1", "cswap", "CRYPT-PLAIN-cswap", "sdb1")
			m.file("etc/crypttab", "# <name> <source> <key> <options>\ncswap /dev/sdb1 /dev/urandom swap,cipher=aes-xts-plain64,size=512\n")
			m.swap("/dev/dm-1", "partition")
		}, []string{"swap swap: plain_crypt(aes-xts-plain64 unverified key random:" +
			" a dm-crypt mapping without a header: device-mapper cannot be asked on this machine) > partition > disk"}},

		{"plain dm-crypt with a new key at each boot, confirmed by the kernel", func(t *testing.T, m *machine) {
			m.mapping("dm-1", "254:1", "cswap", "CRYPT-PLAIN-cswap", "sdb1")
			m.file("etc/crypttab", "cswap /dev/sdb1 /dev/urandom swap,cipher=aes-cbc-essiv:sha256,size=256\n")
			m.swap("/dev/dm-1", "partition")
			m.tables = tables{"254:1": {cryptSegment("aes-xts-plain64", 64)}}
		}, []string{"swap swap: plain_crypt(aes-xts-plain64 by table key random) > partition > disk"}},

		{"a node under /dev/mapper that udev did not make", func(t *testing.T, m *machine) {
			m.mapping("dm-1", "254:1", "cswap", "LVM-aaaa", "dm-0")
			delete(m.MapFS, "dev/mapper/cswap")
			m.swap("/dev/mapper/cswap", "partition")
		}, []string{"swap swap: linear > " + verified}},

		{"compressed memory is left out", func(t *testing.T, m *machine) {
			m.file(m.block("252:0", "virtual/block/zram0")+"/backing_dev", "none\n")
			m.swap("/dev/zram0", "partition")
		}, nil},

		{"compressed memory that spills to a plain disk", func(t *testing.T, m *machine) {
			m.file(m.block("252:0", "virtual/block/zram0")+"/backing_dev", "/dev/sdb1\n")
			m.swap("/dev/zram0", "partition")
		}, []string{"swap swap: other > partition > disk"}},

		{"a ZFS volume does not tell whether it is encrypted", func(t *testing.T, m *machine) {
			m.block("230:0", "virtual/block/zd0")
			m.swap("/dev/zd0", "partition")
		}, []string{"swap swap: FAILED a ZFS volume does not tell its dataset"}},

		{"a device that is gone", func(t *testing.T, m *machine) {
			m.swap("/dev/sdz1", "partition")
		}, []string{"swap swap: FAILED a device node belongs to no block device"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := encryptedMachine(t)
			test.build(t, m)
			expectVolumes(t, m.host(), append([]string{"root ext4: " + verified}, test.want...))
		})
	}
}

func TestVolumesAskZFSItself(t *testing.T) {
	tests := []struct {
		name     string
		commands Commands
		want     []string
	}{
		{"encrypted", zfs{"rpool/root": "aes-256-gcm", "rpool/home": "aes-256-gcm"}, []string{
			"root zfs: zfs +zfs(aes-256-gcm)", "home zfs: zfs +zfs(aes-256-gcm)"}},
		{"off is plain", zfs{"rpool/root": "off", "rpool/home": "aes-256-gcm"}, []string{
			"root zfs: zfs", "home zfs: zfs +zfs(aes-256-gcm)"}},
		{"a hyphen is plain", zfs{"rpool/root": "-", "rpool/home": ""}, []string{
			"root zfs: zfs", "home zfs: zfs"}},
		{"one dataset that does not answer", zfs{"rpool/root": "aes-256-gcm"}, []string{
			"root zfs: zfs +zfs(aes-256-gcm)", "home zfs: FAILED asking zfs: not found zfs"}},
		{"no command", nil, []string{
			"root zfs: FAILED asking zfs: zfs cannot be asked on this machine zfs",
			"home zfs: FAILED asking zfs: zfs cannot be asked on this machine zfs"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine()
			m.mount("0:30", "/", "zfs", "rpool/root")
			m.mount("0:31", "/home", "zfs", "rpool/home")
			h := m.host()
			h.Commands = test.commands
			expectVolumes(t, h, test.want)
		})
	}
}

// A plain dataset must not hide behind the encrypted one of its pool.
func TestVolumesListAPlainDatasetBesideAnEncryptedRoot(t *testing.T) {
	m := newMachine()
	m.mount("0:30", "/", "zfs", "rpool/root")
	m.mount("0:31", "/srv", "zfs", "rpool/plain")
	m.mount("0:32", "/opt", "zfs", "rpool/opt")
	h := m.host()
	h.Commands = zfs{"rpool/root": "aes-256-gcm", "rpool/plain": "off", "rpool/opt": "aes-256-gcm"}
	expectVolumes(t, h, []string{"root zfs: zfs +zfs(aes-256-gcm)", "data zfs: zfs"})
}

// zfs answers by dataset.
type zfs map[string]string

func (z zfs) ZFSEncryption(_ context.Context, dataset string) (string, error) {
	if value, ok := z[dataset]; ok {
		return value, nil
	}
	return "", ErrNotFound
}
