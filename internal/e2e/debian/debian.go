//go:build linux

// Package debian boots a Debian 12 with systemd whose root is a LUKS2 volume: a
// notebook on which packages are installed as on a real one.
//
// Rules. The machine is emulated. Its disk is made once, by itself, and kept in
// the user's cache; a test gets a copy. Commands go
// through a port of the emulator, so that no network and no login is part of
// what is tried. The guest reaches this machine's loopback at 10.0.2.2, and
// nothing else.
package debian

import (
	"archive/tar"
	"bufio"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/qemu"
)

// limit is how long a guest may take to boot, or a command to end, on a busy
// machine.
const limit = 5 * time.Minute

//go:embed init.sh
var initScript []byte

// Guest is a running machine.
type Guest struct {
	// BootID is new after each boot (proc(5), random/boot_id).
	BootID string

	dir     string
	kernel  qemu.Kernel
	machine *e2e.Program
	port    net.Conn
	answers *bufio.Reader
}

// New boots a machine as new, whose TPM is of a maker (nil: of nobody), with
// files of this machine in /files. It skips the test, loudly, where it cannot.
func New(t testing.TB, maker *e2e.TPMMaker, files ...string) *Guest {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test makes a Debian with debootstrap and needs root")
	}
	qemu.Require(t, "busybox", "cryptsetup", "debootstrap", "mkfs.ext4")
	dir, err := os.MkdirTemp("", "pfg-debian-") // short: sockets lie in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	k := qemu.DebianKernel(t)
	g := &Guest{dir: dir, kernel: k}
	newInitrd(t, k).Write(g.at("initrd"))
	run(t, "cp", "--sparse=always", "--reflink=auto", template(t, k), g.at("disk"))
	writeArchive(t, g.at("files"), files)
	if maker != nil {
		maker.Make(t, dir)
	}
	g.boot(t)
	g.Must(t, "mkdir /files && tar -x -f /dev/vdb -C /files")
	return g
}

// newInitrd opens the encrypted root. What the running Debian needs of the
// kernel's modules is loaded there, too: it has none of its own.
func newInitrd(t testing.TB, k qemu.Kernel) *qemu.Initrd {
	t.Helper()
	return qemu.NewInitrd(t, initScript,
		[]string{qemu.Find(t, "busybox"), qemu.Find(t, "cryptsetup"), qemu.Find(t, "mkfs.ext4")}, k,
		[]string{
			"virtio_pci", "virtio_blk", "virtio_rng", "virtio_net", "virtio_console",
			"dm-crypt", "xts", "aesni-intel", "af_alg", "algif_skcipher", "ext4", "crc32c_generic",
			"nf_tables", "nft_ct", "unix", "ipv6",
		})
}

func (g *Guest) at(name string) string { return filepath.Join(g.dir, name) }

// hardware is what every machine has. Its console is the emulator's output.
func hardware(k qemu.Kernel, initrd, words string) []string {
	return []string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-smp", "1",
		"-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio",
		"-kernel", k.Image, "-initrd", initrd, "-append", "console=ttyS0 loglevel=1 panic=-1 " + words,
		"-device", "virtio-rng-pci",
	}
}

func disk(id, file string) []string {
	return []string{"-device", "virtio-blk-pci,drive=" + id, "-drive", fmt.Sprintf("if=none,cache=unsafe,id=%s,format=raw,file=%s", id, file)}
}

// boot switches the machine on and waits until it takes commands.
func (g *Guest) boot(t testing.TB) {
	t.Helper()
	for _, socket := range []string{"tpm", "channel"} {
		_ = os.Remove(g.at(socket)) // of the boot before
	}
	qemu.StartTPM(t, g.dir, g.at("tpm"))
	arguments := append(hardware(g.kernel, g.at("initrd"), "systemd.show_status=0 net.ifnames=0"),
		"-chardev", "socket,id=tpm,path="+g.at("tpm"), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-nic", "user,model=virtio-net-pci,restrict=off,ipv6=off",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=channel,server=on,wait=off,path="+g.at("channel"),
		"-device", "virtserialport,chardev=channel,name=channel")
	arguments = append(arguments, disk("vda", g.at("disk"))...)
	g.machine = qemu.Start(t, "guest", append(arguments, disk("vdb", g.at("files"))...)...)
	var err error
	connected := func() bool {
		g.port, err = net.Dial("unix", g.at("channel"))
		return err == nil || g.machine.Ended()
	}
	if !e2e.EventuallyEvery(t, 10*time.Millisecond, limit, connected) || err != nil {
		t.Fatalf("the guest does not start: %v\n%s", err, g.machine.Output())
	}
	port := g.port
	t.Cleanup(func() { port.Close() })
	g.answers = bufio.NewReader(g.port)
	g.BootID = strings.TrimPrefix(g.line(t, "booting", "@@ ready "), "@@ ready ")
}

// Reboot restarts the machine as its user does, and waits until it takes
// commands again.
func (g *Guest) Reboot(t testing.TB) {
	t.Helper()
	g.send(t, "systemctl reboot")
	if !e2e.Eventually(t, limit, g.machine.Ended) {
		t.Fatalf("the guest does not restart:\n%s", g.machine.Output())
	}
	g.port.Close()
	g.boot(t)
}

// Run runs a shell command as root and returns what it printed on both streams
// and its exit status.
func (g *Guest) Run(t testing.TB, command string) (printed string, status int) {
	t.Helper()
	g.send(t, command)
	var encoded strings.Builder
	for {
		line := g.line(t, command, "")
		if code, ok := strings.CutPrefix(line, "@@ "); ok {
			output, err := base64.StdEncoding.DecodeString(encoded.String())
			status, number := strconv.Atoi(code)
			if err := errors.Join(err, number); err != nil {
				t.Fatalf("the guest's answer to %q: %v", command, err)
			}
			return string(output), status
		}
		encoded.WriteString(line)
	}
}

// Must is Run for a command that has to succeed.
func (g *Guest) Must(t testing.TB, command string) string {
	t.Helper()
	printed, status := g.Run(t, command)
	if status != 0 {
		t.Fatalf("%s\nended with %d:\n%s", command, status, printed)
	}
	return printed
}

func (g *Guest) send(t testing.TB, command string) {
	t.Helper()
	if _, err := fmt.Fprintf(g.port, "@@\n%s\n@@\n", command); err != nil {
		t.Fatalf("the guest takes no commands: %v", err)
	}
}

// line reads lines from the guest until one begins with prefix.
func (g *Guest) line(t testing.TB, during, prefix string) string {
	t.Helper()
	if err := g.port.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := g.answers.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: the guest does not answer: %v\n%s", during, err, g.machine.Output())
		}
		if line = strings.TrimSuffix(line, "\n"); strings.HasPrefix(line, prefix) {
			return line
		}
	}
}

// writeArchive writes files of this machine, under their own names, into an
// archive that is attached as a disk.
func writeArchive(t testing.TB, name string, files []string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteHeader(&tar.Header{Name: filepath.Base(file), Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}
