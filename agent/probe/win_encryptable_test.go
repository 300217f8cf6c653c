package probe

import (
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"
)

// These methods of Win32_EncryptableVolume hand out keys or change the volume
// (Microsoft Learn, "Win32_EncryptableVolume class"). None of them may ever be
// called.
func forbiddenMethods() []string {
	return []string{
		"GetKeyProtectorNumericalPassword", "GetKeyProtectorExternalKey", "GetExternalKeyFileName",
		"GetExternalKeyFromFile", "SaveExternalKeyToFile", "GetKeyPackage", "GetKeyProtectorCertificate",
		"GetKeyProtectorPlatformValidationProfile", "GetKeyProtectorFriendlyName", "GetKeyProtectorAdSidInformation",
		"GetIdentificationField", "BackupRecoveryInformationToActiveDirectory", "BackupRecoveryInformationToCloudDomain",
		"Decrypt", "Encrypt", "EncryptAfterHardwareTest", "PauseConversion", "ResumeConversion", "PrepareVolume", "UpgradeVolume",
		"Lock", "UnlockWithNumericalPassword", "UnlockWithExternalKey", "UnlockWithPassphrase", "UnlockWithCertificateFile",
		"UnlockWithCertificateThumbprint", "UnlockWithAdSid", "UnlockWithEnhancedPin",
		"EnableKeyProtectors", "DisableKeyProtectors", "DeleteKeyProtector", "DeleteKeyProtectors",
		"EnableAutoUnlock", "DisableAutoUnlock", "ClearAllAutoUnlockKeys", "SetIdentificationField",
		"ChangePIN", "ChangePassphrase", "ChangeExternalKey",
		"ProtectKeyWithNumericalPassword", "ProtectKeyWithExternalKey", "ProtectKeyWithPassphrase", "ProtectKeyWithTPM",
		"ProtectKeyWithTPMAndPIN", "ProtectKeyWithTPMAndStartupKey", "ProtectKeyWithTPMAndPINAndStartupKey",
		"ProtectKeyWithCertificateFile", "ProtectKeyWithCertificateThumbprint", "ProtectKeyWithAdSid",
		"getkeyprotectornumericalpassword", "",
	}
}

func TestMethodsThatRevealKeysOrChangeAVolumeCannotBeCalled(t *testing.T) {
	for _, method := range forbiddenMethods() {
		if err := mayCall(method); !errors.Is(err, errForbiddenMethod) {
			t.Errorf("%s may be called: %v", method, err)
		}
	}
	if n := len(encryptableMethods()); n != 8 {
		t.Errorf("the list of methods has %d entries: is each new one known to reveal nothing?", n)
	}
	for _, method := range encryptableMethods() {
		if err := mayCall(method); err != nil {
			t.Error(err)
		}
	}
}

// instance is a recorded Win32_EncryptableVolume, or what a method answered.
type instance struct {
	properties map[string]any
	methods    map[string]func(in []wmiArgument) (wmiObject, error)
	asked      *[]string
}

func (i instance) property(name string) (any, error) {
	v, ok := i.properties[name]
	if !ok {
		return nil, &comError{name, wbemNotFound}
	}
	if code, failed := v.(*comError); failed {
		return nil, code
	}
	return v, nil
}

func (i instance) call(method string, in ...wmiArgument) (wmiObject, error) {
	if err := mayCall(method); err != nil {
		return nil, err
	}
	*i.asked = append(*i.asked, method)
	answer, ok := i.methods[method]
	if !ok {
		return nil, &comError{method, wbemInvalidMethod}
	}
	return answer(in)
}

func answers(properties map[string]any) func([]wmiArgument) (wmiObject, error) {
	return func([]wmiArgument) (wmiObject, error) { return instance{properties: properties}, nil }
}

