package appraisal

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	protectionOff   = posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_OFF
	tpmOnly         = posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM
	tpmAndPIN       = posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_PIN
	recoveryOnly    = posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_NUMERICAL_PASSWORD
	otherProtector  = posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_OTHER
	encryptingNow   = posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTING
	decryptedVolume = posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTED
)

// bitLockerVolume is a protected system volume, changed.
func bitLockerVolume(change func(*posturev1.Volume)) *posturev1.Volume {
	v := volume(posturev1.MountClass_MOUNT_CLASS_ROOT, path(&posturev1.StorageLayer{
		Type: posturev1.LayerType_LAYER_TYPE_BITLOCKER, Cipher: "xts-aes-256", KeyBits: 256,
		VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_TABLE, KeyFile: posturev1.KeyFile_KEY_FILE_NONE,
	}))
	v.Bitlocker = &posturev1.BitLocker{
		Reading: observed(), Protection: posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON,
		Conversion:          posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED,
		EncryptedMillionths: allMillionths, Method: "xts-aes-256", Lock: posturev1.BitLockerLock_BIT_LOCKER_LOCK_UNLOCKED,
		Protectors:    []posturev1.BitLockerProtector{recoveryOnly, tpmAndPIN},
		UsedSpaceOnly: posturev1.Ternary_TERNARY_NO,
	}
	if change != nil {
		change(v)
	}
	return v
}

