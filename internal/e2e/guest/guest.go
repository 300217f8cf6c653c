//go:build linux

// Package guest boots a virtual machine in which the agent meets what the
// machine of the tests may not have: device-mapper, LUKS volumes, a TPM and
// Secure Boot.
//
// Rules. The machine is emulated (qemu without KVM), so it runs anywhere and
// needs no root. Its kernel is Debian's, fetched once and kept in the user's
// cache; its programs and their libraries are those of this machine. Its root
// is a LUKS2 volume that it makes itself at each boot. What it prints on its
// console is the result. Nothing of it is left when the test ends.
package guest

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// Guest is a machine to boot.
type Guest struct {
	// Programs to take along, by path; BusyBox and cryptsetup always come.
	Programs []string
	// Modules of the kernel to load beside those the machine itself needs.
	Modules []string
	// Script runs as root in BusyBox's shell, on the encrypted root. The second
	// disk has the partitions /dev/vdb1 to /dev/vdb4, of partitionSize each.
	Script string
}

// The firmware, which has Secure Boot on and the keys of Debian's ovmf package
// for tests. It does not check a kernel that qemu hands over itself: the guest
// shows how Secure Boot is read, not that it holds.
const (
	firmware          = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd"
	firmwareVariables = "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd"
)

// limit is how long a guest may run on a busy machine.
const limit = 5 * time.Minute

// done is what the guest prints last.
const done = "@@ done"

//go:embed init.sh
var initScript []byte

// Run boots the guest, waits until its script has ended, and returns what it
// printed. It skips the test, loudly, where it cannot run.
func (g Guest) Run(t testing.TB) string {
	t.Helper()
	require(t)
	dir, err := os.MkdirTemp("", "pfg-guest-") // short: the TPM's socket lies in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }

	k := debianKernel(t)
	g.writeInitrd(t, at("initrd"), k)
	writeDisk(t, at("vda"), rootSize)
	writeDisk(t, at("vdb"), partitionSize, partitionSize, partitionSize, partitionSize)
	variables, err := os.ReadFile(firmwareVariables)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("firmware"), variables, 0o600); err != nil {
		t.Fatal(err)
	}
	startTPM(t, dir, at("tpm"))

	arguments := []string{
		"-machine", "q35,smm=on", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "1",
		"-nodefaults", "-nographic", "-no-reboot", "-net", "none",
		// The third serial port: the firmware paints on the first two.
		"-chardev", "stdio,id=console", "-device", "isa-serial,index=2,chardev=console",
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + firmware,
		"-drive", "if=pflash,format=raw,unit=1,file=" + at("firmware"),
		"-kernel", k.image, "-initrd", at("initrd"), "-append", "console=ttyS2 loglevel=1 panic=-1",
		"-chardev", "socket,id=tpm,path=" + at("tpm"), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-device", "virtio-rng-pci",
	}
	for _, disk := range []string{"vda", "vdb"} {
		arguments = append(arguments, "-device", "virtio-blk-pci,drive="+disk,
			"-drive", fmt.Sprintf("if=none,format=raw,cache=unsafe,id=%s,file=%s", disk, at(disk)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	// Other tests measure times meanwhile.
	machine := e2e.Start(t, "guest", exec.Command("nice", append([]string{"-n", "10", "qemu-system-x86_64"}, arguments...)...))
	machine.Await(t, ctx, done)
	return machine.Output()
}

// startTPM starts a TPM 2.0 that is new at each start.
func startTPM(t testing.TB, state, socket string) {
	t.Helper()
	tpm := e2e.Start(t, "tpm", exec.Command("swtpm", "socket", "--tpm2",
		"--tpmstate", "dir="+state, "--ctrl", "type=unixio,path="+socket, "--terminate"))
	listens := func() bool {
		_, err := os.Stat(socket)
		return err == nil || tpm.Ended()
	}
	if !e2e.Eventually(t, limit, listens) || tpm.Ended() {
		t.Fatalf("the TPM does not start:\n%s", tpm.Output())
	}
}

// require skips the test unless all that a guest is made of is installed.
func require(t testing.TB) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skipf("SKIPPED: the guest takes its programs from this machine, and it is no amd64 but %s", runtime.GOARCH)
	}
	for _, p := range []string{"qemu-system-x86_64", "swtpm", "busybox", "cryptsetup", "modprobe", "depmod", "ldd"} {
		find(t, p)
	}
	for _, file := range []string{firmware, firmwareVariables} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("SKIPPED: this test needs the firmware of Debian's ovmf: %v", err)
		}
	}
}

// find returns the path of a program, also of one for the administrator.
func find(t testing.TB, program string) string {
	t.Helper()
	for _, name := range []string{program, "/usr/sbin/" + program, "/sbin/" + program} {
		if found, err := exec.LookPath(name); err == nil {
			return found
		}
	}
	t.Skipf("SKIPPED: this test needs the program %q", program)
	return ""
}

// output runs a program to its end and returns what it printed.
func output(t testing.TB, program string, arguments ...string) string {
	t.Helper()
	out, err := command(t, program, arguments...).Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, arguments, err, said(err))
	}
	return string(out)
}

func command(t testing.TB, program string, arguments ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), find(t, program), arguments...)
}

// said is what a program that failed complained of.
func said(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return string(e.Stderr)
	}
	return ""
}
