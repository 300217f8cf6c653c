package appraisal

import (
	"testing"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func TestEncryptionOfOneVolume(t *testing.T) {
	crypt := func(change func(*posturev1.StorageLayer)) *posturev1.StorageLayer {
		l := luks2()
		change(l)
		return l
	}
	root := func(paths ...*posturev1.StoragePath) *posturev1.Volume {
		return volume(posturev1.MountClass_MOUNT_CLASS_ROOT, paths...)
	}
	above := func(v *posturev1.Volume, files ...*posturev1.FileEncryption) *posturev1.Volume {
		v.FileEncryption = files
		return v
	}
	plain := func() *posturev1.StoragePath { return path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR)) }
	for _, tt := range []struct {
		name   string
		volume *posturev1.Volume
		want   encryptionState
	}{
		{"LUKS2", root(path(luks2())), stateEncrypted},
		{"LVM on LUKS on RAID, every member", root(path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR), luks2(), layer(posturev1.LayerType_LAYER_TYPE_RAID)),
			path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR), luks2(), layer(posturev1.LayerType_LAYER_TYPE_RAID))), stateEncrypted},
		{"LUKS1 by table", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.Type, l.VerifiedBy = posturev1.LayerType_LAYER_TYPE_LUKS1, posturev1.VerifiedBy_VERIFIED_BY_TABLE
		}))), stateEncrypted},
		{"plain dm-crypt swap with a random key", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.Type, l.KeyFile = posturev1.LayerType_LAYER_TYPE_PLAIN_CRYPT, posturev1.KeyFile_KEY_FILE_RANDOM
			l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_TABLE
		}))), stateEncrypted},
		{"plain dm-crypt swap of which only crypttab tells the cipher", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.Type, l.KeyFile = posturev1.LayerType_LAYER_TYPE_PLAIN_CRYPT, posturev1.KeyFile_KEY_FILE_RANDOM
			l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_NONE
		}))), stateUnverified},
		{"key file on an encrypted volume", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.KeyFile = posturev1.KeyFile_KEY_FILE_ON_ENCRYPTED
		}))), stateEncrypted},
		{"a bad layer over a good one", root(path(crypt(func(l *posturev1.StorageLayer) { l.Cipher = "cipher_null-ecb" }), luks2())), stateEncrypted},
		{"an unconfirmed layer over a good one", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_UNSPECIFIED
		}), luks2())), stateEncrypted},
		{"a linear mapping called crypt", root(path(layer(posturev1.LayerType_LAYER_TYPE_LINEAR))), statePlain},
		{"btrfs with one plain member", root(path(luks2()), plain()), statePlain},
		{"a plain member outweighs one not confirmed", root(plain(), path(crypt(func(l *posturev1.StorageLayer) {
			l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_NONE
		}))), statePlain},
		{"one member not confirmed", root(path(luks2()), path(crypt(func(l *posturev1.StorageLayer) {
			l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_NONE
		}))), stateUnverified},
		{"null cipher by its kernel name", root(path(crypt(func(l *posturev1.StorageLayer) { l.Cipher = "capi:ecb(cipher_null)" }))), stateNullCipher},
		{"no cipher reported", root(path(crypt(func(l *posturev1.StorageLayer) { l.Cipher = "" }))), stateUnverified},
		{"crypttab not read", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.KeyFile = posturev1.KeyFile_KEY_FILE_UNSPECIFIED
		}))), stateUnverified},
		{"only the mapping's name says LUKS", root(path(crypt(func(l *posturev1.StorageLayer) {
			l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_NONE
		}))), stateUnverified},
		{"dm-integrity", root(path(layer(posturev1.LayerType_LAYER_TYPE_INTEGRITY))), stateIntegrityOnly},
		{"a layer of unknown type", root(path(layer(posturev1.LayerType_LAYER_TYPE_UNSPECIFIED))), stateUnread},
		{"no way down reported", root(), stateUnread},
		{"a way without layers", root(&posturev1.StoragePath{}), stateUnread},
		{"no reading", &posturev1.Volume{Paths: []*posturev1.StoragePath{path(luks2())}}, stateUnread},
		{"reading not applicable", &posturev1.Volume{Reading: notApplicable("?"), Paths: []*posturev1.StoragePath{path(luks2())}}, stateUnread},
		{"ZFS off", above(root(plain()), &posturev1.FileEncryption{System: "zfs", Cipher: "off"}), statePlain},
		{"ZFS off on LUKS", above(root(path(luks2())), &posturev1.FileEncryption{System: "zfs", Cipher: "-"}), stateEncrypted},
		{"ZFS encrypted, pool members unknown", above(root(), &posturev1.FileEncryption{System: "zfs", Cipher: "aes-256-gcm"}), stateEncrypted},
		{"fscrypt of unknown cipher on a plain disk", above(root(plain()), &posturev1.FileEncryption{System: "fscrypt"}), stateUnverified},
		{"fscrypt of unknown cipher on LUKS", above(root(path(luks2())), &posturev1.FileEncryption{System: "fscrypt"}), stateEncrypted},
		{"homed on a plain disk", above(root(plain()), &posturev1.FileEncryption{System: "homed", Cipher: "aes", HomeOnly: true}), stateHomeOnly},
		{"homed on LUKS", above(root(path(luks2())), &posturev1.FileEncryption{System: "homed", Cipher: "aes", HomeOnly: true}), stateEncrypted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := encryptionOf(tt.volume)
			if got.state != tt.want || !got.state.decided() && got.reason == "" {
				t.Errorf("%s (%s), want %s", got.state, got.reason, tt.want)
			}
			is, err := isEncrypted(tt.volume)
			if is != (tt.want == stateEncrypted) || (err == nil) != tt.want.decided() {
				t.Errorf("encrypted %v, %v", is, err)
			}
		})
	}
}
