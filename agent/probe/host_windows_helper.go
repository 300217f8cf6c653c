//go:build windows

package probe

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// asideReadings are the readings of this system that are made in a process of
// their own.
func asideReadings() map[string]asideRead {
	return map[string]asideRead{
		asideBitLocker: asideReading(readBitLocker),
		asideUpdates:   asideReading(readUpdates),
		asideFirewall:  asideReading(readFirewall),
		asideAntivirus: asideReading(readAntivirus),
		asideLicences:  asideReading(readLicences),
		asideDialups:   asideReading(readDialups),
		asideProgram:   asideQuestion(readProgram),
	}
}

// readAsides asks this very binary. When the system does not tell where it is,
// every question says so.
func readAsides(now func() time.Time) asides {
	program, err := os.Executable()
	if err != nil {
		program = "" // starting it then fails with a plain reason
	}
	return newAsides(now, asideProcess{
		program: program, arguments: []string{AsideCommand}, prepare: quietly, confine: inJob,
	}.launch)
}

// quietly keeps the process from showing a window and from being in anybody's
// way.
func quietly(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		HideWindow:    true,
		CreationFlags: windows.CREATE_NO_WINDOW | windows.BELOW_NORMAL_PRIORITY_CLASS,
	}
}

// inJob puts the process into a job object of its own, which ends it when the
// job's last handle is closed: by release, or because the service is gone. The
// process waits for its standard input until then, so nothing happens outside.
func inJob(process *os.Process, limits asideLimits) (release func(), err error) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return nil, fmt.Errorf("creating job: %w", err)
	}
	release = func() { _ = windows.CloseHandle(job) }
	info := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{
		BasicLimitInformation: windows.JOBOBJECT_BASIC_LIMIT_INFORMATION{
			LimitFlags: windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | windows.JOB_OBJECT_LIMIT_PROCESS_MEMORY |
				windows.JOB_OBJECT_LIMIT_ACTIVE_PROCESS | windows.JOB_OBJECT_LIMIT_PRIORITY_CLASS |
				windows.JOB_OBJECT_LIMIT_DIE_ON_UNHANDLED_EXCEPTION,
			ActiveProcessLimit: 1,
			PriorityClass:      windows.BELOW_NORMAL_PRIORITY_CLASS,
		},
		ProcessMemoryLimit: uintptr(limits.memory),
	}
	if _, err := windows.SetInformationJobObject(job, windows.JobObjectExtendedLimitInformation,
		uintptr(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info))); err != nil {
		release()
		return nil, fmt.Errorf("limiting job: %w", err)
	}
	var errAssign error
	if err := process.WithHandle(func(handle uintptr) {
		errAssign = windows.AssignProcessToJobObject(job, windows.Handle(handle))
	}); err != nil {
		errAssign = err
	}
	if errAssign != nil {
		release()
		return nil, fmt.Errorf("entering job: %w", errAssign)
	}
	return release, nil
}
