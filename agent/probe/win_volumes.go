package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	sourceDisks = "FindFirstVolume"

	// Answers of GetDriveType.
	driveRemovable = 2
	driveRemote    = 4
	driveCD        = 5
	driveRAM       = 6
)

// collectWindowsVolumes reads every volume of the notebook's disks, with and
// without a drive letter, and what BitLocker says of it. The list of volumes is
// the system's own: what BitLocker does not list is not forgotten.
func collectWindowsVolumes(ctx context.Context, w *Windows, out *posturev1.Volumes) error {
	out.Reading.Source = sourceDisks + ", " + sourceBitLocker
	disks, errDisks := listDisks(ctx, w.Disks)
	protected, errBitLocker := listEncryptable(ctx, w.BitLocker)
	found := matchVolumes(disks, protected, errBitLocker, errDisks == nil)
	if len(found) > maxVolumes {
		return fmt.Errorf("more than %d volumes", maxVolumes)
	}
	slices.SortStableFunc(found, func(a, b *winVolume) int { return cmp.Compare(a.class, b.class) })
	for i, v := range found {
		out.Volumes = append(out.Volumes, v.report())
		for _, c := range v.contradictions() {
			c.Subject = fmt.Sprintf("volumes[%d].%s", i, c.Subject)
			out.Contradictions = append(out.Contradictions, c)
		}
	}
	errs := []error{errDisks, errBitLocker}
	if !slices.ContainsFunc(found, func(v *winVolume) bool { return v.class == posturev1.MountClass_MOUNT_CLASS_ROOT }) {
		errs = append(errs, errors.New("no volume is the one that Windows runs from"))
	}
	return errors.Join(errs...)
}

func listDisks(ctx context.Context, disks Disks) ([]DiskVolume, error) {
	if disks == nil {
		return nil, errors.New("volumes are not readable on this machine")
	}
	list, err := disks.Volumes(ctx)
	if err != nil {
		return list, fmt.Errorf("%s: %w", sourceDisks, withoutIdentifiers(err))
	}
	return list, nil
}

// listEncryptable says whether BitLocker is not there to ask by an error that
// wraps ErrNotFound.
func listEncryptable(ctx context.Context, locker BitLocker) ([]EncryptableVolume, error) {
	if locker == nil {
		return nil, errors.New("BitLocker cannot be asked on this machine")
	}
	list, err := locker.Volumes(ctx)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("%s: this Windows has no BitLocker to ask: %w", sourceBitLocker, ErrNotFound)
	case err != nil:
		return list, fmt.Errorf("%s: %w", sourceBitLocker, withoutIdentifiers(err))
	}
	return list, nil
}

// winVolume is one volume on its way into evidence.
type winVolume struct {
	class posturev1.MountClass
	disk  DiskVolume
	// bitlocker is nil when BitLocker does not list the volume; err is why that
	// is a failure, absent that BitLocker itself is not there.
	bitlocker *encryptable
	err       error
	absent    bool
	// unlisted: only BitLocker knows it.
	unlisted bool
}

// matchVolumes joins the two lists. errBitLocker is why the second is not
// complete; allDisks says that the first is.
func matchVolumes(disks []DiskVolume, protected []EncryptableVolume, errBitLocker error, allDisks bool) []*winVolume {
	var found []*winVolume
	for _, d := range disks {
		switch d.DriveType {
		case driveRemote, driveCD, driveRAM:
			continue
		}
		found = append(found, matchVolume(d, protected, errBitLocker))
	}
	for _, p := range protected {
		known := slices.ContainsFunc(disks, func(d DiskVolume) bool { return sameVolume(d.Volume, p.Volume) })
		if !known {
			found = append(found, &winVolume{class: classByBitLocker(p), bitlocker: describeBitLocker(p), unlisted: allDisks})
		}
	}
	return found
}

func matchVolume(d DiskVolume, protected []EncryptableVolume, errBitLocker error) *winVolume {
	v := &winVolume{disk: d}
	var listed []EncryptableVolume
	for _, p := range protected {
		if sameVolume(d.Volume, p.Volume) {
			listed = append(listed, p)
		}
	}
	if len(listed) == 1 {
		v.bitlocker = describeBitLocker(listed[0])
	}
	v.class = windowsClass(d, listed)
	switch {
	case len(listed) > 1:
		v.err = fmt.Errorf("BitLocker lists this volume %d times", len(listed))
	case v.bitlocker != nil || v.class == posturev1.MountClass_MOUNT_CLASS_BOOT:
	case errBitLocker != nil:
		v.err, v.absent = errBitLocker, errors.Is(errBitLocker, ErrNotFound)
	default:
		v.err = errors.New("BitLocker does not list this volume")
	}
	return v
}

