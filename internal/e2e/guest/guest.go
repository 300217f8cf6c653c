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
	"path/filepath"
	"testing"
	"time"

	"pfoertner/internal/e2e/qemu"
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

// needed are the modules that every guest loads: its disks, its random
// numbers, its firmware's variables, and its encrypted root.
var needed = []string{
	"virtio_pci", "virtio_blk", "virtio_rng", "efivarfs",
	"dm-crypt", "xts", "aesni-intel", "af_alg", "algif_skcipher",
}

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

	k := qemu.DebianKernel(t)
	initrd := qemu.NewInitrd(t, initScript,
		append([]string{qemu.Find(t, "busybox"), qemu.Find(t, "cryptsetup")}, g.Programs...), k, append(needed, g.Modules...))
	initrd.Add("bin/guest-script", 0o755, []byte("#!/bin/sh\n"+g.Script+"\necho '"+done+"'\npoweroff -f\n"))
	initrd.Write(at("initrd"))
	writeDisk(t, at("vda"), rootSize)
	writeDisk(t, at("vdb"), partitionSize, partitionSize, partitionSize, partitionSize)
	variables, err := os.ReadFile(firmwareVariables)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("firmware"), variables, 0o600); err != nil {
		t.Fatal(err)
	}
	qemu.StartTPM(t, dir, at("tpm"))

	arguments := []string{
		"-machine", "q35,smm=on", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-smp", "1",
		"-nodefaults", "-nographic", "-no-reboot", "-net", "none",
		// The third serial port: the firmware paints on the first two.
		"-chardev", "stdio,id=console", "-device", "isa-serial,index=2,chardev=console",
		"-global", "driver=cfi.pflash01,property=secure,value=on",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + firmware,
		"-drive", "if=pflash,format=raw,unit=1,file=" + at("firmware"),
		"-kernel", k.Image, "-initrd", at("initrd"), "-append", "console=ttyS2 loglevel=1 panic=-1",
		"-chardev", "socket,id=tpm,path=" + at("tpm"), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-device", "virtio-rng-pci",
	}
	for _, disk := range []string{"vda", "vdb"} {
		arguments = append(arguments, "-device", "virtio-blk-pci,drive="+disk,
			"-drive", fmt.Sprintf("if=none,format=raw,cache=unsafe,id=%s,file=%s", disk, at(disk)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	machine := qemu.Start(t, "guest", arguments...)
	machine.Await(t, ctx, done)
	return machine.Output()
}

// require skips the test unless all that a guest is made of is installed.
func require(t testing.TB) {
	t.Helper()
	qemu.Require(t, "busybox", "cryptsetup")
	for _, file := range []string{firmware, firmwareVariables} {
		if _, err := os.Stat(file); err != nil {
			t.Skipf("SKIPPED: this test needs the firmware of Debian's ovmf: %v", err)
		}
	}
}
