package probe

import (
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const verified = "luks2(aes-xts-plain64) > partition > disk"

func TestVolumesFollowEveryPathToADisk(t *testing.T) {
	tests := []struct {
		name string
		// build prepares a machine with sda1 (8:1) and sdb1 (8:17).
		build func(t *testing.T, m *machine)
		want  []string
	}{
		{"a plain partition", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
		}, []string{"root ext4: partition > disk"}},

		{"LUKS2 on a partition", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "root", "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: " + verified}},

		{"LUKS1 on a partition", func(t *testing.T, m *machine) {
			m.header("sda1", capture(t, "luks1.img"))
			m.mapping("dm-0", "254:0", "root", uuidOf("LUKS1", "root"), "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: luks1(aes-xts-plain64) > partition > disk"}},

		{"osquery#7889, #8112, #7314, #8639: LVM on LUKS keeps the crypt layer", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "pv", "sda1")
			m.mapping("dm-1", "254:1", "vg-root", "LVM-aaaa", "dm-0")
			m.mapping("dm-2", "254:2", "vg-swap", "LVM-bbbb", "dm-0")
			m.mount("dm-1", "/", "ext4", "/dev/mapper/vg-root")
			m.swap("/dev/dm-2", "partition")
		}, []string{"root ext4: linear > " + verified, "swap swap: linear > " + verified}},

		{"fleet#47256: one plain member of a volume group shows", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "pv", "sda1")
			m.mapping("dm-1", "254:1", "vg-root", "LVM-aaaa", "dm-0", "sdb1")
			m.mount("dm-1", "/", "ext4", "/dev/mapper/vg-root")
		}, []string{"root ext4: linear > " + verified + " | linear > partition > disk"}},

		{"the second, plain member of a btrfs shows", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "root", "sda1")
			m.btrfs("0a0a-ffff", "sdb")
			m.btrfs("1b1b-aaaa", "dm-0", "sdb1")
			m.mount("0:31", "/", "btrfs", "/dev/mapper/root", "subvol=/@")
			m.mount("0:32", "/home", "btrfs", "/dev/mapper/root", "subvol=/@home")
			m.mount("0:33", "/var/log", "btrfs", "/dev/mapper/root", "subvol=/@log")
		}, []string{
			"root btrfs: " + verified + " | partition > disk",
			"home btrfs: " + verified + " | partition > disk",
		}},

		{"a RAID over one encrypted and one plain disk", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "half", "sda1")
			m.file(m.block("9:0", "virtual/block/md0")+"/md/level", "raid1")
			m.stack("md0", "dm-0", "sdb1")
			m.mount("md0", "/", "xfs", "/dev/md0")
		}, []string{"root xfs: raid > " + verified + " | raid > partition > disk"}},

		{"LUKS on a partition of a RAID", func(t *testing.T, m *machine) {
			m.file(m.block("9:0", "virtual/block/md0")+"/md/level", "raid1")
			m.stack("md0", "sda1", "sdb1")
			m.file(m.block("259:0", "virtual/block/md0/md0p1")+"/partition", "1")
			m.luks(t, "dm-0", "254:0", "root", "md0p1")
			m.mount("dm-0", "/", "xfs", "/dev/mapper/root")
		}, []string{"root xfs: luks2(aes-xts-plain64) > partition > raid > partition > disk" +
			" | luks2(aes-xts-plain64) > partition > raid > partition > disk"}},

		{"the plain cache of a bcache shows", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "slow", "sda1")
			m.block("252:0", "virtual/block/bcache0")
			m.stack("bcache0", "dm-0", "sdb1")
			m.mount("bcache0", "/", "ext4", "/dev/bcache0")
		}, []string{"root ext4: other > " + verified + " | other > partition > disk"}},

		{"the log device of an xfs counts", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "root", "sda1")
			m.mount("dm-0", "/", "xfs", "/dev/mapper/root", "logdev=/dev/sdb1")
		}, []string{"root xfs: " + verified + " | partition > disk"}},

		{"osquery#8402: OPAL is encryption too", func(t *testing.T, m *machine) {
			m.header("sda1", forge(t, capture(t, "luks2.img"), `"type":"crypt"`, `"type":"hw-opal-crypt"`))
			m.mapping("dm-0", "254:0", "root", uuidOf("LUKS2-OPAL", "root"), "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: luks2_opal(aes-xts-plain64) > partition > disk"}},

		{"verity and integrity are no encryption", func(t *testing.T, m *machine) {
			m.mapping("dm-0", "254:0", "usr", "CRYPT-VERITY-aaaa-usr", "sda1")
			m.mapping("dm-1", "254:1", "root", "CRYPT-INTEGRITY-bbbb-root", "sdb1")
			m.mount("dm-1", "/", "ext4", "/dev/mapper/root")
			m.mount("dm-0", "/usr", "erofs", "/dev/mapper/usr")
		}, []string{"root ext4: integrity > partition > disk", "data erofs: integrity > partition > disk"}},

		{"a LUKS2 volume that is being encrypted anew", func(t *testing.T, m *machine) {
			m.header("sda1", capture(t, "luks2-half-written.img"))
			m.mapping("dm-2", "254:2", "root-hotzone-forward", "CRYPT-SUBDEV-"+luks2UUID+"-root-hotzone-forward", "sda1")
			m.mapping("dm-3", "254:3", "root-overlay", "CRYPT-SUBDEV-"+luks2UUID+"-root-overlay", "dm-2", "sda1")
			m.mapping("dm-1", "254:1", "root", uuidOf("LUKS2", "root"), "dm-3")
			m.mount("dm-1", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: luks2(aes-xts-plain64 online-reencrypt-v2) > other > other > partition > disk" +
			" | luks2(aes-xts-plain64 online-reencrypt-v2) > other > partition > disk"}},

		{"LUKS2 with integrity has its header below", func(t *testing.T, m *machine) {
			m.header("sda1", capture(t, "luks2.img"))
			m.mapping("dm-0", "254:0", "root_dif", "CRYPT-INTEGRITY-"+luks2UUID+"-root_dif", "sda1")
			m.mapping("dm-1", "254:1", "root", uuidOf("LUKS2", "root"), "dm-0")
			m.mount("dm-1", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: luks2(aes-xts-plain64) > integrity > partition > disk"}},

		{"LUKS2 on a dm-integrity device has its header on it", func(t *testing.T, m *machine) {
			m.mapping("dm-0", "254:0", "checked", "CRYPT-INTEGRITY-checked", "sda1")
			m.luks(t, "dm-1", "254:1", "root", "dm-0")
			m.mount("dm-1", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: luks2(aes-xts-plain64) > integrity > partition > disk"}},

		{"BitLocker opened on Linux", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.mapping("dm-0", "254:0", "win", "CRYPT-BITLK-aaaa-win", "sdb1")
			m.mount("dm-0", "/srv", "ntfs3", "/dev/mapper/win")
		}, []string{
			"root ext4: partition > disk",
			"data ntfs3: bitlocker( unverified: BitLocker metadata is not read on Linux) > partition > disk",
		}},

		{"only the last mount on / is the root", func(t *testing.T, m *machine) {
			m.mount("0:2", "/", "rootfs", "rootfs")
			m.mount("sdb1", "/", "ext4", "/dev/sdb1")
			m.luks(t, "dm-0", "254:0", "root", "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
		}, []string{"root ext4: " + verified, "data ext4: partition > disk"}},

		{"bind mounts are no volumes of their own", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.mount("sda1", "/var/lib/docker", "ext4", "/dev/sda1")
			m.mount("0:44", "/run", "tmpfs", "tmpfs")
			m.mount("0:45", "/mnt/server", "nfs4", "server:/export")
		}, []string{"root ext4: partition > disk"}},

		{"a mount point with a blank", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.mount("sdb1", `/home/max\040mustermann`, "ext4", "/dev/sdb1")
		}, []string{"root ext4: partition > disk", "home ext4: partition > disk"}},

		{"boot, ESP and removable disks are listed apart", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "root", "sda1")
			m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
			m.block("8:2", "pci0000:00/0000:00:17.0/block/sda/sda2")
			m.file("sys/devices/pci0000:00/0000:00:17.0/block/sda/sda2/partition", "2")
			m.mount("sda2", "/boot", "ext4", "/dev/sda2")
			m.mount("sdb1", "/boot/efi", "vfat", "/dev/sdb1")
			m.block("8:32", "pci0000:00/0000:00:14.0/usb1/1-1/block/sdc")
			m.mount("sdc", "/media/max/stick", "vfat", "/dev/sdc")
			m.file(m.block("11:0", "pci0000:00/0000:00:17.0/block/sr0")+"/removable", "1\n")
			m.mount("sr0", "/media/cdrom", "iso9660", "/dev/sr0")
			m.file(m.block("179:0", "pci0000:00/0000:00:1a.0/mmc0:0001/block/mmcblk0")+"/device/type", "SD\n")
			m.mount("mmcblk0", "/media/max/card", "exfat", "/dev/mmcblk0")
		}, []string{
			"root ext4: " + verified,
			"boot ext4: partition > disk", "boot vfat: partition > disk",
			"removable vfat: disk", "removable iso9660: disk", "removable exfat: disk",
		}},

		{"a root on USB is still a root", func(t *testing.T, m *machine) {
			m.block("8:32", "pci0000:00/0000:00:14.0/usb1/1-1/block/sdc")
			m.mount("sdc", "/", "ext4", "/dev/sdc")
		}, []string{"root ext4: disk"}},

		{"snaps are left out", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.loop("loop0", "7:0", "/var/lib/snapd/snaps/core22_1.snap")
			m.mount("loop0", "/snap/core22/1", "squashfs", "/dev/loop0")
		}, []string{"root ext4: partition > disk"}},

		{"a file system in a file lies on what holds the file", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "home", "sda1")
			m.mount("sdb1", "/", "ext4", "/dev/sdb1")
			m.mount("dm-0", "/home", "ext4", "/dev/mapper/home")
			m.loop("loop0", "7:0", "/home/max/disk.img")
			m.mount("loop0", "/srv", "ext4", "/dev/loop0")
		}, []string{"root ext4: partition > disk", "home ext4: " + verified, "data ext4: loop > " + verified}},

		{"an overlay lies on all its layers", func(t *testing.T, m *machine) {
			m.luks(t, "dm-0", "254:0", "rw", "sda1")
			m.mount("sdb1", "/media/ro", "ext4", "/dev/sdb1")
			m.mount("dm-0", "/media/rw", "ext4", "/dev/mapper/rw")
			m.mount("0:30", "/", "overlay", "overlayroot", "lowerdir=/media/ro", "upperdir=/media/rw/up", "workdir=/media/rw/work")
		}, []string{
			"root overlay: partition > disk | " + verified,
			"data ext4: partition > disk", "data ext4: " + verified,
		}},

		{"an overlay over what nobody knows is not read", func(t *testing.T, m *machine) {
			m.mount("0:30", "/", "overlay", "overlay", "lowerdir=/gone:/lost")
		}, []string{"root overlay: FAILED the layers of an overlay lie on no known mount"}},

		{"a root in memory has no disk", func(t *testing.T, m *machine) {
			m.mount("0:30", "/", "tmpfs", "tmpfs")
		}, []string{"root tmpfs: NOT_APPLICABLE held in memory"}},

		{"a root on a server is not read", func(t *testing.T, m *machine) {
			m.mount("0:30", "/", "nfs", "server:/root")
		}, []string{"root nfs: FAILED a filesystem of type nfs lies on no block device"}},

		{"ecryptfs covers homes only", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.mount("0:50", "/home/max", "ecryptfs", "/home/.ecryptfs/max/.Private", "ecryptfs_cipher=aes")
		}, []string{"root ext4: partition > disk +ecryptfs(aes) home only"}},

		{"fscrypt covers homes only", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.file(".fscrypt/policies/aaaa", "")
		}, []string{"root ext4: partition > disk +fscrypt() home only"}},

		{"homed covers homes only", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.loop("loop0", "7:0", "/home/max.home")
			m.luks(t, "dm-0", "254:0", "home-max", "loop0")
			m.mount("dm-0", "/home/max", "ext4", "/dev/mapper/home-max")
		}, []string{
			"root ext4: partition > disk",
			"home ext4: luks2(aes-xts-plain64) > loop > partition > disk +homed() home only",
		}},

		{"a volume that fails takes no other with it", func(t *testing.T, m *machine) {
			m.mount("sda1", "/", "ext4", "/dev/sda1")
			m.mount("8:99", "/home", "ext4", "/dev/sdz9")
			m.mount("0:61", "/srv", "bcachefs", "/dev/sdb1")
		}, []string{
			"root ext4: partition > disk",
			"home ext4: FAILED looking up a block device: file does not exist",
			"data bcachefs: FAILED a filesystem of type bcachefs lies on no block device",
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine()
			m.disk("sda", "8:0", "8:1")
			m.disk("sdb", "8:16", "8:17")
			test.build(t, m)
			expectVolumes(t, m.host(), test.want)
		})
	}
}