// sameVolume compares volume GUID paths, which end in a backslash or not.
func sameVolume(a, b string) bool {
	return strings.EqualFold(strings.TrimSuffix(a, `\`), strings.TrimSuffix(b, `\`))
}

// windowsClass is what a volume is used for. Partitions that only start or
// repair Windows are told by their type; one for repairs that has a letter holds
// what people put there. A disk on a cable counts as fixed for GetDriveType;
// BitLocker knows it as portable.
func windowsClass(d DiskVolume, listed []EncryptableVolume) posturev1.MountClass {
	fixed := func(p EncryptableVolume) bool { return p.VolumeType == nil || *p.VolumeType != 2 }
	switch {
	case d.System:
		return posturev1.MountClass_MOUNT_CLASS_ROOT
	case startsWindows(d.PartitionType), repairsWindows(d.PartitionType) && d.Letters == 0:
		return posturev1.MountClass_MOUNT_CLASS_BOOT
	case d.DriveType == driveRemovable, len(listed) > 0 && !slices.ContainsFunc(listed, fixed):
		return posturev1.MountClass_MOUNT_CLASS_REMOVABLE
	}
	return posturev1.MountClass_MOUNT_CLASS_DATA
}

// startsWindows is true for the partition types of EFI system and Microsoft
// reserved partitions, by GPT and by MBR.
func startsWindows(partitionType string) bool {
	switch strings.ToLower(partitionType) {
	case "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "e3c9e316-0b5c-4db8-817d-f92df00215ae", "mbr-ef":
		return true
	}
	return false
}

// repairsWindows is true for the partition types of recovery partitions.
func repairsWindows(partitionType string) bool {
	switch strings.ToLower(partitionType) {
	case "de94bba4-06d1-4d40-a16a-bfd50179d6ac", "mbr-27":
		return true
	}
	return false
}

// classByBitLocker serves where the system's own list has no such volume.
func classByBitLocker(p EncryptableVolume) posturev1.MountClass {
	switch {
	case p.VolumeType == nil:
	case *p.VolumeType == 0:
		return posturev1.MountClass_MOUNT_CLASS_ROOT
	case *p.VolumeType == 2:
		return posturev1.MountClass_MOUNT_CLASS_REMOVABLE
	}
	return posturev1.MountClass_MOUNT_CLASS_DATA
}

// report is the volume as evidence.
func (v *winVolume) report() *posturev1.Volume {
	out := &posturev1.Volume{
		Reading:    &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, Source: sourceDisks},
		MountClass: v.class,
	}
	if v.disk.FileSystem != "" { // a locked volume shows none
		out.Filesystem = word(strings.ToLower(v.disk.FileSystem))
	}
	if v.disk.Problem != "" {
		out.Reading.Reason = oneLine("file system or partition type: " + cleared(v.disk.Problem))
	}
	path := &posturev1.StoragePath{}
	switch {
	case v.err != nil:
		out.Reading.State = posturev1.ReadingState_READING_STATE_FAILED
		out.Reading.Reason = oneLine(v.err.Error())
		path.Layers = append(path.Layers, &posturev1.StorageLayer{Reason: oneLine(v.err.Error())})
	case v.bitlocker != nil:
		if l := v.bitlocker.layer(); l != nil {
			path.Layers = append(path.Layers, l)
		}
		out.Bitlocker = v.bitlocker.out
	}
	if v.absent {
		out.Bitlocker = &posturev1.BitLocker{Reading: &posturev1.Reading{
			State:  posturev1.ReadingState_READING_STATE_NOT_APPLICABLE,
			Source: sourceBitLocker,
			Reason: "this Windows has no BitLocker to ask",
		}}
	}
	path.Layers = append(path.Layers, &posturev1.StorageLayer{Type: posturev1.LayerType_LAYER_TYPE_DISK})
	out.Paths = []*posturev1.StoragePath{path}
	return out
}

// contradictions of the volume, with subjects below it. A disk that was
// unplugged between the two lists is none.
func (v *winVolume) contradictions() []*posturev1.Contradiction {
	var list []*posturev1.Contradiction
	if v.unlisted && v.class != posturev1.MountClass_MOUNT_CLASS_REMOVABLE {
		list = append(list, &posturev1.Contradiction{
			Subject: "mount_class", SourceA: sourceBitLocker, SaysA: "the volume is there", SourceB: sourceDisks, SaysB: "it is not",
		})
	}
	if v.bitlocker != nil {
		for _, c := range v.bitlocker.contradictions {
			c.Subject = "bitlocker." + c.Subject
			list = append(list, c)
		}
	}
	return list
}

// cleared takes volume names and other identifiers out of a text.
func cleared(text string) string {
	const volume, guid = `\\\\[?.]\\\S*`, `\{?[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\}?`
	return regexp.MustCompile(volume+"|"+guid).ReplaceAllString(text, "(volume)")
}

// clearedError is an error whose text is cleared.
type clearedError struct{ error }

func (e clearedError) Error() string { return cleared(e.error.Error()) }

// Unwrap keeps what the error is known as.
func (e clearedError) Unwrap() error { return e.error }

func withoutIdentifiers(err error) error { return clearedError{err} }
