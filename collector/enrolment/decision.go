package enrolment

import fleetv1 "pfoertner/proto/pfoertner/fleet/v1"

// facts is all that the decision about an enrolment rests on, after the
// notebook has proven what it claims. Zero values speak for nobody.
type facts struct {
	// hardware: the key is in a TPM. The fields about TPMs hold only then.
	hardware bool
	token    tokenFact
	// state is that of the asset that the notebook may be: the one that has its
	// endorsement key, or else the token's. Unspecified: there is none.
	state fleetv1.AssetState
	// serialDiffers: the notebook has another serial number than the asset.
	serialDiffers bool

	voucher voucherFact
	ek      endorsementFact
	// elsewhere: the endorsement key belongs to another asset than the token.
	elsewhere bool
	// occupied: the token's asset has another endorsement key.
	occupied bool
	// exchanged: the asset had another TPM before.
	exchanged bool
	// enrolledWith: the active device was enrolled with this endorsement key, so
	// somebody spoke for it then.
	enrolledWith bool
	ak           attestationFact
	// window: the asset's window for setting it up anew is open.
	window bool
	// seenLately: the device was seen within maxAbsence.
	seenLately bool

	// hadTPM: the asset has, or had, a key in a TPM.
	hadTPM bool
	// permitted: two persons allow the asset a software key, still.
	permitted bool
}

// tokenFact is what the token is worth.
type tokenFact int

const (
	tokenNone tokenFact = iota
	tokenUnknown
	tokenUsed
	tokenExpired
	tokenValid
)

// voucherFact is who speaks for the TPM.
type voucherFact int

const (
	// disbelieved: something false or unfitting was shown, or nobody was asked.
	disbelieved voucherFact = iota
	// bare: there is no certificate, or it has expired.
	bare
	// genuine: a manufacturer's authority, or one of virtual TPMs that is
	// allowed.
	genuine
)

// endorsementFact is what the inventory says of the endorsement key.
type endorsementFact int

const (
	ekUnknown endorsementFact = iota
	// ekBlocked: rejected for this asset, or exchanged.
	ekBlocked
	// ekWaiting: it asked before, and two persons have to decide.
	ekWaiting
	ekListed
	// ekApproved: two persons have compared its fingerprint.
	ekApproved
)

// attestationFact is what is known of the attestation key.
type attestationFact int

const (
	// akOther: the device has another one.
	akOther attestationFact = iota
	akNone
	akSame
)

// ruling is what becomes of an enrolment.
type ruling struct {
	outcome outcome
	// reason is one word: why it waits (fleet.v1 PendingEnrolment), why it is
	// refused, or how it was let in ("enrolled", "recovered", "reimaged").
	reason string
	// record is the kind of audit record of a refusal; empty: recordRefused.
	record string
}

type outcome int

const (
	refuse outcome = iota
	wait
	issue
)

// Audit records of refusals.
const (
	recordRefused   = "enrolment.refused"
	recordToken     = "token.refused"
	recordSerial    = "device.serial_mismatch"
	recordEndorsed  = "alarm.endorsement"
	recordConflict  = "alarm.endorsement_conflict"
	recordDowngrade = "alarm.downgrade"
)

// decide is the decision about a notebook that has proven its claims. A genuine
// TPM proves only that it is one: whose it is says the inventory, a token with
// two persons' approval, or what is known of the device from before.
func decide(f facts) ruling {
	if !f.hardware {
		return decideSoftware(f)
	}
	switch {
	case f.voucher == disbelieved:
		return ruling{refuse, "endorsement", recordEndorsed}
	case f.token == tokenValid && (f.elsewhere || f.occupied):
		return ruling{refuse, "endorsement_conflict", recordConflict}
	case f.ek == ekBlocked:
		return f.unwelcome("endorsement_blocked")
	case f.ek == ekUnknown && f.token != tokenValid:
		return f.unwelcome("endorsement_unknown")
	case !enrollable(f.state):
		return ruling{refuse, "asset_" + stateName(f.state), recordRefused}
	case f.serialDiffers && !f.known():
		return ruling{refuse, "serial", recordSerial}
	case f.ek == ekUnknown || f.ek == ekWaiting:
		return ruling{outcome: wait, reason: f.doubt()}
	case f.voucher == bare && f.ek != ekApproved && !f.enrolledWith:
		return ruling{outcome: wait, reason: f.doubt()}
	case f.state != active || f.ak == akNone:
		return ruling{outcome: issue, reason: "enrolled"}
	}
	return f.again()
}

// known says whether this is the very TPM, with the very attestation key, that
// the device was enrolled with. It proves more than a serial number, which a new
// firmware may have lost: another one is an alarm then, and no obstacle.
func (f facts) known() bool { return f.state == active && f.enrolledWith && f.ak == akSame }

// again decides about an active device that enrols once more.
func (f facts) again() ruling {
	invited := f.token == tokenValid || f.window
	switch {
	case f.ak == akSame && (f.seenLately || invited):
		return ruling{outcome: issue, reason: "recovered"}
	case f.ak == akSame:
		return f.unwelcome("absent")
	case invited:
		return ruling{outcome: issue, reason: "reimaged"}
	}
	return f.unwelcome("reimage")
}

func decideSoftware(f facts) ruling {
	switch {
	case f.token != tokenValid:
		return f.unwelcome("no_token")
	case !enrollable(f.state):
		return ruling{refuse, "asset_" + stateName(f.state), recordRefused}
	case f.hadTPM || !f.permitted:
		return ruling{refuse, "downgrade", recordDowngrade}
	case f.serialDiffers:
		return ruling{refuse, "serial", recordSerial}
	}
	return ruling{outcome: issue, reason: "enrolled"}
}

// doubt is why two persons have to decide.
func (f facts) doubt() string {
	switch {
	case f.exchanged:
		return "endorsement_exchanged"
	case f.voucher == bare:
		return "endorsement_bare"
	}
	return "endorsement_unknown"
}

// unwelcome refuses; a token that is worth nothing is the reason, if there was
// one.
func (f facts) unwelcome(reason string) ruling {
	switch f.token {
	case tokenUnknown:
		return ruling{refuse, "unknown", recordToken}
	case tokenUsed:
		return ruling{refuse, "used", recordToken}
	case tokenExpired:
		return ruling{refuse, "expired", recordToken}
	}
	return ruling{refuse, reason, recordRefused}
}

func enrollable(s fleetv1.AssetState) bool { return s == expected || s == pending || s == active }
