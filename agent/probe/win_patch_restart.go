package probe

import (
	"errors"
	"fmt"
	"slices"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// Keys whose presence alone says that servicing waits for a restart.
const (
	componentRestartKey = `SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing\RebootPending`
	updateRestartKey    = `SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update\RebootRequired`

	componentRestart = "Component Based Servicing"
	updateRestart    = "Windows Update"
	systemInfo       = "Microsoft.Update.SystemInfo"
)

// strongRestartSigns are those that updates of Windows leave.
func strongRestartSigns(r Registry) ([]string, error) {
	if r == nil {
		return nil, errors.New("the registry is not readable on this machine")
	}
	var signs []string
	var errs []error
	for _, s := range []struct{ key, name string }{
		{componentRestartKey, componentRestart}, {updateRestartKey, updateRestart},
	} {
		there, err := r.Exists(s.key)
		if err != nil && !errors.Is(err, ErrNotFound) {
			errs = append(errs, fmt.Errorf("registry %s: %w", s.name, err))
		}
		if there {
			signs = append(signs, s.name)
		}
	}
	return signs, errors.Join(errs...)
}

const (
	sessionKey      = `SYSTEM\CurrentControlSet\Control\Session Manager`
	computerNameKey = `SYSTEM\CurrentControlSet\Control\ComputerName`
	// clientRestartKey is where the client of Configuration Manager notes a
	// restart that it plans. From documentation of its users, not Microsoft's.
	clientRestartKey = `SOFTWARE\Microsoft\SMS\Mobile Client\Reboot Management\RebootData`
)

// weakRestartSigns may have another reason: any installer leaves files to be
// renamed, a new computer name is no update. The names stay on the notebook.
func weakRestartSigns(r Registry) ([]string, error) {
	var signs []string
	var errs []error
	for _, name := range []string{"PendingFileRenameOperations", "PendingFileRenameOperations2"} {
		v, set, err := registryValue(r, sessionKey, name)
		if set && slices.ContainsFunc(v.Lines, func(line string) bool { return line != "" }) {
			signs = append(signs, name)
		}
		errs = append(errs, err)
	}
	active, _, errActive := registryText(r, computerNameKey+`\ActiveComputerName`, "ComputerName")
	coming, set, errComing := registryText(r, computerNameKey+`\ComputerName`, "ComputerName")
	if set && active != "" && active != coming {
		signs = append(signs, "a new computer name")
	}
	errs = append(errs, errActive, errComing)
	if r != nil {
		planned, err := r.Exists(clientRestartKey)
		if planned {
			signs = append(signs, "Configuration Manager")
		}
		if !errors.Is(err, ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return signs, errors.Join(errs...)
}

// restartPending joins what says that a restart is pending. An update that is
// installed and stays on the list of pending ones waits for one
// (PSWindowsUpdate#46). It is not pending only when every strong sign in the
// registry could be looked for.
func restartPending(strong, weak []string, errStrong error, a *UpdateSearch) *posturev1.RebootPending {
	out := &posturev1.RebootPending{Sources: slices.Clone(strong), WeakSources: weak}
	if a != nil && a.Restart != nil && a.Restart.Result == 0 && a.Restart.Required {
		out.Sources = append(out.Sources, systemInfo)
	}
	if a != nil {
		for _, u := range a.Pending {
			if u.Reboot && u.Downloaded {
				out.Sources = append(out.Sources, knowledgeBase(u.KBs))
			}
		}
	}
	slices.Sort(out.Sources)
	out.Sources = slices.Compact(out.Sources)
	switch {
	case len(out.Sources) > 0:
		out.Pending = yes
	case errStrong == nil:
		out.Pending = no
	}
	return out
}

// restartContradiction is one key and one function of Windows Update that tell
// different things. The answer is as old as the key: it is asked for again when
// the key comes or goes.
func restartContradiction(strong []string, a *UpdateSearch) *posturev1.Contradiction {
	if a == nil || a.Restart == nil || a.Restart.Result != 0 || a.Restart.Required || !slices.Contains(strong, updateRestart) {
		return nil
	}
	return &posturev1.Contradiction{
		Subject: "patch.reboot_pending.pending",
		SourceA: `registry Auto Update\RebootRequired`, SaysA: "required",
		SourceB: systemInfo, SaysB: "not required",
	}
}
