package appraisal

import (
	"fmt"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// What is known of a volume by BitLocker alone.
const (
	// stateSuspended: encrypted, but protection is suspended: the key lies in
	// clear on the disk until it is resumed.
	stateSuspended encryptionState = "suspended"
	// stateWaiting: encrypted before anybody set it up, so the key lies in clear
	// on the disk until a key protector is added.
	stateWaiting encryptionState = "waiting_for_activation"
	// stateLocked: BitLocker cannot tell before somebody unlocks the volume.
	stateLocked encryptionState = "locked"
	// stateHardware: the disk encrypts by itself, which nobody can verify.
	stateHardware encryptionState = "hardware"
	// stateNoBitLocker: this Windows has no BitLocker to ask.
	stateNoBitLocker encryptionState = "no_bitlocker"
)

const allMillionths = 1_000_000

// bitLockerEncryption judges what BitLocker's methods said. Protection that is
// known to be off is no less off because another method failed; protection that
// is on counts only with everything else that belongs to it.
func bitLockerEncryption(b *posturev1.BitLocker) encryption {
	switch {
	case b.GetConversion() == posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTED:
		return encryption{state: statePlain}
	case keyInClear(b):
		if len(b.GetProtectors()) == 0 && wasRead(b) {
			return encryption{state: stateWaiting}
		}
		return encryption{state: stateSuspended}
	case b.GetReading().GetState() == posturev1.ReadingState_READING_STATE_NOT_APPLICABLE:
		return encryption{stateNoBitLocker, orElse(short(b.GetReading().GetReason()), "this Windows has no BitLocker to ask")}
	case b.GetLock() == posturev1.BitLockerLock_BIT_LOCKER_LOCK_LOCKED,
		b.GetProtection() == posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_UNKNOWN:
		return encryption{stateLocked, "the volume is locked"}
	case underWay(b):
		return encryption{stateInProgress, underWayText(b)}
	case !wasRead(b):
		return encryption{stateUnread, orElse(short(b.GetReading().GetReason()), "BitLocker was reported without a reading")}
	}
	return protectedWhole(b)
}

// protectedWhole looks whether protection that says it is on is all there.
func protectedWhole(b *posturev1.BitLocker) encryption {
	switch method := b.GetMethod(); {
	case b.GetProtection() != posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON:
		return encryption{stateUnread, "whether BitLocker protects the volume was not reported"}
	case b.GetConversion() != posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED:
		return encryption{stateUnread, "how much of the volume is encrypted was not reported"}
	case b.GetLock() != posturev1.BitLockerLock_BIT_LOCKER_LOCK_UNLOCKED:
		return encryption{stateUnread, "whether the volume is locked was not reported"}
	case b.GetEncryptedMillionths() != allMillionths:
		return encryption{stateUnverified, fmt.Sprintf("only %d millionths of the volume are encrypted", b.GetEncryptedMillionths())}
	case method == "hardware":
		return encryption{stateHardware, "the disk encrypts by itself, which cannot be verified"}
	case !strings.HasPrefix(method, "aes-") && !strings.HasPrefix(method, "xts-aes-"):
		return encryption{stateUnverified, "the method of encryption is not known: " + orElse(short(method), "not reported")}
	case len(b.GetProtectors()) == 0:
		return encryption{stateUnverified, "protection is on without any key protector"}
	}
	return encryption{state: stateEncrypted}
}

func wasRead(b *posturev1.BitLocker) bool {
	return b.GetReading().GetState() == posturev1.ReadingState_READING_STATE_OBSERVED
}

// keyInClear: the volume is encrypted, and the key to it lies beside.
func keyInClear(b *posturev1.BitLocker) bool {
	return b.GetProtection() == posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_OFF &&
		b.GetConversion() == posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTED
}

func underWay(b *posturev1.BitLocker) bool {
	switch b.GetConversion() {
	case posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTING,
		posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTING,
		posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTION_PAUSED,
		posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTION_PAUSED:
		return true
	}
	return false
}

func underWayText(b *posturev1.BitLocker) string {
	what := strings.TrimPrefix(b.GetConversion().String(), "BIT_LOCKER_CONVERSION_")
	return fmt.Sprintf("%s, %d%% of the volume is encrypted",
		strings.ToLower(strings.ReplaceAll(what, "_", " ")), b.GetEncryptedMillionths()/(allMillionths/100))
}

// protectorWord is one kind of key protector by its name in policies.
type protectorWord struct {
	kind posturev1.BitLockerProtector
	word string
}

// protectorWords are the kinds of key protectors, the weakest first: by what
// somebody needs who holds the notebook. The numerical password comes last,
// since it is the recovery password that stands beside every other kind, is
// kept elsewhere and too long to be guessed.
func protectorWords() []protectorWord {
	return []protectorWord{
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM, "tpm"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_CERTIFICATE, "tpm_certificate"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_EXTERNAL_KEY, "external_key"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_STARTUP_KEY, "tpm_startup_key"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_PASSPHRASE, "passphrase"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_SID, "sid"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_PIN, "tpm_pin"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_TPM_PIN_STARTUP_KEY, "tpm_pin_startup_key"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_PUBLIC_KEY, "public_key"},
		{posturev1.BitLockerProtector_BIT_LOCKER_PROTECTOR_NUMERICAL_PASSWORD, "numerical_password"},
	}
}

