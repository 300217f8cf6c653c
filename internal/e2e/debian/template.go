//go:build linux

package debian

import (
	"context"
	_ "embed"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/qemu"
)

const (
	// recipe names the cached disk; whoever changes how it is made, counts on.
	recipe  = "debian12-1"
	suite   = "bookworm"
	archive = "http://deb.debian.org/debian"
	// packages make a small Debian that boots with systemd.
	packages = "systemd-sysv,dbus,udev,nftables,iproute2"

	sector      = 512
	firstSector = 2048
	// diskSize is far more than the Debian takes; in bytes.
	diskSize = 1 << 30
)

// files are what the guest's Debian has beside its packages.
var files = map[string]string{
	"etc/hostname": "notebook\n",
	"etc/fstab":    "/dev/mapper/root / ext4 defaults 0 1\n",
	"etc/systemd/system/lan.service": "[Unit]\nDescription=The emulator's network\nBefore=network.target\nWants=network.target\n" +
		"[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
		"ExecStart=ip address add 10.0.2.15/24 dev eth0\nExecStart=ip link set eth0 up\nExecStart=ip route add default via 10.0.2.2\n" +
		"[Install]\nWantedBy=multi-user.target\n",
	"etc/nftables.conf": "flush ruleset\ntable inet filter {\n chain input {\n  type filter hook input priority filter; policy drop;\n" +
		"  ct state established,related accept\n  iif lo accept\n }\n}\n",
	// A root shell on a port of the emulator: what the test says, it does.
	"etc/systemd/system/channel.service": "[Unit]\nDescription=Commands of the test\nAfter=multi-user.target\n" +
		"[Service]\nEnvironment=HOME=/root LC_ALL=C.UTF-8\nWorkingDirectory=/root\n" +
		"ExecStart=/bin/sh -c 'exec sh /usr/local/lib/channel <>/dev/virtio-ports/channel >&0 2>&0'\n" +
		"[Install]\nWantedBy=multi-user.target\n",
	"usr/local/lib/channel": channel,
}

// unneeded are units that Debian starts and nobody here needs: each costs seconds.
const unneeded = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer systemd-timesyncd.service " +
	"getty@tty1.service serial-getty@ttyS0.service systemd-pstore.service systemd-network-generator.service " +
	"modprobe@configfs.service modprobe@drm.service modprobe@fuse.service modprobe@loop.service modprobe@dm_mod.service " +
	"dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount"

//go:embed channel.sh
var channel string

// prepareScript finishes the unpacked Debian: prepare DIR.
const prepareScript = `set -e
chroot "$1" systemctl -q enable lan nftables channel
chroot "$1" systemctl -q set-default multi-user
chroot "$1" systemctl -q mask ` + unneeded + `
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/locale "$1"/usr/share/man
: >"$1/etc/machine-id"`

// template returns the disk that every guest begins with.
func template(t testing.TB, k qemu.Kernel) string {
	t.Helper()
	dir := e2e.Cached(t, recipe, func(dir string) { makeTemplate(t, k, dir) })
	return filepath.Join(dir, "disk")
}

func makeTemplate(t testing.TB, k qemu.Kernel, dir string) {
	t.Helper()
	work := t.TempDir()
	root := filepath.Join(work, "root")
	out, err := command(t, "debootstrap", "--variant=minbase", "--include="+packages, suite, root, archive).CombinedOutput()
	if err != nil {
		t.Skipf("SKIPPED: this test needs a Debian 12 from %s: %v\n%s", archive, err, out[max(0, len(out)-2000):])
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Join(root, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "sh", "-c", prepareScript, "prepare", root)
	tree, made := filepath.Join(work, "tree"), filepath.Join(dir, "disk")
	run(t, "tar", "--numeric-owner", "-C", root, "-cf", tree, ".")
	writeDisk(t, made)

	initrd := filepath.Join(work, "initrd")
	newInitrd(t, k).Write(initrd)
	arguments := append(hardware(k, initrd, "make"), disk("vda", made)...)
	making := qemu.Start(t, "making a Debian", append(arguments, disk("vdb", tree)...)...)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	making.Await(t, ctx, "@@ made")
	if !e2e.Eventually(t, limit, making.Ended) {
		t.Fatalf("the guest does not end:\n%s", making.Output())
	}
}

// writeDisk makes a disk with one partition (an MBR: its first entry of 16
// bytes is at 446). It takes no room until it is written to.
func writeDisk(t testing.TB, name string) {
	t.Helper()
	record := make([]byte, sector)
	record[510], record[511] = 0x55, 0xaa
	entry := record[446:]
	entry[4] = 0x83 // Linux
	binary.LittleEndian.PutUint32(entry[8:], firstSector)
	binary.LittleEndian.PutUint32(entry[12:], diskSize/sector-firstSector)
	if err := os.WriteFile(name, record, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, diskSize); err != nil {
		t.Fatal(err)
	}
}

func command(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), "nice", append([]string{"-n", "10", qemu.Find(t, program)}, args...)...)
}

func run(t testing.TB, program string, args ...string) {
	t.Helper()
	if out, err := command(t, program, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, out)
	}
}
