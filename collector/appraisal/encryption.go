package appraisal

import (
	"fmt"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// encryptionState is what is known of a volume's encryption.
type encryptionState string

const (
	// stateEncrypted: every path to the hardware crosses a verified cipher.
	stateEncrypted encryptionState = "encrypted"
	// statePlain: a path crosses no crypt layer at all.
	statePlain encryptionState = "plain"
	// stateHomeOnly: only files under a home are encrypted.
	stateHomeOnly encryptionState = "home_only"
	// stateNullCipher: a crypt layer with the cipher that does nothing.
	stateNullCipher encryptionState = "null_cipher"
	// stateIntegrityOnly: dm-verity or dm-integrity protect against change, not
	// against reading.
	stateIntegrityOnly encryptionState = "integrity_only"
	// stateKeyInClear: the key file lies on a plain volume.
	stateKeyInClear encryptionState = "key_in_clear"
	// stateInProgress: the volume is being encrypted or re-encrypted.
	stateInProgress encryptionState = "in_progress"
	// stateUnverified: a crypt layer that neither header nor table confirms.
	stateUnverified encryptionState = "unverified"
	// stateUnread: the volume, or its way to the hardware, could not be read.
	stateUnread encryptionState = "unread"
)

// decided says whether a state is known to be encrypted or known not to be.
func (s encryptionState) decided() bool {
	switch s {
	case stateInProgress, stateUnverified, stateUnread, stateLocked, stateHardware, stateNoBitLocker:
		return false
	}
	return true
}

// encryption is a state with, where it is not decided, the reason.
type encryption struct {
	state  encryptionState
	reason string
}

// isFixed says whether a volume has to be encrypted: everything but /boot, the
// EFI partition and removable disks. A volume of unknown class is fixed.
func isFixed(v *posturev1.Volume) bool {
	switch v.GetMountClass() {
	case posturev1.MountClass_MOUNT_CLASS_BOOT, posturev1.MountClass_MOUNT_CLASS_REMOVABLE:
		return false
	}
	return true
}

// fixedVolumes cannot tell when there is none, or no root among them: a list
// that is empty by mistake must not look like a notebook without plain disks.
func fixedVolumes(vs *posturev1.Volumes) ([]*posturev1.Volume, error) {
	var list []*posturev1.Volume
	root := false
	for _, v := range vs.GetVolumes() {
		if isFixed(v) {
			list = append(list, v)
		}
		root = root || v.GetMountClass() == posturev1.MountClass_MOUNT_CLASS_ROOT
	}
	if !root {
		return nil, cannotTell("Das Gerät führt sein Systemlaufwerk nicht auf.", "The device does not list its system volume.")
	}
	return list, nil
}

// isEncrypted cannot tell when the state is not decided.
func isEncrypted(v *posturev1.Volume) (bool, error) {
	e := encryptionOf(v)
	if !e.state.decided() {
		return false, cannotTell(
			fmt.Sprintf("Die Verschlüsselung von %s ist nicht feststellbar: %s.", volumeName(v, "de"), germanReason(v, e)),
			fmt.Sprintf("The encryption of the %s is unknown: %s.", volumeName(v, "en"), e.reason))
	}
	return e.state == stateEncrypted, nil
}

// encryptionOf judges a volume by its ways to the hardware and by what
// BitLocker says of it, whichever is worse. Of two that are as bad, BitLocker
// says it more exactly.
func encryptionOf(v *posturev1.Volume) encryption {
	ways := wayEncryption(v)
	if v.GetBitlocker() == nil {
		return ways
	}
	if b := bitLockerEncryption(v.GetBitlocker()); severity(b.state) >= severity(ways.state) {
		return b
	}
	return ways
}

// wayEncryption judges a volume by its worst path: one plain member of a volume
// group is enough to read from.
func wayEncryption(v *posturev1.Volume) encryption {
	switch r := v.GetReading(); r.GetState() {
	case posturev1.ReadingState_READING_STATE_OBSERVED:
	case posturev1.ReadingState_READING_STATE_UNSPECIFIED:
		return encryption{stateUnread, "the volume was reported without a reading"}
	default:
		return encryption{stateUnread, orElse(short(r.GetReason()), "the volume could not be read")}
	}
	homeOnly, above := false, encryption{state: statePlain}
	for _, f := range v.GetFileEncryption() {
		homeOnly = homeOnly || f.GetHomeOnly()
		if e := fileEncryptionOf(f); !f.GetHomeOnly() && severity(e.state) <= severity(above.state) {
			above = e
		}
	}
	worst := encryption{state: stateEncrypted}
	if len(v.GetPaths()) == 0 {
		worst = encryption{stateUnread, "no way from the volume to the hardware was reported"}
	}
	for _, p := range v.GetPaths() {
		if e := pathEncryption(p); severity(e.state) > severity(worst.state) {
			worst = e
		}
	}
	switch {
	case severity(above.state) < severity(worst.state):
		return above
	case worst.state == statePlain && homeOnly:
		return encryption{state: stateHomeOnly}
	}
	return worst
}

// severity orders states: what is known to be readable outweighs what is not
// known, which outweighs encrypted.
func severity(s encryptionState) int {
	switch {
	case s == stateEncrypted:
		return 0
	case !s.decided():
		return 1
	}
	return 2
}

// fileEncryptionOf judges encryption of the whole filesystem above the block
// layer. ZFS says "off", "-" or nothing for plain text.
func fileEncryptionOf(f *posturev1.FileEncryption) encryption {
	switch c := f.GetCipher(); {
	case c == "" && f.GetSystem() != "zfs":
		return encryption{stateUnverified, "the cipher of " + orElse(short(f.GetSystem()), "the file encryption") + " was not reported"}
	case c == "", c == "-", c == "off":
		return encryption{state: statePlain}
	case isNull(c):
		return encryption{state: stateNullCipher}
	}
	return encryption{state: stateEncrypted}
}

// pathEncryption judges one way to the hardware by its best layer.
func pathEncryption(p *posturev1.StoragePath) encryption {
	if len(p.GetLayers()) == 0 {
		return encryption{stateUnread, "a way to the hardware was reported without layers"}
	}
	best := encryption{state: statePlain}
	for _, l := range p.GetLayers() {
		e := layerEncryption(l)
		if severity(e.state) < severity(best.state) || best.state == statePlain {
			best = e
		}
	}
	return best
}

// layerEncryption judges one layer.
func layerEncryption(l *posturev1.StorageLayer) encryption {
	switch l.GetType() {
	case posturev1.LayerType_LAYER_TYPE_LUKS1, posturev1.LayerType_LAYER_TYPE_LUKS2,
		posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL, posturev1.LayerType_LAYER_TYPE_PLAIN_CRYPT,
		posturev1.LayerType_LAYER_TYPE_BITLOCKER:
	case posturev1.LayerType_LAYER_TYPE_UNSPECIFIED:
		return encryption{stateUnread, orElse(short(l.GetReason()), "a layer of unknown type lies on the way to the hardware")}
	case posturev1.LayerType_LAYER_TYPE_INTEGRITY:
		return encryption{state: stateIntegrityOnly}
	default:
		return encryption{state: statePlain}
	}
	switch verified := l.GetVerifiedBy(); {
	case isNull(l.GetCipher()):
		return encryption{state: stateNullCipher}
	case l.GetKeyFile() == posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT:
		return encryption{state: stateKeyInClear}
	case verified != posturev1.VerifiedBy_VERIFIED_BY_HEADER && verified != posturev1.VerifiedBy_VERIFIED_BY_TABLE:
		return encryption{stateUnverified, orElse(short(l.GetReason()), "neither header nor table of the crypt layer could be read")}
	case l.GetCipher() == "" && l.GetType() != posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL:
		return encryption{stateUnverified, "the cipher of the crypt layer was not reported"}
	case l.GetKeyFile() == posturev1.KeyFile_KEY_FILE_UNSPECIFIED:
		return encryption{stateUnverified, "how the crypt layer is unlocked was not reported"}
	case slices.ContainsFunc(l.GetRequirements(), isReencryption):
		return encryption{stateInProgress, "the volume is being encrypted or re-encrypted"}
	}
	return encryption{state: stateEncrypted}
}

// isReencryption matches LUKS2 "online-reencrypt" and "online-reencrypt-v2".
func isReencryption(requirement string) bool {
	return strings.HasPrefix(requirement, "online-reencrypt")
}

// isNull matches the kernel's "cipher_null-ecb" and "capi:ecb(cipher_null)".
func isNull(cipher string) bool { return strings.Contains(strings.ToLower(cipher), "null") }

// unencrypted names the fixed volumes that are known not to be encrypted, for
// texts.
func unencrypted(vs *posturev1.Volumes, lang string) (string, error) {
	var names []string
	for _, v := range vs.GetVolumes() {
		e := encryptionOf(v)
		if !isFixed(v) || !e.state.decided() || e.state == stateEncrypted {
			continue
		}
		if name := volumeName(v, lang) + stateNote(v, e.state, lang); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", "), nil
}

// volumeName names a volume in a person's words.
func volumeName(v *posturev1.Volume, lang string) string {
	de, en := "Laufwerk", "volume"
	switch v.GetMountClass() {
	case posturev1.MountClass_MOUNT_CLASS_ROOT:
		de, en = "Systemlaufwerk", "system volume"
	case posturev1.MountClass_MOUNT_CLASS_HOME:
		de, en = "Laufwerk mit den persönlichen Daten", "home volume"
	case posturev1.MountClass_MOUNT_CLASS_DATA:
		de, en = "Datenlaufwerk", "data volume"
	case posturev1.MountClass_MOUNT_CLASS_SWAP:
		de, en = "Auslagerungsspeicher", "swap space"
	case posturev1.MountClass_MOUNT_CLASS_BOOT:
		de, en = "Startpartition", "boot partition"
	case posturev1.MountClass_MOUNT_CLASS_REMOVABLE:
		de, en = "Wechseldatenträger", "removable disk"
	}
	if lang == "de" {
		return de
	}
	return en
}

// stateNote says why a volume that looks encrypted is not.
func stateNote(v *posturev1.Volume, s encryptionState, lang string) string {
	var de, en string
	switch s {
	case stateSuspended:
		return suspension(v, lang)
	case stateWaiting:
		de, en = " (verschlüsselt, aber BitLocker ist noch nicht eingerichtet: der Schlüssel liegt offen daneben)",
			" (encrypted, but BitLocker is not set up yet: its key lies beside it in clear)"
	case stateNullCipher:
		de, en = " (verschlüsselt mit leerem Verfahren)", " (with the null cipher)"
	case stateIntegrityOnly:
		de, en = " (nur gegen Veränderung geschützt)", " (protected against change only)"
	case stateKeyInClear:
		de, en = " (der Schlüssel liegt offen daneben)", " (its key lies beside it in clear)"
	case stateHomeOnly:
		de, en = " (nur persönliche Ordner verschlüsselt)", " (only home folders are encrypted)"
	}
	if lang == "de" {
		return de
	}
	return en
}