// clearKey is what opens a volume whose protection is off: nothing is needed.
const clearKey = "clear_key"

// weakestProtector is what opens the volume with the least effort: any one
// protector is enough, so a bare TPM beside a PIN voids the PIN. It cannot tell
// when not all are known.
func weakestProtector(v *posturev1.Volume) (string, error) {
	b := v.GetBitlocker()
	if keyInClear(b) {
		return clearKey, nil
	}
	unknown := func(de, en string) (string, error) {
		return "", cannotTell(fmt.Sprintf("Der Schlüsselschutz von %s ist nicht feststellbar: %s.", volumeName(v, "de"), de),
			fmt.Sprintf("The key protectors of the %s are unknown: %s.", volumeName(v, "en"), en))
	}
	switch {
	case b == nil:
		return unknown("Angaben zu BitLocker fehlen", "nothing of BitLocker was reported")
	case v.GetReading().GetState() != posturev1.ReadingState_READING_STATE_OBSERVED || !wasRead(b):
		reason := orElse(short(b.GetReading().GetReason()), "BitLocker was reported without a reading")
		return unknown(reason, reason)
	case b.GetProtection() != posturev1.BitLockerProtection_BIT_LOCKER_PROTECTION_ON:
		return unknown("BitLocker schützt es nicht", "BitLocker does not protect it")
	case len(b.GetProtectors()) == 0:
		return unknown("BitLocker nennt keinen Schlüsselschutz", "BitLocker names no key protector")
	}
	words := protectorWords()
	weakest := len(words)
	for _, p := range b.GetProtectors() {
		i := slices.IndexFunc(words, func(w protectorWord) bool { return w.kind == p })
		if i < 0 {
			return unknown("ein Schlüsselschutz ist von unbekannter Art", "a key protector is of unknown kind")
		}
		weakest = min(weakest, i)
	}
	return words[weakest].word, nil
}

// bitLockerNote is what a finding shows of BitLocker beside the state.
func bitLockerNote(v *posturev1.Volume) string {
	b := v.GetBitlocker()
	if b == nil {
		return ""
	}
	var notes []string
	if word, err := weakestProtector(v); err == nil {
		notes = append(notes, "opened by "+word)
	}
	if keyInClear(b) && b.GetSuspendedRestarts() > 0 {
		notes = append(notes, fmt.Sprintf("for %d restarts", b.GetSuspendedRestarts()))
	}
	if b.GetUsedSpaceOnly() == posturev1.Ternary_TERNARY_YES {
		notes = append(notes, "used space only")
	}
	if len(notes) == 0 {
		return ""
	}
	return " (" + strings.Join(notes, ", ") + ")"
}

// suspension says how a volume came to lie open, and whether that ends.
func suspension(v *posturev1.Volume, lang string) string {
	de, en := " (der Schutz durch BitLocker ist angehalten, ohne dass ein Ende festgelegt ist)", " (BitLocker protection is suspended with no end set)"
	switch n := v.GetBitlocker().GetSuspendedRestarts(); {
	case n == 1:
		de, en = " (der Schutz durch BitLocker ist bis zum nächsten Neustart angehalten)", " (BitLocker protection is suspended until the next restart)"
	case n > 1:
		de = fmt.Sprintf(" (der Schutz durch BitLocker ist für %d Neustarts angehalten)", n)
		en = fmt.Sprintf(" (BitLocker protection is suspended for %d restarts)", n)
	}
	if lang == "de" {
		return de
	}
	return en
}

// germanReason is why BitLocker's state is not known, for states that have
// words of their own.
func germanReason(v *posturev1.Volume, e encryption) string {
	b := v.GetBitlocker()
	switch e.state {
	case stateLocked:
		return "Das Laufwerk ist gesperrt"
	case stateHardware:
		return "Die Festplatte verschlüsselt selbst, was sich nicht überprüfen lässt"
	case stateNoBitLocker:
		return "In diesem Windows gibt es kein BitLocker"
	case stateInProgress:
		percent := b.GetEncryptedMillionths() / (allMillionths / 100)
		switch b.GetConversion() {
		case posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTING:
			return fmt.Sprintf("Es wird gerade verschlüsselt, %d %% sind fertig", percent)
		case posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_ENCRYPTION_PAUSED:
			return fmt.Sprintf("Das Verschlüsseln ist angehalten, %d %% sind fertig", percent)
		case posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTING:
			return fmt.Sprintf("Es wird gerade entschlüsselt, %d %% sind noch verschlüsselt", percent)
		case posturev1.BitLockerConversion_BIT_LOCKER_CONVERSION_DECRYPTION_PAUSED:
			return fmt.Sprintf("Das Entschlüsseln ist angehalten, %d %% sind noch verschlüsselt", percent)
		}
	}
	return e.reason
}
