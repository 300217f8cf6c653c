package probe

import (
	"fmt"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const sourceBitLocker = "Win32_EncryptableVolume"

// Results of BitLocker's methods that are an answer of their own (winerror.h,
// FVE_E_LOCKED_VOLUME, FVE_E_SECURE_KEY_REQUIRED and FVE_E_NOT_ACTIVATED).
const (
	resultLocked       = 0x80310000
	resultNoSecureKey  = 0x80310007
	resultNotActivated = 0x80310008
)

// allMillionths is a volume that is encrypted to its end.
const allMillionths = 1_000_000

// encryptable is one instance of Win32_EncryptableVolume on its way into
// evidence. Only what a method answered becomes evidence. The properties of the
// same names are cached by Windows and have said "on" of plain disks: they are
// compared and never taken for an answer.
type encryptable struct {
	answers EncryptableVolume
	out     *posturev1.BitLocker
	// problems are methods without an answer, notes are results that are
	// explained by the volume's state.
	problems, notes []string
	// contradictions have subjects below the BitLocker message.
	contradictions []*posturev1.Contradiction
}

// describeBitLocker turns what the methods of one volume answered into
// evidence. A method that failed leaves its field unspecified.
func describeBitLocker(answers EncryptableVolume) *encryptable {
	e := &encryptable{answers: answers, out: &posturev1.BitLocker{}}
	e.lock()
	e.protection()
	e.conversion()
	e.method()
	e.protectors()
	e.suspension()
	e.agree()
	e.out.Reading = &posturev1.Reading{
		State:  posturev1.ReadingState_READING_STATE_OBSERVED,
		Source: sourceBitLocker,
		Reason: oneLine(strings.Join(slices.Concat(e.problems, e.notes), "; ")),
	}
	if len(e.problems) > 0 {
		e.out.Reading.State = posturev1.ReadingState_READING_STATE_FAILED
	}
	return e
}

// unanswered is a method that was not called, since the class does not have it.
func (e *encryptable) unanswered(name string) {
	e.problems = append(e.problems, name+": was not answered")
}

// succeeded says whether a method has an answer by what it returned. A result
// that excused lists is explained by the volume's state and no failure.
func (e *encryptable) succeeded(name string, result uint32, excused ...uint32) bool {
	switch {
	case result == 0:
		return true
	case slices.Contains(excused, result), result == resultLocked && e.locked():
		e.notes = append(e.notes, fmt.Sprintf("%s: 0x%08X%s", name, result, meaning(result)))
	default:
		e.problems = append(e.problems, fmt.Sprintf("%s: error 0x%08X%s", name, result, meaning(result)))
	}
	return false
}

func meaning(result uint32) string {
	switch result {
	case resultLocked:
		return " (the volume is locked)"
	case resultNoSecureKey:
		return " (there is no secure key protector)"
	case resultNotActivated:
		return " (BitLocker is not activated)"
	}
	return ""
}

// unknownCode is a number that the method's documentation does not have.
func (e *encryptable) unknownCode(name string, code uint32) {
	e.problems = append(e.problems, fmt.Sprintf("%s: answered %d, which is not known", name, code))
}

// compare reports a property that says otherwise than the method.
func (e *encryptable) compare(field, method string, says uint32, property string, cached *uint32) {
	if cached != nil && *cached != says {
		e.contradict(field, method, fmt.Sprint(says), "property "+property, fmt.Sprint(*cached))
	}
}

func (e *encryptable) contradict(field, sourceA, saysA, sourceB, saysB string) {
	e.contradictions = append(e.contradictions, &posturev1.Contradiction{
		Subject: field, SourceA: sourceA, SaysA: saysA, SourceB: sourceB, SaysB: saysB,
	})
}

func (e *encryptable) locked() bool {
	return e.out.Lock == posturev1.BitLockerLock_BIT_LOCKER_LOCK_LOCKED
}

// lock comes first: of a locked volume most methods tell nothing else.
func (e *encryptable) lock() {
	const name = "GetLockStatus"
	a := e.answers.Lock
	if a == nil {
		e.unanswered(name)
		return
	}
	if !e.succeeded(name, a.Return) {
		return
	}
	switch a.Status {
	case 0:
		e.out.Lock = posturev1.BitLockerLock_BIT_LOCKER_LOCK_UNLOCKED
	case 1:
		e.out.Lock = posturev1.BitLockerLock_BIT_LOCKER_LOCK_LOCKED
	default:
		e.unknownCode(name, a.Status)
	}
}

func (e *encryptable) protection() {
	const name = "GetProtectionStatus"
	a := e.answers.Protection
	if a == nil {
		e.unanswered(name)
		return
	}
	if !e.succeeded(name, a.Return) {
		return
	}
	e.compare("protection", name, a.Status, "ProtectionStatus", e.answers.ProtectionProperty)
	switch a.Status {
	case 0:
		e.out.Protection = posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_OFF
	case 1:
		e.out.Protection = posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON
	case 2:
		e.out.Protection = posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_UNKNOWN
	default:
		e.unknownCode(name, a.Status)
	}
}

func (e *encryptable) conversion() {
	const name = "GetConversionStatus"
	a := e.answers.Conversion
	if a == nil {
		e.unanswered(name)
		return
	}
	if !e.succeeded(name, a.Return) {
		return
	}
	e.compare("conversion", name, a.Status, "ConversionStatus", e.answers.ConversionProperty)
	if a.Status > 5 {
		e.unknownCode(name, a.Status)
	} else {
		e.out.Conversion = posturev1.BitLockerConversion(a.Status + 1)
	}
	if a.Wiping > 3 {
		e.unknownCode(name+" (wiping)", a.Wiping)
	} else {
		e.out.Wiping = posturev1.BitLockerWiping(a.Wiping + 1)
	}
	e.out.UsedSpaceOnly = ternary(a.Flags&1 != 0)
	if a.Percentage > allMillionths {
		e.unknownCode(name+" (percentage)", a.Percentage)
		return
	}
	e.out.EncryptedMillionths = a.Percentage
	says := ""
	switch {
	case a.Status == 0 && a.Percentage > 0:
		says = "decrypted"
	case a.Status == 1 && a.Percentage < allMillionths:
		says = "encrypted"
	default:
		return
	}
	e.contradict("conversion", name, says, name+" (percentage)", fmt.Sprintf("%d of %d", a.Percentage, allMillionths))
}

func (e *encryptable) method() {
	const name = "GetEncryptionMethod"
	a := e.answers.Method
	if a == nil {
		e.unanswered(name)
		return
	}
	if !e.succeeded(name, a.Return) {
		return
	}
	e.compare("method", name, a.Method, "EncryptionMethod", e.answers.MethodProperty)
	e.out.Method, _ = encryptionMethod(a.Method)
	if e.out.Method == "unknown" {
		e.unknownCode(name, a.Method)
	}
}

// encryptionMethod names a method of GetEncryptionMethod, with the length of
// its key in bits.
func encryptionMethod(code uint32) (name string, keyBits uint32) {
	switch code {
	case 0:
		return "none", 0
	case 1:
		return "aes-128-diffuser", 128
	case 2:
		return "aes-256-diffuser", 256
	case 3:
		return "aes-128", 128
	case 4:
		return "aes-256", 256
	case 5:
		return "hardware", 0
	case 6:
		return "xts-aes-128", 128
	case 7:
		return "xts-aes-256", 256
	}
	return "unknown", 0
}

// protectors lists each kind once. A volume without any says so by one of two
// errors.
func (e *encryptable) protectors() {
	const name = "GetKeyProtectors"
	a := e.answers.Protectors
	if a == nil {
		e.unanswered(name)
		return
	}
	if !e.succeeded(name, a.Return, resultNoSecureKey, resultNotActivated) {
		return
	}
	for _, t := range a.Types {
		if !e.succeeded("GetKeyProtectorType", t.Return) {
			continue
		}
		kind := posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_OTHER
		if t.Type >= 1 && t.Type <= 10 {
			kind = posturev1.BitLockerProtector(t.Type)
		}
		if !slices.Contains(e.out.Protectors, kind) {
			e.out.Protectors = append(e.out.Protectors, kind)
		}
	}
	slices.Sort(e.out.Protectors)
}

// suspension is asked only where protection is off: elsewhere the count means
// nothing. Windows before 8 has no such method.
func (e *encryptable) suspension() {
	const name = "GetSuspendCount"
	a := e.answers.Suspended
	if a == nil || e.out.Protection != posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_OFF {
		return
	}
	if e.succeeded(name, a.Return, resultNoSecureKey, resultNotActivated) {
		e.out.SuspendedRestarts = a.Count
	}
}

// agree looks whether the methods fit each other.
func (e *encryptable) agree() {
	const encrypted, decrypted = posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED, posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTED
	on := e.out.Protection == posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON
	if on && e.out.Conversion == decrypted {
		e.contradict("protection", "GetProtectionStatus", "on", "GetConversionStatus", "decrypted")
	}
	if e.out.Conversion == encrypted && e.out.Method == "none" {
		e.contradict("method", "GetConversionStatus", "encrypted", "GetEncryptionMethod", "none")
	}
}

// layer is BitLocker as a layer of storage; nil for a volume that is known to
// be decrypted.
func (e *encryptable) layer() *posturev1.StorageLayer {
	out := e.out
	if out.Conversion == posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTED {
		return nil
	}
	l := &posturev1.StorageLayer{
		Type:       posturev1.LayerType_LAYER_TYPE_BITLOCKER,
		VerifiedBy: posturev1.VerifiedBy_VERIFIED_BY_NONE,
	}
	if a := e.answers.Method; a != nil && a.Return == 0 {
		l.Cipher, l.KeyBits = encryptionMethod(a.Method)
	}
	switch out.Protection {
	case posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON:
		l.KeyFile = posturev1.KeyFile_KEY_FILE_NONE
	case posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_OFF:
		if out.Conversion == posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED {
			l.KeyFile = posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT
		}
	}
	switch {
	case out.Conversion != posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED, out.EncryptedMillionths != allMillionths:
		l.Reason = "the volume is not known to be encrypted to its end"
	case l.KeyFile == posturev1.KeyFile_KEY_FILE_ON_PLAINTEXT:
		l.Reason = "protection is off: the key lies in clear on the disk"
	case l.KeyFile != posturev1.KeyFile_KEY_FILE_NONE:
		l.Reason = "BitLocker does not say whether it protects the volume"
	case len(out.Protectors) == 0:
		l.Reason = "BitLocker names no key protector"
	case l.KeyBits == 0:
		l.Reason = "the method of encryption cannot be verified"
	case out.Reading.State != posturev1.ReadingState_READING_STATE_OBSERVED || e.locked():
		l.Reason = "BitLocker did not answer everything"
	default:
		// The driver that encrypts said so itself.
		l.VerifiedBy = posturev1.VerifiedBy_VERIFIED_BY_TABLE
	}
	return l
}