// protected is a volume with TPM and recovery password.
func protected() instance {
	return instance{
		asked: new([]string),
		properties: map[string]any{
			"DeviceID": `\\?\Volume{00000000-0000-0000-0000-000000000001}\`, "DriveLetter": "C:",
			"ProtectionStatus": int64(1), "ConversionStatus": int64(1), "EncryptionMethod": int64(7), "VolumeType": int64(0),
		},
		methods: map[string]func([]wmiArgument) (wmiObject, error){
			"GetProtectionStatus": answers(map[string]any{"ReturnValue": int64(0), "ProtectionStatus": int64(1)}),
			"GetConversionStatus": func(in []wmiArgument) (wmiObject, error) {
				if !reflect.DeepEqual(in, []wmiArgument{{"PrecisionFactor", int32(4)}}) {
					return nil, errors.New("the percentage would be rounded")
				}
				return instance{properties: map[string]any{
					"ReturnValue": int64(0), "ConversionStatus": int64(1), "EncryptionPercentage": int64(1_000_000),
					"EncryptionFlags": int64(-2147483647), "WipingStatus": int64(0),
				}}, nil
			},
			"GetEncryptionMethod": answers(map[string]any{
				"ReturnValue": int64(0), "EncryptionMethod": int64(7), "SelfEncryptionDriveEncryptionMethod": nil,
			}),
			"GetLockStatus": answers(map[string]any{"ReturnValue": int64(0), "LockStatus": int64(0)}),
			"GetVersion":    answers(map[string]any{"ReturnValue": int64(0), "Version": int64(2)}),
			"GetKeyProtectors": answers(map[string]any{
				"ReturnValue": int64(0), "VolumeKeyProtectorID": []string{"{a}", "{b}"},
			}),
			"GetKeyProtectorType": func(in []wmiArgument) (wmiObject, error) {
				kinds := map[any]int64{"{a}": 1, "{b}": 3}
				return instance{properties: map[string]any{"ReturnValue": int64(0), "KeyProtectorType": kinds[in[0].value]}}, nil
			},
			"GetSuspendCount": answers(map[string]any{"ReturnValue": int64(0), "SuspendCount": int64(0)}),
		},
	}
}

func TestEveryMethodOfAVolumeIsAsked(t *testing.T) {
	i := protected()
	v, err := readEncryptable(i)
	if err != nil {
		t.Fatal(err)
	}
	one, seven, zero := uint32(1), uint32(7), uint32(0)
	want := EncryptableVolume{
		Volume: `\\?\Volume{00000000-0000-0000-0000-000000000001}\`, Letter: true,
		ProtectionProperty: &one, ConversionProperty: &one, MethodProperty: &seven, VolumeType: &zero,
		Protection: &ProtectionAnswer{Status: 1},
		Conversion: &ConversionAnswer{Status: 1, Percentage: 1_000_000, Flags: 0x80000001},
		Method:     &MethodAnswer{Method: 7},
		Lock:       &LockAnswer{},
		Version:    &VersionAnswer{Version: 2},
		Protectors: &ProtectorsAnswer{Types: []ProtectorType{{Type: 1}, {Type: 3}}},
		Suspended:  &SuspendAnswer{},
	}
	if !reflect.DeepEqual(v, want) {
		t.Errorf("got %+v\nwant %+v", v, want)
	}
	for _, method := range encryptableMethods() {
		if !slices.Contains(*i.asked, method) {
			t.Errorf("%s was not asked", method)
		}
	}
}

// Whatever a method does not tell must not look like an answer: zero would be
// "decrypted", "unlocked" or "no wiping" (osquery: failed reads left zeros).
func TestWhatAMethodDoesNotTellIsNoZero(t *testing.T) {
	i := protected()
	i.methods["GetProtectionStatus"] = func([]wmiArgument) (wmiObject, error) { return nil, &comError{"GetProtectionStatus", 0x80041003} }
	i.methods["GetConversionStatus"] = answers(map[string]any{
		"ReturnValue": int64(0), "ConversionStatus": int64(1), "EncryptionPercentage": int64(1_000_000), "WipingStatus": int64(0),
	})
	i.methods["GetEncryptionMethod"] = answers(map[string]any{"ReturnValue": int64(-2144272384)})
	i.methods["GetLockStatus"] = answers(map[string]any{"LockStatus": int64(0)})
	i.methods["GetVersion"] = answers(map[string]any{"ReturnValue": int64(0), "Version": "two"})
	i.methods["GetKeyProtectors"] = answers(map[string]any{"ReturnValue": int64(0), "VolumeKeyProtectorID": &comError{"x", 0x80041001}})
	delete(i.methods, "GetSuspendCount")
	delete(i.properties, "VolumeType")
	v, err := readEncryptable(i)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]uint32{
		"access denied": v.Protection.Return, "no flags": v.Conversion.Return, "locked": v.Method.Return,
		"no return value": v.Lock.Return, "a text": v.Version.Return, "no list": v.Protectors.Return,
	} {
		if got == 0 {
			t.Errorf("%s: it says success", name)
		}
	}
	if v.Protection.Return != 0x80041003 || v.Method.Return != 0x80310000 {
		t.Errorf("codes are 0x%08X and 0x%08X", v.Protection.Return, v.Method.Return)
	}
	if v.Suspended != nil || v.VolumeType != nil {
		t.Error("what the class does not have must be absent")
	}
}

func TestProtectorWhoseKindIsNotToldIsOneOfUnknownKind(t *testing.T) {
	i := protected()
	delete(i.methods, "GetKeyProtectorType")
	v, err := readEncryptable(i)
	if err != nil || len(v.Protectors.Types) != 2 || v.Protectors.Types[0].Return == 0 {
		t.Errorf("%+v, %v", v.Protectors, err)
	}
}

func TestVolumeWithoutANameIsAnError(t *testing.T) {
	for _, id := range []any{nil, "", int64(3), &comError{"DeviceID", 0x80041001}} {
		i := protected()
		i.properties["DeviceID"] = id
		if _, err := readEncryptable(i); err == nil {
			t.Errorf("DeviceID %v: no error", id)
		}
	}
}

func TestOLEDates(t *testing.T) {
	for _, c := range []struct {
		days float64
		want string
	}{
		{46193.25, "2026-06-20T06:00:00Z"},
		{46193.999988426, "2026-06-20T23:59:59Z"},
		{32874, "1990-01-01T00:00:00Z"},
		{0, ""}, {-1.5, ""}, {math.NaN(), ""}, {math.Inf(1), ""}, {1e18, ""},
	} {
		got := oleDate(c.days)
		if c.want == "" && !got.IsZero() || c.want != "" && got.Format(time.RFC3339) != c.want {
			t.Errorf("%v: %v, want %s", c.days, got, c.want)
		}
	}
}
