package enrolment

import (
	"fmt"
	"testing"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// Every row of the table of decisions, and what stands beside it.
func TestDecisions(t *testing.T) {
	// A notebook of the delivery list, and one that is a device already.
	listed := facts{hardware: true, voucher: genuine, ek: ekListed, state: expected, ak: akNone}
	device := facts{hardware: true, voucher: genuine, ek: ekListed, state: active, ak: akSame, enrolledWith: true, seenLately: true, hadTPM: true}
	stranger := facts{hardware: true, voucher: genuine, ak: akNone}
	invited := facts{hardware: true, voucher: genuine, state: expected, token: tokenValid, ak: akNone}
	waiting := facts{hardware: true, voucher: genuine, ek: ekWaiting, state: pending, ak: akNone}
	approved := facts{hardware: true, voucher: genuine, ek: ekApproved, state: pending, ak: akNone}
	software := facts{token: tokenValid, state: expected, permitted: true}
	with := func(f facts, change func(*facts)) facts { change(&f); return f }

	issued := func(way string) ruling { return ruling{outcome: issue, reason: way} }
	waits := func(why string) ruling { return ruling{outcome: wait, reason: why} }
	refused := func(why string) ruling { return ruling{refuse, why, recordRefused} }
	for name, tc := range map[string]struct {
		facts facts
		want  ruling
	}{
		"nothing is known":          {facts{}, refused("no_token")},
		"nothing is known of a TPM": {facts{hardware: true}, ruling{refuse, "endorsement", recordEndorsed}},

		// Genuine and listed.
		"listed":                           {listed, issued("enrolled")},
		"listed, with its token":           {with(listed, func(f *facts) { f.token = tokenValid }), issued("enrolled")},
		"listed, with a spent token":       {with(listed, func(f *facts) { f.token = tokenUsed }), issued("enrolled")},
		"listed, asset waits for another":  {with(listed, func(f *facts) { f.state = pending }), issued("enrolled")},
		"listed, asset had a software key": {with(listed, func(f *facts) { f.state = active }), issued("enrolled")},
		"approved":                         {approved, issued("enrolled")},
		"approved, and active":             {with(device, func(f *facts) { f.ek = ekApproved }), issued("recovered")},

		// A device again.
		"same TPM, same key":                         {device, issued("recovered")},
		"same TPM, same key, spent token":            {with(device, func(f *facts) { f.token = tokenUsed }), issued("recovered")},
		"same, certificate has expired":              {with(device, func(f *facts) { f.voucher = bare }), issued("recovered")},
		"same, not seen for long":                    {with(device, func(f *facts) { f.seenLately = false }), refused("absent")},
		"same, not seen for long, a token":           {with(device, func(f *facts) { f.seenLately = false; f.token = tokenValid }), issued("recovered")},
		"same, not seen for long, a window":          {with(device, func(f *facts) { f.seenLately = false; f.window = true }), issued("recovered")},
		"another attestation key":                    {with(device, func(f *facts) { f.ak = akOther }), refused("reimage")},
		"another, with a token":                      {with(device, func(f *facts) { f.ak = akOther; f.token = tokenValid }), issued("reimaged")},
		"another, with a spent token":                {with(device, func(f *facts) { f.ak = akOther; f.token = tokenUsed }), ruling{refuse, "used", recordToken}},
		"another, in the window":                     {with(device, func(f *facts) { f.ak = akOther; f.window = true }), issued("reimaged")},
		"another, window, no serial number":          {with(device, func(f *facts) { f.ak = akOther; f.window = true; f.serialDiffers = true }), ruling{refuse, "serial", recordSerial}},
		"enrolled with another TPM of its, now bare": {with(device, func(f *facts) { f.voucher = bare; f.enrolledWith = false }), waits("endorsement_bare")},

		// Genuine, of nobody.
		"stranger":                     {stranger, refused("endorsement_unknown")},
		"stranger in a window":         {with(stranger, func(f *facts) { f.window = true }), refused("endorsement_unknown")},
		"stranger with a guess":        {with(stranger, func(f *facts) { f.token = tokenUnknown }), ruling{refuse, "unknown", recordToken}},
		"stranger with a spent token":  {with(stranger, func(f *facts) { f.token = tokenUsed }), ruling{refuse, "used", recordToken}},
		"stranger with an old token":   {with(stranger, func(f *facts) { f.token = tokenExpired }), ruling{refuse, "expired", recordToken}},
		"token":                        {invited, waits("endorsement_unknown")},
		"token, active without a TPM":  {with(invited, func(f *facts) { f.state = active }), waits("endorsement_unknown")},
		"token, after an exchange":     {with(invited, func(f *facts) { f.exchanged = true }), waits("endorsement_exchanged")},
		"token, another serial number": {with(invited, func(f *facts) { f.serialDiffers = true }), ruling{refuse, "serial", recordSerial}},
		"asks again":                   {waiting, waits("endorsement_unknown")},
		"asks again with that token":   {with(waiting, func(f *facts) { f.token = tokenUsed }), waits("endorsement_unknown")},
		"asks again with a new token":  {with(waiting, func(f *facts) { f.token = tokenValid }), waits("endorsement_unknown")},
		"waits, asset is active":       {with(waiting, func(f *facts) { f.state = active; f.ak = akSame; f.seenLately = true }), waits("endorsement_unknown")},

		// Nobody speaks for the TPM.
		"bare":                 {with(stranger, func(f *facts) { f.voucher = bare }), refused("endorsement_unknown")},
		"bare, listed":         {with(listed, func(f *facts) { f.voucher = bare }), waits("endorsement_bare")},
		"bare, with a token":   {with(invited, func(f *facts) { f.voucher = bare }), waits("endorsement_bare")},
		"bare, exchanged":      {with(invited, func(f *facts) { f.voucher = bare; f.exchanged = true }), waits("endorsement_exchanged")},
		"bare, asks again":     {with(waiting, func(f *facts) { f.voucher = bare }), waits("endorsement_bare")},
		"bare, approved":       {with(approved, func(f *facts) { f.voucher = bare }), issued("enrolled")},
		"bare, approved, back": {with(device, func(f *facts) { f.voucher = bare; f.ek = ekApproved }), issued("recovered")},

		// Not believed, whatever else.
		"forged":           {with(stranger, func(f *facts) { f.voucher = disbelieved }), ruling{refuse, "endorsement", recordEndorsed}},
		"forged, listed":   {with(listed, func(f *facts) { f.voucher = disbelieved; f.token = tokenValid }), ruling{refuse, "endorsement", recordEndorsed}},
		"forged, approved": {with(approved, func(f *facts) { f.voucher = disbelieved }), ruling{refuse, "endorsement", recordEndorsed}},
		"forged, a device": {with(device, func(f *facts) { f.voucher = disbelieved }), ruling{refuse, "endorsement", recordEndorsed}},

		// Conflicts.
		"TPM of another asset":          {with(device, func(f *facts) { f.token = tokenValid; f.elsewhere = true }), ruling{refuse, "endorsement_conflict", recordConflict}},
		"TPM of a retired asset, token": {with(listed, func(f *facts) { f.token = tokenValid; f.elsewhere = true; f.state = retired }), ruling{refuse, "endorsement_conflict", recordConflict}},
		"bare TPM of another asset":     {with(listed, func(f *facts) { f.token = tokenValid; f.elsewhere = true; f.voucher = bare }), ruling{refuse, "endorsement_conflict", recordConflict}},
		"asset has another TPM":         {with(invited, func(f *facts) { f.occupied = true }), ruling{refuse, "endorsement_conflict", recordConflict}},
		"bare, asset has another TPM":   {with(invited, func(f *facts) { f.occupied = true; f.voucher = bare }), ruling{refuse, "endorsement_conflict", recordConflict}},
		"blocked":                       {with(listed, func(f *facts) { f.ek = ekBlocked }), refused("endorsement_blocked")},
		"blocked, with a token":         {with(listed, func(f *facts) { f.ek = ekBlocked; f.token = tokenValid }), refused("endorsement_blocked")},
		"blocked, in a window":          {with(device, func(f *facts) { f.ek = ekBlocked; f.window = true }), refused("endorsement_blocked")},

		// States.
		"suspended":             {with(device, func(f *facts) { f.state = suspended }), refused("asset_suspended")},
		"suspended, with token": {with(invited, func(f *facts) { f.state = suspended }), refused("asset_suspended")},
		"suspended, approved":   {with(approved, func(f *facts) { f.state = suspended }), refused("asset_suspended")},
		"retired":               {with(device, func(f *facts) { f.state = retired; f.token = tokenValid }), refused("asset_retired")},
		"no state":              {with(listed, func(f *facts) { f.state = 0 }), refused("asset_unspecified")},
		"serial number differs": {with(listed, func(f *facts) { f.serialDiffers = true }), ruling{refuse, "serial", recordSerial}},
		"known TPM's differs":   {with(device, func(f *facts) { f.serialDiffers = true }), issued("recovered")},
		"of a TPM approved since": {with(device, func(f *facts) { f.serialDiffers = true; f.enrolledWith = false }),
			ruling{refuse, "serial", recordSerial}},

		// Software keys.
		"software":                      {software, issued("enrolled")},
		"software again":                {with(software, func(f *facts) { f.state = active }), issued("enrolled")},
		"software, no permission":       {with(software, func(f *facts) { f.permitted = false }), ruling{refuse, "downgrade", recordDowngrade}},
		"software, after a TPM":         {with(software, func(f *facts) { f.hadTPM = true }), ruling{refuse, "downgrade", recordDowngrade}},
		"software, no token":            {with(software, func(f *facts) { f.token = tokenNone }), refused("no_token")},
		"software, expired, no token":   {with(software, func(f *facts) { f.token = tokenNone; f.state = active; f.seenLately = true }), refused("no_token")},
		"software, spent token":         {with(software, func(f *facts) { f.token = tokenUsed }), ruling{refuse, "used", recordToken}},
		"software, old token":           {with(software, func(f *facts) { f.token = tokenExpired }), ruling{refuse, "expired", recordToken}},
		"software, a guess":             {with(software, func(f *facts) { f.token = tokenUnknown }), ruling{refuse, "unknown", recordToken}},
		"software, window":              {with(software, func(f *facts) { f.token = tokenNone; f.window = true }), refused("no_token")},
		"software, suspended":           {with(software, func(f *facts) { f.state = suspended }), refused("asset_suspended")},
		"software, retired":             {with(software, func(f *facts) { f.state = retired }), refused("asset_retired")},
		"software, other serial number": {with(software, func(f *facts) { f.serialDiffers = true }), ruling{refuse, "serial", recordSerial}},
		"software, as if it was listed": {with(software, func(f *facts) { f.ek = ekApproved; f.voucher = genuine; f.token = tokenNone }), refused("no_token")},
	} {
		if got := decide(tc.facts); got != tc.want {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

// Whatever the facts are: nobody is let in for a genuine TPM alone, with a TPM
// that is not believed, blocked, or of another asset, or without what a software
// key needs.
func TestNoCombinationOfFactsLetsAStrangerIn(t *testing.T) {
	states := []fleetv1.AssetState{0, expected, pending, active, suspended, retired}
	n := 0
	for bits := range 1 << 10 {
		for _, state := range states {
			for token := tokenNone; token <= tokenValid; token++ {
				for voucher := disbelieved; voucher <= genuine; voucher++ {
					for ek := ekUnknown; ek <= ekApproved; ek++ {
						for ak := akOther; ak <= akSame; ak++ {
							bit := func(i int) bool { return bits&(1<<i) != 0 }
							f := facts{
								state: state, token: token, voucher: voucher, ek: ek, ak: ak,
								hardware: bit(0), serialDiffers: bit(1), elsewhere: bit(2), occupied: bit(3), exchanged: bit(4),
								enrolledWith: bit(5), window: bit(6), seenLately: bit(7), hadTPM: bit(8), permitted: bit(9),
							}
							n++
							if why := forbids(f); why != "" && decide(f).outcome == issue {
								t.Fatalf("%s, and yet let in: %+v", why, f)
							}
							if f.hardware && f.ek == ekUnknown && f.token != tokenValid && decide(f).outcome != refuse {
								t.Fatalf("a stranger makes something pending: %+v", f)
							}
						}
					}
				}
			}
		}
	}
	if n < 1<<19 {
		t.Errorf("only %d combinations", n)
	}
}

// forbids says why nobody may be let in by these facts; empty: perhaps.
func forbids(f facts) string {
	switch {
	case f.state != expected && f.state != pending && f.state != active:
		return fmt.Sprint("state ", stateName(f.state))
	case f.serialDiffers && !(f.hardware && f.state == active && f.enrolledWith && f.ak == akSame):
		return "another serial number"
	case !f.hardware && (f.token != tokenValid || !f.permitted || f.hadTPM):
		return "a software key that is not allowed"
	case !f.hardware:
		return ""
	case f.ek != ekListed && f.ek != ekApproved:
		return "endorsement key that nobody has named"
	case f.voucher == disbelieved:
		return "TPM that is not believed"
	case f.voucher == bare && f.ek != ekApproved && !f.enrolledWith:
		return "nobody has ever spoken for the TPM"
	case f.token == tokenValid && f.elsewhere:
		return "TPM of another asset"
	case f.state == active && f.ak == akOther && f.token != tokenValid && !f.window:
		return "another attestation key"
	case f.state == active && f.ak == akSame && !f.seenLately && f.token != tokenValid && !f.window:
		return "away for too long"
	}
	return ""
}
