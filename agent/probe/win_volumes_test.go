package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	basicData = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"
	efiSystem = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	reserved  = "e3c9e316-0b5c-4db8-817d-f92df00215ae"
	recovery  = "de94bba4-06d1-4d40-a16a-bfd50179d6ac"
)

type fakeBitLocker struct {
	volumes []EncryptableVolume
	err     error
}

func (f fakeBitLocker) Volumes(context.Context) ([]EncryptableVolume, error) { return f.volumes, f.err }

type fakeDisks struct {
	volumes []DiskVolume
	err     error
}

func (f fakeDisks) Volumes(context.Context) ([]DiskVolume, error) { return f.volumes, f.err }

func guid(n int) string { return fmt.Sprintf(`\\?\Volume{00000000-0000-4000-8000-%012d}\`, n) }

func windowsVolumes(t *testing.T, disks Disks, locker BitLocker) *posturev1.Volumes {
	t.Helper()
	ev := observe(t, Host{Windows: &Windows{Disks: disks, BitLocker: locker}}, volumesProbe())
	if err := posture.CheckLimits(ev); err != nil {
		t.Error(err)
	}
	if text := protojson.Format(ev); strings.Contains(strings.ToLower(text), "volume{") || strings.Contains(text, "0000-4000-8000") {
		t.Errorf("a volume's identifier is sent: %s", text)
	}
	return ev.GetVolumes()
}

func systemDisk(n int) DiskVolume {
	return DiskVolume{Volume: guid(n), DriveType: 3, FileSystem: "NTFS", Letters: 1, System: true, PartitionType: basicData}
}

func encryptedAs(n int) EncryptableVolume {
	return protectedVolume(func(v *EncryptableVolume) { v.Volume = strings.ToUpper(guid(n)) })
}

func TestVolumesOfWindowsByUse(t *testing.T) {
	portable := uint32(2)
	for name, tt := range map[string]struct {
		disk   DiskVolume
		listed *uint32 // VolumeType, when BitLocker lists it
		want   posturev1.MountClass
	}{
		"data":                        {DiskVolume{DriveType: 3, PartitionType: basicData, Letters: 1}, nil, posturev1.MountClass_MOUNT_CLASS_DATA},
		"data without letter":         {DiskVolume{DriveType: 3, PartitionType: basicData}, nil, posturev1.MountClass_MOUNT_CLASS_DATA},
		"a drive of unknown type":     {DiskVolume{DriveType: 0, PartitionType: basicData}, nil, posturev1.MountClass_MOUNT_CLASS_DATA},
		"a partition of unknown type": {DiskVolume{DriveType: 3, Problem: "?"}, nil, posturev1.MountClass_MOUNT_CLASS_DATA},
		"EFI system":                  {DiskVolume{DriveType: 3, PartitionType: efiSystem}, nil, posturev1.MountClass_MOUNT_CLASS_BOOT},
		"Microsoft reserved":          {DiskVolume{DriveType: 3, PartitionType: reserved}, nil, posturev1.MountClass_MOUNT_CLASS_BOOT},
		"recovery":                    {DiskVolume{DriveType: 3, PartitionType: strings.ToUpper(recovery)}, nil, posturev1.MountClass_MOUNT_CLASS_BOOT},
		"recovery, MBR":               {DiskVolume{DriveType: 3, PartitionType: "mbr-27"}, nil, posturev1.MountClass_MOUNT_CLASS_BOOT},
		"data, MBR":                   {DiskVolume{DriveType: 3, PartitionType: "mbr-07"}, nil, posturev1.MountClass_MOUNT_CLASS_DATA},
		"a stick":                     {DiskVolume{DriveType: 2}, nil, posturev1.MountClass_MOUNT_CLASS_REMOVABLE},
		"a disk on a cable":           {DiskVolume{DriveType: 3, PartitionType: basicData}, &portable, posturev1.MountClass_MOUNT_CLASS_REMOVABLE},
		"Windows on a portable disk":  {DiskVolume{DriveType: 3, PartitionType: basicData, System: true}, &portable, posturev1.MountClass_MOUNT_CLASS_ROOT},
		"recovery with a letter":      {DiskVolume{DriveType: 3, PartitionType: recovery, Letters: 1}, nil, posturev1.MountClass_MOUNT_CLASS_DATA},
		"EFI system with a letter":    {DiskVolume{DriveType: 3, PartitionType: efiSystem, Letters: 1}, nil, posturev1.MountClass_MOUNT_CLASS_BOOT},
		"Windows on a recovery type":  {DiskVolume{DriveType: 3, PartitionType: recovery, System: true}, nil, posturev1.MountClass_MOUNT_CLASS_ROOT},
	} {
		var listed []EncryptableVolume
		if tt.listed != nil {
			listed = []EncryptableVolume{{VolumeType: tt.listed}}
		}
		if got := windowsClass(tt.disk, listed); got != tt.want {
			t.Errorf("%s is %s", name, got)
		}
	}
}

func TestDrivesThatAreNoDisksAreLeftOut(t *testing.T) {
	disks := fakeDisks{volumes: []DiskVolume{systemDisk(1),
		{Volume: guid(2), DriveType: 4}, {Volume: guid(3), DriveType: 5}, {Volume: guid(4), DriveType: 6}}}
	v := windowsVolumes(t, disks, fakeBitLocker{volumes: []EncryptableVolume{encryptedAs(1)}})
	if wantState(t, v.GetReading(), observed); len(v.GetVolumes()) != 1 {
		t.Errorf("volumes %v", v.GetVolumes())
	}
}

func TestAFixedVolumeThatBitLockerDoesNotListIsNotForgotten(t *testing.T) {
	data := DiskVolume{Volume: guid(2), DriveType: 3, FileSystem: "NTFS", PartitionType: basicData}
	v := windowsVolumes(t, fakeDisks{volumes: []DiskVolume{systemDisk(1), data}}, fakeBitLocker{volumes: []EncryptableVolume{encryptedAs(1)}})
	wantState(t, v.GetReading(), observed)
	wantState(t, v.GetVolumes()[0].GetReading(), observed)
	wantState(t, v.GetVolumes()[1].GetReading(), failed)
	if got := v.GetVolumes()[1]; got.GetMountClass() != posturev1.MountClass_MOUNT_CLASS_DATA || got.GetReading().GetReason() == "" || got.GetBitlocker() != nil {
		t.Errorf("volume %v", got)
	}
}

func TestAVolumeThatIsListedTwiceIsNotRead(t *testing.T) {
	v := windowsVolumes(t, fakeDisks{volumes: []DiskVolume{systemDisk(1)}}, fakeBitLocker{volumes: []EncryptableVolume{encryptedAs(1), encryptedAs(1)}})
	wantState(t, v.GetVolumes()[0].GetReading(), failed)
	if r := v.GetVolumes()[0].GetReading().GetReason(); !strings.Contains(r, "2 times") {
		t.Errorf("reason %q", r)
	}
}

func TestAVolumeThatOnlyBitLockerListsIsAContradiction(t *testing.T) {
	kind := func(n uint32) EncryptableVolume {
		v := encryptedAs(2)
		v.VolumeType = &n
		return v
	}
	for number, want := range map[uint32]int{1: 1, 2: 0} { // a disk on a cable may just have been plugged in
		v := windowsVolumes(t, fakeDisks{volumes: []DiskVolume{systemDisk(1)}}, fakeBitLocker{volumes: []EncryptableVolume{encryptedAs(1), kind(number)}})
		if len(v.GetContradictions()) != want || len(v.GetVolumes()) != 2 {
			t.Errorf("type %d: contradictions %v, volumes %v", number, v.GetContradictions(), v.GetVolumes())
		}
		if want == 1 && v.GetContradictions()[0].GetSubject() != "volumes[1].mount_class" {
			t.Errorf("subject %s", v.GetContradictions()[0].GetSubject())
		}
	}
}

func TestWithoutBitLockerEveryVolumeSaysSo(t *testing.T) {
	disks := fakeDisks{volumes: []DiskVolume{systemDisk(1), {Volume: guid(2), DriveType: 3, PartitionType: recovery}}}
	missing := windowsVolumes(t, disks, fakeBitLocker{err: fmt.Errorf("0x8004100E: %w", ErrNotFound)})
	wantState(t, missing.GetReading(), failed)
	root := missing.GetVolumes()[0]
	wantState(t, root.GetReading(), failed)
	wantState(t, root.GetBitlocker().GetReading(), posturev1.ReadingState_READING_STATE_NOT_APPLICABLE)
	wantState(t, missing.GetVolumes()[1].GetReading(), observed)

	denied := windowsVolumes(t, disks, fakeBitLocker{err: errors.New("0x80041003 of " + guid(1))})
	wantState(t, denied.GetReading(), failed)
	wantState(t, denied.GetVolumes()[0].GetReading(), failed)
	if denied.GetVolumes()[0].GetBitlocker() != nil {
		t.Error("BitLocker that could not be asked is said not to be there")
	}
}

func TestWithoutTheSystemsListNothingIsComplete(t *testing.T) {
	locker := fakeBitLocker{volumes: []EncryptableVolume{encryptedAs(1)}}
	v := windowsVolumes(t, fakeDisks{err: errors.New("listing " + guid(7) + ": not ready")}, locker)
	wantState(t, v.GetReading(), failed)
	if len(v.GetVolumes()) != 1 || v.GetVolumes()[0].GetMountClass() != posturev1.MountClass_MOUNT_CLASS_ROOT || len(v.GetContradictions()) != 0 {
		t.Errorf("what BitLocker lists is lost: %v", v)
	}
	wantState(t, windowsVolumes(t, nil, locker).GetReading(), failed)
	wantState(t, windowsVolumes(t, fakeDisks{volumes: []DiskVolume{systemDisk(1)}}, nil).GetReading(), failed)
	data := DiskVolume{Volume: guid(1), DriveType: 3, PartitionType: basicData}
	wantState(t, windowsVolumes(t, fakeDisks{volumes: []DiskVolume{data}}, locker).GetReading(), failed)
}

func TestTooManyVolumesAreNoEvidence(t *testing.T) {
	disks := []DiskVolume{systemDisk(0)}
	for i := range maxVolumes {
		disks = append(disks, DiskVolume{Volume: guid(i + 1), DriveType: 3})
	}
	v := windowsVolumes(t, fakeDisks{volumes: disks}, fakeBitLocker{})
	if wantState(t, v.GetReading(), failed); len(v.GetVolumes()) != 0 {
		t.Errorf("%d volumes", len(v.GetVolumes()))
	}
}

func TestSubjectsNameTheVolumeAsItIsListed(t *testing.T) {
	data := DiskVolume{Volume: guid(2), DriveType: 3, PartitionType: basicData, Problem: "reading " + guid(2) + ": denied"}
	number := uint32(0)
	doubtful := encryptedAs(2)
	doubtful.ProtectionProperty = &number
	// The system volume is listed last, and comes first in evidence.
	v := windowsVolumes(t, fakeDisks{volumes: []DiskVolume{data, systemDisk(1)}}, fakeBitLocker{volumes: []EncryptableVolume{doubtful, encryptedAs(1)}})
	if len(v.GetContradictions()) != 1 || v.GetContradictions()[0].GetSubject() != "volumes[1].bitlocker.protection" {
		t.Errorf("contradictions %v", v.GetContradictions())
	}
	if r := v.GetVolumes()[1].GetReading().GetReason(); !strings.Contains(r, "denied") {
		t.Errorf("the problem is not told: %q", r)
	}
}
