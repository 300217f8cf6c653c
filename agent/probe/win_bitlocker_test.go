package probe

import (
	"fmt"
	"strings"
	"testing"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// protectedVolume is a volume of which every method says that it is protected.
func protectedVolume(change func(*EncryptableVolume)) EncryptableVolume {
	number := func(n uint32) *uint32 { return &n }
	v := EncryptableVolume{
		Volume: `\\?\Volume{00000000-0000-4000-8000-000000000001}\`, Letter: true,
		ProtectionProperty: number(1), ConversionProperty: number(1), MethodProperty: number(7), VolumeType: number(0),
		Protection: &ProtectionAnswer{Status: 1},
		Conversion: &ConversionAnswer{Status: 1, Percentage: allMillionths},
		Method:     &MethodAnswer{Method: 7},
		Lock:       &LockAnswer{},
		Version:    &VersionAnswer{Version: 2},
		Protectors: &ProtectorsAnswer{Types: []ProtectorType{{Type: 4}, {Type: 3}}},
		Suspended:  &SuspendAnswer{},
	}
	if change != nil {
		change(&v)
	}
	return v
}

func TestAProtectedVolumeIsDescribedInFull(t *testing.T) {
	e := describeBitLocker(protectedVolume(nil))
	wantState(t, e.out.Reading, observed)
	got := fmt.Sprint(e.out.Protection, e.out.Conversion, e.out.EncryptedMillionths, e.out.Method, e.out.Wiping, e.out.Lock, e.out.Protectors, e.out.UsedSpaceOnly)
	want := "BIT_LOCKER_PROTECTION_ON BIT_LOCKER_CONVERSION_ENCRYPTED 1000000 xts-aes-256 BIT_LOCKER_WIPING_NOT_WIPED BIT_LOCKER_LOCK_UNLOCKED" +
		" [BIT_LOCKER_PROTECTOR_NUMERICAL_PASSWORD BIT_LOCKER_PROTECTOR_TPM_PIN] TERNARY_NO"
	if strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(want, " ", "") {
		t.Errorf("described as %s", got)
	}
	l := e.layer()
	if l.GetCipher() != "xts-aes-256" || l.GetKeyBits() != 256 || l.GetVerifiedBy() != posturev1.VerifiedBy_VERIFIED_BY_TABLE ||
		l.GetKeyFile() != posturev1.KeyFile_KEY_FILE_NONE || len(e.contradictions) != 0 {
		t.Errorf("layer %v, contradictions %v", l, e.contradictions)
	}
}

// Each method by itself: no answer, an error with a value that looks good, and a
// value that nobody knows. None of them may become evidence, nor leave the
// volume verified.
func TestNoMethodIsBelievedWithoutAnAnswer(t *testing.T) {
	type method struct {
		gone, failed, odd func(*EncryptableVolume)
		unset             func(*posturev1.BitLocker) bool
	}
	for name, m := range map[string]method{
		"GetProtectionStatus": {
			func(v *EncryptableVolume) { v.Protection = nil },
			func(v *EncryptableVolume) { v.Protection.Return = 0x80041001 },
			func(v *EncryptableVolume) { v.Protection.Status = 3 },
			func(b *posturev1.BitLocker) bool { return b.Protection == 0 },
		},
		"GetConversionStatus": {
			func(v *EncryptableVolume) { v.Conversion = nil },
			func(v *EncryptableVolume) { v.Conversion.Return = 0x80041001 },
			func(v *EncryptableVolume) { v.Conversion.Status = 6 },
			func(b *posturev1.BitLocker) bool { return b.Conversion == 0 },
		},
		"GetEncryptionMethod": {
			func(v *EncryptableVolume) { v.Method = nil },
			func(v *EncryptableVolume) { v.Method.Return = 0x80041001 },
			func(v *EncryptableVolume) { v.Method.Method = 0xffffffff },
			func(b *posturev1.BitLocker) bool { return b.Method == "" || b.Method == "unknown" },
		},
		"GetLockStatus": {
			func(v *EncryptableVolume) { v.Lock = nil },
			func(v *EncryptableVolume) { v.Lock.Return = 0x80041001 },
			func(v *EncryptableVolume) { v.Lock.Status = 2 },
			func(b *posturev1.BitLocker) bool { return b.Lock == 0 },
		},
		"GetKeyProtectors": {
			func(v *EncryptableVolume) { v.Protectors = nil },
			func(v *EncryptableVolume) { v.Protectors.Return = 0x80041001 },
			func(v *EncryptableVolume) { v.Protectors.Types = []ProtectorType{{Return: 0x80041001, Type: 4}} },
			func(b *posturev1.BitLocker) bool { return len(b.Protectors) == 0 },
		},
	} {
		for how, change := range map[string]func(*EncryptableVolume){"gone": m.gone, "failed": m.failed, "odd": m.odd} {
			e := describeBitLocker(protectedVolume(change))
			if e.out.Reading.State != failed || !m.unset(e.out) || e.out.Reading.Reason == "" {
				t.Errorf("%s %s: %v", name, how, e.out)
			}
			if e.layer().GetVerifiedBy() != posturev1.VerifiedBy_VERIFIED_BY_NONE || e.layer().GetReason() == "" {
				t.Errorf("%s %s: layer %v", name, how, e.layer())
			}
		}
	}
}

func TestReturnCodesAreToldInWords(t *testing.T) {
	locked := describeBitLocker(protectedVolume(func(v *EncryptableVolume) {
		v.Lock.Status, v.Protection.Status, v.ProtectionProperty = 1, 2, nil
		v.Conversion.Return, v.Method.Return = resultLocked, resultLocked
	}))
	wantState(t, locked.out.Reading, observed)
	want := "GetConversionStatus: 0x80310000 (the volume is locked); GetEncryptionMethod: 0x80310000 (the volume is locked)"
	if locked.out.Reading.Reason != want || locked.out.Protection != posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_UNKNOWN {
		t.Errorf("a locked volume: %v", locked.out)
	}
	// The same code of a volume that says it is not locked explains nothing.
	open := describeBitLocker(protectedVolume(func(v *EncryptableVolume) { v.Conversion.Return = resultLocked }))
	wantState(t, open.out.Reading, failed)

	for code, words := range map[uint32]string{resultNoSecureKey: "no secure key protector", resultNotActivated: "not activated"} {
		e := describeBitLocker(protectedVolume(func(v *EncryptableVolume) { v.Protectors = &ProtectorsAnswer{Return: code} }))
		wantState(t, e.out.Reading, observed)
		if !strings.Contains(e.out.Reading.Reason, words) || len(e.out.Protectors) != 0 {
			t.Errorf("0x%08X: %v", code, e.out)
		}
		// Only protectors can be missing: of protection it says nothing.
		e = describeBitLocker(protectedVolume(func(v *EncryptableVolume) { v.Protection.Return = code }))
		wantState(t, e.out.Reading, failed)
	}
}

func TestSuspensionCountsOnlyWhereProtectionIsOff(t *testing.T) {
	count := func(status uint32) *encryptable {
		return describeBitLocker(protectedVolume(func(v *EncryptableVolume) {
			v.Protection.Status, v.Suspended.Count, v.ProtectionProperty = status, 3, nil
		}))
	}
	if n := count(0).out.SuspendedRestarts; n != 3 {
		t.Errorf("suspended for %d restarts", n)
	}
	if n := count(1).out.SuspendedRestarts; n != 0 {
		t.Errorf("protection is on and suspended for %d restarts", n)
	}
	if l := count(0).layer(); l.GetKeyFile() != posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT || l.GetVerifiedBy() != posturev1.VerifiedBy_VERIFIED_BY_NONE {
		t.Errorf("the key of a suspended volume: %v", l)
	}
}

func TestMethodsAndPropertiesAreNeverReconciled(t *testing.T) {
	number := func(n uint32) *uint32 { return &n }
	for name, tt := range map[string]struct {
		change  func(*EncryptableVolume)
		subject string
	}{
		"protection":              {func(v *EncryptableVolume) { v.ProtectionProperty = number(0) }, "protection"},
		"conversion":              {func(v *EncryptableVolume) { v.ConversionProperty = number(0) }, "conversion"},
		"method":                  {func(v *EncryptableVolume) { v.MethodProperty = number(3) }, "method"},
		"encrypted in part":       {func(v *EncryptableVolume) { v.Conversion.Percentage-- }, "conversion"},
		"encrypted by no method":  {func(v *EncryptableVolume) { v.Method.Method, v.MethodProperty = 0, nil }, "method"},
		"protected and decrypted": {func(v *EncryptableVolume) { *v.Conversion, v.ConversionProperty = ConversionAnswer{}, nil }, "protection"},
		"decrypted in part": {func(v *EncryptableVolume) {
			v.Protection.Status, v.ProtectionProperty = 0, nil
			v.Conversion.Status, v.Conversion.Percentage, v.ConversionProperty = 0, 5, nil
		}, "conversion"},
	} {
		t.Run(name, func(t *testing.T) {
			e := describeBitLocker(protectedVolume(tt.change))
			if len(e.contradictions) != 1 || e.contradictions[0].Subject != tt.subject || e.contradictions[0].SaysA == e.contradictions[0].SaysB {
				t.Errorf("contradictions %v", e.contradictions)
			}
		})
	}
	// Properties alone are no evidence, and none is no contradiction.
	if e := describeBitLocker(protectedVolume(func(v *EncryptableVolume) {
		v.ProtectionProperty, v.ConversionProperty, v.MethodProperty = nil, nil, nil
	})); len(e.contradictions) != 0 {
		t.Errorf("contradictions %v", e.contradictions)
	}
}

func TestEveryMethodOfEncryptionHasItsName(t *testing.T) {
	want := []string{"none 0", "aes-128-diffuser 128", "aes-256-diffuser 256", "aes-128 128", "aes-256 256", "hardware 0", "xts-aes-128 128", "xts-aes-256 256", "unknown 0"}
	for code, w := range want {
		name, bits := encryptionMethod(uint32(code))
		if got := fmt.Sprint(name, " ", bits); got != w {
			t.Errorf("%d is %s, want %s", code, got, w)
		}
	}
}

func TestEachKindOfProtectorIsListedOnce(t *testing.T) {
	e := describeBitLocker(protectedVolume(func(v *EncryptableVolume) {
		v.Protectors.Types = nil
		for i := range 1000 {
			v.Protectors.Types = append(v.Protectors.Types, ProtectorType{Type: uint32(i % 13)})
		}
	}))
	if len(e.out.Protectors) != 11 { // ten kinds, and what is not known
		t.Errorf("protectors %v", e.out.Protectors)
	}
}