func TestVolumesFailWhenTheListIsIncomplete(t *testing.T) {
	tests := []struct {
		name   string
		change func(m *machine)
		reason string
		want   []string // what is still reported
	}{
		{"no mounts", func(m *machine) { delete(m.MapFS, "proc/1/mountinfo") },
			"reading mounts: file does not exist", nil},
		{"mounts that make no sense", func(m *machine) { m.file("proc/1/mountinfo", "nonsense\n") },
			"mountinfo line 1: too few fields", nil},
		{"no root", func(m *machine) { m.file("proc/1/mountinfo", "") },
			"no mount on /", nil},
		{"swaps that make no sense", func(m *machine) { m.file("proc/swaps", "Filename\n/dev/sda1 magic 1 2 3\n") },
			"swaps line 2: unknown type", []string{"root ext4: " + verified}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := encryptedMachine(t)
			h := m.host()
			test.change(m)
			v := NewCollector(h, []Probe{volumesProbe()}).Collect(t.Context()).GetVolumes()
			if v.GetReading().GetState() != posturev1.ReadingState_READING_STATE_FAILED || v.GetReading().GetReason() != test.reason {
				t.Errorf("reading %v", v.GetReading())
			}
			if got := lines(v); !slices.Equal(got, test.want) {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

func TestVolumesOfAKernelWithoutSwap(t *testing.T) {
	m := encryptedMachine(t)
	h := m.host()
	delete(m.MapFS, "proc/swaps")
	expectVolumes(t, h, []string{"root ext4: " + verified})
}

func TestVolumesWithoutRootSayWhatNeedsIt(t *testing.T) {
	m := encryptedMachine(t)
	m.file("etc/crypttab", "root /dev/sda1 none luks\n")
	h := m.host()
	h.Files = forbidden{m.MapFS, []string{"dev/block/", "dev/sd", "etc/crypttab"}}
	expectVolumes(t, h, []string{
		"root ext4: luks2( unverified key unspecified: reading the LUKS header needs root) > partition > disk",
	})
}

func TestVolumesStackedTooDeepFail(t *testing.T) {
	m := newMachine()
	m.disk("sda", "8:0", "8:1")
	below := "sda1"
	for i := range maxDepth {
		name := "dm-" + string(rune('a'+i))
		m.mapping(name, "254:"+string(rune('0'+i%10))+string(rune('0'+i/10)), name, "LVM-x", below)
		below = name
	}
	m.mount(below, "/", "ext4", "/dev/"+below)
	expectVolumes(t, m.host(), []string{"root ext4: FAILED devices are stacked deeper than 16"})
}

func TestVolumesKeepTheirOrder(t *testing.T) {
	m := encryptedMachine(t)
	m.header("sda1", capture(t, "luks2-two-slots.img"))
	m.swap("/swapfile", "file")
	c := NewCollector(m.host(), []Probe{volumesProbe()})
	first := c.Collect(t.Context())
	for range 20 {
		if again := c.Collect(t.Context()); !proto.Equal(again, first) {
			t.Fatalf("evidence of an unchanged machine changed:\n%v\n%v", first, again)
		}
	}
}

// What is in names, labels and paths stays on the notebook, also when
// something fails.
func TestVolumesNameNoPerson(t *testing.T) {
	m := newMachine()
	m.disk("sda", "8:0", "8:1")
	m.disk("sdb", "8:16", "8:17")
	m.header("sda1", forge(t, capture(t, "luks2-two-slots.img"), `"type":"clevis"`, `"type":"key of Mustermann"`))
	m.mapping("dm-0", "254:0", "mustermann", uuidOf("LUKS2", "mustermann"), "sda1")
	m.file("etc/crypttab", "mustermann UUID=1 /home/mustermann/key luks\n")
	m.mount("dm-0", "/", "ext4", "/dev/mapper/mustermann")
	m.mount("sdb1", "/home/mustermann", "ext4", "/dev/sdb1")
	m.mount("0:40", "/media/mustermann/zfs", "zfs", "pool/mustermann")
	m.mount("0:41", "/media/mustermann/btrfs", "btrfs", "/dev/mapper/mustermann")
	m.mount("8:99", "/media/mustermann/gone", "ext4", "/dev/disk/by-label/mustermann")
	m.loop("loop0", "7:0", "/nowhere/mustermann.img")
	m.mount("loop0", "/media/mustermann/loop", "ext4", "/dev/loop0")
	m.swap("/home/mustermann/swap", "file")
	m.swap("/dev/mapper/mustermann-swap", "partition")

	ev := NewCollector(m.host(), []Probe{volumesProbe()}).Collect(t.Context())
	text := strings.ToLower(protojson.Format(ev))
	if n := len(ev.GetVolumes().GetVolumes()); n < 6 {
		t.Errorf("only %d volumes: the test has lost its subject", n)
	}
	for _, secret := range []string{"mustermann", luks2UUID, "7d9e5c44-", "/home", "/media", "sda1"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in the evidence:\n%s", secret, text)
		}
	}
}

// encryptedMachine has a LUKS2 root on sda1 and a plain disk sdb.
func encryptedMachine(t *testing.T) *machine {
	m := newMachine()
	m.disk("sda", "8:0", "8:1")
	m.disk("sdb", "8:16", "8:17")
	m.luks(t, "dm-0", "254:0", "root", "sda1")
	m.mount("dm-0", "/", "ext4", "/dev/mapper/root")
	return m
}

func expectVolumes(t *testing.T, h Host, want []string) *posturev1.Volumes {
	t.Helper()
	v := NewCollector(h, []Probe{volumesProbe()}).Collect(t.Context()).GetVolumes()
	if v.GetReading().GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
		t.Errorf("reading %v", v.GetReading())
	}
	if got := lines(v); !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	return v
}

// forbidden refuses to open some files, as the kernel does without root.
type forbidden struct {
	fstest.MapFS
	prefixes []string
}

func (f forbidden) Open(name string) (fs.File, error) {
	if slices.ContainsFunc(f.prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return f.MapFS.Open(name)
}

func (f forbidden) ReadFile(name string) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(file)
}