func TestEncryptionByBitLocker(t *testing.T) {
	locker := func(change func(*posturev1.BitLocker)) *posturev1.Volume {
		return bitLockerVolume(func(v *posturev1.Volume) { change(v.Bitlocker) })
	}
	for _, tt := range []struct {
		name   string
		volume *posturev1.Volume
		want   encryptionState
	}{
		{"protected", bitLockerVolume(nil), stateEncrypted},
		{"used space only", locker(func(b *posturev1.BitLocker) { b.UsedSpaceOnly = posturev1.Ternary_TERNARY_YES }), stateEncrypted},
		{"decrypted", locker(func(b *posturev1.BitLocker) { b.Protection, b.Conversion = protectionOff, decryptedVolume }), statePlain},
		{"decrypted, and another method failed", locker(func(b *posturev1.BitLocker) {
			b.Reading, b.Conversion = failed("GetLockStatus: error 0x80041001"), decryptedVolume
		}), statePlain},
		{"suspended", locker(func(b *posturev1.BitLocker) { b.Protection = protectionOff }), stateSuspended},
		{"suspended, and the protectors could not be read", locker(func(b *posturev1.BitLocker) {
			b.Reading, b.Protection, b.Protectors = failed("GetKeyProtectors: error 0x80041001"), protectionOff, nil
		}), stateSuspended},
		{"waiting for activation", locker(func(b *posturev1.BitLocker) { b.Protection, b.Protectors = protectionOff, nil }), stateWaiting},
		{"being encrypted", locker(func(b *posturev1.BitLocker) { b.Protection, b.Conversion = protectionOff, encryptingNow }), stateInProgress},
		{"being encrypted, protection on", locker(func(b *posturev1.BitLocker) { b.Conversion = encryptingNow }), stateInProgress},
		{"locked", locker(func(b *posturev1.BitLocker) { b.Lock = posturev1.BitLockerLock_BIT_LOCKER_LOCK_LOCKED }), stateLocked},
		{"protection not known to BitLocker", locker(func(b *posturev1.BitLocker) {
			b.Protection = posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_UNKNOWN
		}), stateLocked},
		{"no BitLocker", locker(func(b *posturev1.BitLocker) { proto.Reset(b); b.Reading = notApplicable("no namespace") }), stateNoBitLocker},
		{"hardware", locker(func(b *posturev1.BitLocker) { b.Method = "hardware" }), stateHardware},
		{"a method not known here", locker(func(b *posturev1.BitLocker) { b.Method = "rot13" }), stateUnverified},
		{"no method", locker(func(b *posturev1.BitLocker) { b.Method = "none" }), stateUnverified},
		{"a millionth is missing", locker(func(b *posturev1.BitLocker) { b.EncryptedMillionths-- }), stateUnverified},
		{"no protector", locker(func(b *posturev1.BitLocker) { b.Protectors = nil }), stateUnverified},
		{"a method failed", locker(func(b *posturev1.BitLocker) { b.Reading = failed("x") }), stateUnread},
		{"no reading", locker(func(b *posturev1.BitLocker) { b.Reading = nil }), stateUnread},
		{"protection not reported", locker(func(b *posturev1.BitLocker) { b.Protection = 0 }), stateUnread},
		{"conversion not reported", locker(func(b *posturev1.BitLocker) { b.Conversion = 0 }), stateUnread},
		{"lock not reported", locker(func(b *posturev1.BitLocker) { b.Lock = 0 }), stateUnread},
		{"nothing reported", locker(func(b *posturev1.BitLocker) { proto.Reset(b) }), stateUnread},
		{"the volume was not read", bitLockerVolume(func(v *posturev1.Volume) { v.Reading = failed("not listed") }), stateUnread},
		{"protected, and a way past it", bitLockerVolume(func(v *posturev1.Volume) {
			v.Paths = append(v.Paths, path(layer(posturev1.LayerType_LAYER_TYPE_DISK)))
		}), statePlain},
		{"protected, and no way to the hardware reported", bitLockerVolume(func(v *posturev1.Volume) { v.Paths = nil }), stateUnread},
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

func TestTheWeakestProtectorCounts(t *testing.T) {
	for _, tt := range []struct {
		name       string
		protectors []posturev1.BitLockerProtector
		want       string
	}{
		{"TPM and PIN, recovery password", []posturev1.BitLockerProtector{tpmAndPIN, recoveryOnly}, "tpm_pin"},
		{"a bare TPM voids the PIN", []posturev1.BitLockerProtector{tpmAndPIN, recoveryOnly, tpmOnly}, "tpm"},
		{"the recovery password alone", []posturev1.BitLockerProtector{recoveryOnly}, "numerical_password"},
		{"a passphrase beside a certificate", []posturev1.BitLockerProtector{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_PUBLIC_KEY,
			posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_PASSPHRASE}, "passphrase"},
		{"network unlock voids the PIN too", []posturev1.BitLockerProtector{tpmAndPIN, posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_CERTIFICATE}, "tpm_certificate"},
		{"one of unknown kind", []posturev1.BitLockerProtector{tpmAndPIN, otherProtector}, ""},
		{"one that this collector does not know", []posturev1.BitLockerProtector{tpmAndPIN, 99}, ""},
		{"none", nil, ""},
	} {
		v := bitLockerVolume(func(v *posturev1.Volume) { v.Bitlocker.Protectors = tt.protectors })
		got, err := weakestProtector(v)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("%s: %q, %v", tt.name, got, err)
		}
	}
	for name, change := range map[string]func(*posturev1.Volume){
		"no BitLocker reported": func(v *posturev1.Volume) { v.Bitlocker = nil },
		"BitLocker not read":    func(v *posturev1.Volume) { v.Bitlocker.Reading = failed("x") },
		"volume not read":       func(v *posturev1.Volume) { v.Reading = failed("x") },
		"protection not known":  func(v *posturev1.Volume) { v.Bitlocker.Protection = 0 },
		"protection off, plain": func(v *posturev1.Volume) {
			v.Bitlocker.Protection, v.Bitlocker.Conversion = protectionOff, decryptedVolume
		},
		"encryption not at once": func(v *posturev1.Volume) {
			v.Bitlocker.Protection, v.Bitlocker.Conversion = protectionOff, encryptingNow
		},
	} {
		if got, err := weakestProtector(bitLockerVolume(change)); err == nil {
			t.Errorf("%s: %q", name, got)
		}
	}
	suspended := bitLockerVolume(func(v *posturev1.Volume) { v.Bitlocker.Protection = protectionOff })
	if got, err := weakestProtector(suspended); got != "clear_key" || err != nil {
		t.Errorf("suspended: %q, %v", got, err)
	}
}

// Every kind that the protocol has is ranked, or a policy could never name it.
func TestEveryKindOfProtectorIsRanked(t *testing.T) {
	for number, name := range posturev1.BitLockerProtector_name {
		kind := posturev1.BitLockerProtector(number)
		if kind == otherProtector || kind == 0 {
			continue
		}
		want := strings.ToLower(strings.TrimPrefix(name, "BIT_LOCKER_PROTECTOR_"))
		v := bitLockerVolume(func(v *posturev1.Volume) { v.Bitlocker.Protectors = []posturev1.BitLockerProtector{kind} })
		if got, err := weakestProtector(v); got != want || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestWhatPeopleReadOfBitLocker(t *testing.T) {
	root := func(change func(*posturev1.BitLocker)) *posturev1.Volume {
		return bitLockerVolume(func(v *posturev1.Volume) { change(v.Bitlocker) })
	}
	suspendedFor := func(n uint32) *posturev1.Volume {
		return root(func(b *posturev1.BitLocker) { b.Protection, b.SuspendedRestarts = protectionOff, n })
	}
	for _, tt := range []struct {
		volume *posturev1.Volume
		de, en string
	}{
		{suspendedFor(0), "Systemlaufwerk (der Schutz durch BitLocker ist angehalten, ohne dass ein Ende festgelegt ist)",
			"system volume (BitLocker protection is suspended with no end set)"},
		{suspendedFor(1), "Systemlaufwerk (der Schutz durch BitLocker ist bis zum nächsten Neustart angehalten)",
			"system volume (BitLocker protection is suspended until the next restart)"},
		{suspendedFor(2), "Systemlaufwerk (der Schutz durch BitLocker ist für 2 Neustarts angehalten)",
			"system volume (BitLocker protection is suspended for 2 restarts)"},
		{root(func(b *posturev1.BitLocker) { b.Protection, b.Protectors = protectionOff, nil }),
			"Systemlaufwerk (verschlüsselt, aber BitLocker ist noch nicht eingerichtet: der Schlüssel liegt offen daneben)",
			"system volume (encrypted, but BitLocker is not set up yet: its key lies beside it in clear)"},
		{root(func(b *posturev1.BitLocker) { b.Conversion = decryptedVolume }), "Systemlaufwerk", "system volume"},
	} {
		for lang, want := range map[string]string{"de": tt.de, "en": tt.en} {
			if got, err := unencrypted(&posturev1.Volumes{Volumes: []*posturev1.Volume{tt.volume}}, lang); got != want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
	}
	shown := map[string]*posturev1.Volume{
		"encrypted (opened by tpm_pin)":                   bitLockerVolume(nil),
		"encrypted (opened by tpm_pin, used space only)":  root(func(b *posturev1.BitLocker) { b.UsedSpaceOnly = posturev1.Ternary_TERNARY_YES }),
		"suspended (opened by clear_key, for 2 restarts)": suspendedFor(2),
		"unread, bitlocker":                               root(func(b *posturev1.BitLocker) { b.Reading = failed("x") }),
	}
	for want, v := range shown {
		if got := volumeSummary(v); !strings.Contains(got, want) {
			t.Errorf("shown as %q, want %q", got, want)
		}
	}
}

// A planned suspension can be told from one that nobody ends.
func TestAPolicyMayWaitForAPlannedSuspension(t *testing.T) {
	p := mustCompile(t, `name: planned
freshness: {max_age: 45m}
rules:
  - id: encrypted-or-planned
    title: {de: T, en: T}
    remedy: {de: R, en: R}
    require: |
      evidence.volumes.fixed().all(v, v.encrypted() ||
        encryption_state(v) == "suspended" && v.bitlocker.suspended_restarts in [1u, 2u])
    on_fail: deny
  - id: start-needs-pin
    title: {de: T, en: T}
    remedy: {de: R, en: R}
    require: evidence.volumes.fixed().all(v, v.weakest_protector() == "tpm_pin")
    on_fail: deny
`)
	for capture, want := range map[string][2]posturev1.Outcome{
		"suspended-for-two-restarts":         {passes, fails},
		"suspended-without-end":              {fails, fails},
		"fleet-52159-tpm-beside-tpm-and-pin": {passes, fails},
		"fleet-52159-tpm-and-pin-alone":      {passes, passes},
		"osquery-8873-kinds-of-protectors":   {passes, isUnknown},
		"namespace-missing":                  {isUnknown, isUnknown},
	} {
		res := appraiseCapture(t, p, capture)
		for i, rule := range []string{"encrypted-or-planned", "start-needs-pin"} {
			if f := outcomeOf(t, res, rule); f.GetOutcome() != want[i] {
				t.Errorf("%s: %s is %s: %s", capture, rule, f.GetOutcome(), f.GetReason().GetEn())
			}
		}
	}
}

// The verdict on each state, apart from the wording that the golden files keep.
func TestNoCaptureOfAnUnprotectedDiskIsAdmitted(t *testing.T) {
	p := shipped(t)
	for name, want := range map[string]posturev1.Outcome{
		"windows-11-24h2":                             passes,
		"used-space-only":                             passes,
		"usb-stick-plain":                             passes,
		"usb-disk-plain":                              passes,
		"fleet-49401-recovery-password-protects":      passes,
		"osquery-8931-property-on-disk-plain":         fails,
		"intune-state-of-the-last-start":              isUnknown,
		"osquery-8639-empty-table":                    isUnknown,
		"fleet-49401-only-a-recovery-password":        fails,
		"fleet-12577-only-c-was-checked":              fails,
		"fleet-53426-judged-while-encrypting":         isUnknown,
		"fleet-47256-one-plain-volume-without-letter": fails,
		"plain-volume-without-letter-or-folder":       fails,
		"launcher-567-administrator-needed":           isUnknown,
		"osquery-zero-values-after-a-failed-call":     isUnknown,
		"one-method-fails":                            isUnknown,
		"methods-not-there":                           isUnknown,
		"namespace-missing":                           isUnknown,
		"wmi-provider-hangs":                          isUnknown,
		"suspended-for-two-restarts":                  fails,
		"suspended-without-end":                       fails,
		"waiting-for-activation":                      fails,
		"waiting-for-activation-by-error":             fails,
		"no-secure-key":                               isUnknown,
		"never-encrypted-not-activated":               fails,
		"encryption-paused":                           isUnknown,
		"decryption-running":                          isUnknown,
		"decryption-paused":                           isUnknown,
		"data-volume-locked":                          isUnknown,
		"hardware-encryption":                         isUnknown,
		"method-not-known":                            isUnknown,
		"method-none-of-an-encrypted-volume":          isUnknown,
		"rounded-percent":                             isUnknown,
		"protected-and-decrypted":                     fails,
		"volume-that-bitlocker-does-not-list":         isUnknown,
		"volume-that-only-bitlocker-lists":            fails,
		"list-of-volumes-fails":                       isUnknown,
		"no-system-volume":                            isUnknown,
		"partition-type-unreadable":                   isUnknown,
		"server-2022-without-bitlocker":               isUnknown,
	} {
		if f := outcomeOf(t, appraiseCapture(t, p, name), "disks-encrypted"); f.GetOutcome() != want {
			t.Errorf("%s: %s: %s", name, f.GetOutcome(), f.GetReason().GetEn())
		}
	}
}
