package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// identity puts into words what binds a device to its hardware, and what its
// TPM vouches for, in German or English.
type identity struct {
	de   bool
	when func(*timestamppb.Timestamp) string
}

// fact is one line: a label and what there is to say.
type fact struct{ label, value string }

func (i identity) word(de, en string) string {
	if i.de {
		return de
	}
	return en
}

// notBound is whether the device key is outside a TPM.
func notBound(d *fleetv1.Device) bool {
	return d.GetKey().GetProtection() == fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE
}

// marks are what somebody who looks down a list should not miss.
func marks(d *fleetv1.Device) string {
	var list []string
	if kind := d.GetAsset().GetAlarm().GetKind(); kind != "" {
		list = append(list, "alarm: "+kind)
	}
	if d.GetPending() != nil {
		list = append(list, "waits for approval")
	}
	if notBound(d) {
		list = append(list, "not hardware-bound")
	}
	if d.GetKey().GetVirtual() {
		list = append(list, "virtual TPM")
	}
	if d.GetAsset().GetState() == fleetv1.AssetState_ASSET_STATE_ACTIVE && d.GetAttested().GetReading().GetState() == posturev1.ReadingState_READING_STATE_FAILED {
		list = append(list, "not attested")
	}
	return dash(strings.Join(list, ", "))
}

// about is everything on the identity of a device but what the TPM vouches for.
func (i identity) about(d *fleetv1.Device) []fact {
	facts := []fact{{i.word("Schlüssel", "key"), i.key(d)}}
	if k := d.GetKey(); k.GetFingerprint() != "" {
		facts = append(facts, fact{i.word("Fingerabdruck", "fingerprint"), k.GetFingerprint()})
	}
	if since := d.GetKey().GetAttestationKeySince(); since != nil {
		facts = append(facts, fact{i.word("Attestierungsschlüssel seit", "attestation key since"), i.when(since)})
	}
	a := d.GetAsset()
	facts = append(facts, i.endorsementKeys(a)...)
	if a.GetReimageUntil() != nil {
		facts = append(facts, fact{i.word("Neueinrichtung", "re-imaging"),
			fmt.Sprintf(i.word("bis %s ohne Token, nur mit dem eigenen TPM", "until %s without a token, only with its own TPM"), i.when(a.GetReimageUntil()))})
	}
	facts = append(facts, i.alarm(a)...)
	facts = append(facts, i.pending(d)...)
	return append(facts, i.vpnCertificates(d)...)
}

// endorsementKeys are the TPMs that are, or were, the asset's.
func (i identity) endorsementKeys(a *fleetv1.Asset) []fact {
	has := func(list [][]byte, sum []byte) bool {
		return slices.ContainsFunc(list, func(b []byte) bool { return bytes.Equal(b, sum) })
	}
	var facts []fact
	for _, sum := range a.GetEndorsementKeysSha256() {
		why := i.word("von der Lieferliste", "on the delivery list")
		switch {
		case has(a.GetBlockedEndorsementKeysSha256(), sum):
			why = i.word("abgewiesen", "refused")
		case has(a.GetApprovedEndorsementKeysSha256(), sum):
			why = i.word("freigegeben von zwei Personen", "approved by two operators")
		}
		facts = append(facts, fact{i.word("TPM im Inventar", "TPM on record"), fmt.Sprintf("%x, %s", sum, why)})
	}
	return facts
}

// key says where the device key is, or has to be.
func (i identity) key(d *fleetv1.Device) string {
	k := d.GetKey()
	switch k.GetProtection() {
	case fleetv1.KeyProtection_KEY_PROTECTION_TPM:
		where := i.word("im TPM", "in the TPM")
		if k.GetVirtual() {
			where = i.word("in einem virtuellen TPM, das sein Besitzer kopieren kann", "in a virtual TPM, which its owner can copy")
		}
		var made []string
		for _, s := range []string{k.GetManufacturer(), k.GetModel()} {
			if s != "" {
				made = append(made, s)
			}
		}
		if k.GetFirmware() != "" {
			made = append(made, i.word("Firmware ", "firmware ")+k.GetFirmware())
		}
		if len(made) > 0 {
			where += " (" + strings.Join(made, " ") + ")"
		}
		if k.GetEndorsedBy() == "" {
			return where + i.word(", freigegeben von zwei Personen", ", approved by two operators")
		}
		return where + i.word(", beglaubigt durch ", ", endorsed by ") + k.GetEndorsedBy()
	case fleetv1.KeyProtection_KEY_PROTECTION_SOFTWARE:
		return i.word("nicht an die Hardware gebunden, ", "not hardware-bound, ") + i.permission(d.GetAsset().GetSoftwareKey())
	}
	if p := d.GetAsset().GetSoftwareKey(); p != nil {
		return i.word("noch keiner; außerhalb eines TPM ", "none yet; outside a TPM ") + i.permission(p)
	}
	return i.word("noch keiner; er muss in einem TPM liegen", "none yet; it has to be in a TPM")
}

// permission is who allowed a key outside a TPM, until when and why.
func (i identity) permission(p *fleetv1.SoftwareKeyPermission) string {
	if p == nil {
		return i.word("und nicht erlaubt", "and not allowed")
	}
	return fmt.Sprintf(i.word("erlaubt bis %s durch %s, weil: %s", "allowed until %s by %s, because: %s"),
		i.lastDay(p.GetUntil()), i.names(p.GetAllowedBy()), p.GetReason())
}

// lastDay is the last day before an end, as the language writes it.
func (i identity) lastDay(end *timestamppb.Timestamp) string {
	day, err := time.Parse(time.DateOnly, lastDay(end))
	if err != nil {
		return i.when(end) // not the end of a day
	}
	return day.Format(i.word("02.01.2006", time.DateOnly))
}

// names joins those of operators.
func (i identity) names(list []string) string {
	return cmp.Or(strings.Join(list, i.word(" und ", " and ")), i.word("niemanden", "nobody"))
}

// alarm says why the collector has suspended an asset, and the way out.
func (i identity) alarm(a *fleetv1.Asset) []fact {
	alarm := a.GetAlarm()
	if alarm == nil {
		return nil
	}
	kinds := map[string]string{
		"cloned":      i.word("zwei Geräte mit derselben Identität", "two machines with one identity"),
		"stale_key":   i.word("ein ersetzter Schlüssel kam wieder", "a key came back that had been replaced"),
		"attestation": i.word("das TPM widersprach sich", "the TPM contradicted itself"),
	}
	said := cmp.Or(kinds[alarm.GetKind()], alarm.GetKind()) + ", " + i.when(alarm.GetAt())
	if alarm.GetDetail() != "" {
		said += ": " + alarm.GetDetail()
	}
	return []fact{
		{i.word("ALARM", "ALARM"), said},
		{i.word("Ausweg", "way out"), fmt.Sprintf(i.word(
			"erst klären, wo das Gerät ist; dann zwei Personen: resume %s --reason …; es wird neu aufgenommen",
			"find the device first; then two operators: resume %s --reason …; it enrols anew"), a.GetAssetNumber())},
	}
}

// pending says what waits for two persons, and how they approve it.
func (i identity) pending(d *fleetv1.Device) []fact {
	p := d.GetPending()
	if p == nil {
		return nil
	}
	reasons := map[string]string{
		"endorsement_unknown":   i.word("sein TPM steht nicht auf der Lieferliste", "its TPM is not on the delivery list"),
		"endorsement_bare":      i.word("kein Hersteller bürgt für sein TPM", "no manufacturer vouches for its TPM"),
		"endorsement_exchanged": i.word("es hatte vorher ein anderes TPM", "it had another TPM before"),
	}
	machine := strings.Join(slices.DeleteFunc([]string{p.GetVendor(), p.GetModel(), p.GetSerial()}, func(s string) bool { return s == "" }), " ")
	asset := d.GetAsset().GetAssetNumber()
	return []fact{
		{i.word("wartet auf Freigabe", "waits for approval"), fmt.Sprintf(i.word("%s; seit %s, vergessen am %s", "%s; since %s, forgotten on %s"),
			cmp.Or(reasons[p.GetReason()], p.GetReason()), i.when(p.GetRequestedAt()), i.when(p.GetExpiresAt()))},
		{i.word("  TPM", "  TPM"), strings.TrimPrefix(p.GetManufacturer()+", ", ", ") + i.word("Fingerabdruck ", "fingerprint ") + p.GetFingerprint()},
		{i.word("  nennt sich", "  says it is"), dash(machine) + i.word(" (Angabe des Notebooks, kein Beweis)", " (as the notebook states, no proof)")},
		{i.word("  Freigabe", "  to approve"), fmt.Sprintf(i.word(
			"Fingerabdruck mit `pfoertner-agent id` auf dem Notebook vergleichen; dann zwei Personen: approve %s --fingerprint … --reason …",
			"compare the fingerprint with `pfoertner-agent id` on the notebook; then two operators: approve %s --fingerprint … --reason …"), asset)},
	}
}

// vpnCertificates are those that a gateway takes for this device's.
func (i identity) vpnCertificates(d *fleetv1.Device) []fact {
	label := i.word("VPN-Zertifikat", "VPN certificate")
	issued := map[string]*fleetv1.VpnCertificate{}
	for _, c := range d.GetVpnCertificates() {
		issued[string(c.GetSha256())] = c
	}
	var facts []fact
	for _, sum := range d.GetAsset().GetVpnCertificatesSha256() {
		whose := i.word("zugeordnet", "bound")
		if c := issued[string(sum)]; c != nil {
			whose = fmt.Sprintf(i.word("vom Collector ausgestellt, bis %s", "issued by the collector, until %s"), i.when(c.GetExpiresAt()))
		}
		facts = append(facts, fact{label, fmt.Sprintf("%x, %s", sum, whose)})
	}
	return facts
}

// attested is what the TPM vouches for.
func (i identity) attested(a *posturev1.Attestation) []fact {
	quote := i.word("Bestätigung", "quote")
	switch a.GetReading().GetState() {
	case posturev1.ReadingState_READING_STATE_OBSERVED:
	case posturev1.ReadingState_READING_STATE_NOT_APPLICABLE:
		return []fact{{quote, i.word("keine; der Schlüssel liegt nicht in einem TPM", "none; the key is not in a TPM")}}
	case posturev1.ReadingState_READING_STATE_FAILED:
		return []fact{{quote, i.word("fehlt: ", "missing: ") + dash(a.GetReading().GetReason())}}
	default:
		return []fact{{quote, i.word("keine", "none")}}
	}
	made := fmt.Sprintf(i.word("%s, gültig bis %s", "%s, valid until %s"), i.when(a.GetQuotedAt()), i.when(a.GetValidUntil()))
	if a.GetVirtual() {
		made += i.word(", durch ein virtuelles TPM", ", of a virtual TPM")
	}
	facts := []fact{{quote, made}, {"Secure Boot", i.secureBoot(a.GetSecureBoot(), a.GetSetupMode())}}
	if len(a.GetKeys()) > 0 {
		names := make([]string, len(a.GetKeys()))
		for n, k := range a.GetKeys() {
			names[n] = fmt.Sprintf("%s %.8x", k.GetName(), k.GetSha256())
		}
		facts = append(facts, fact{i.word("Schlüssel", "keys"), strings.Join(names, ", ")})
	}
	if len(a.GetBootLoaders()) > 0 {
		facts = append(facts, fact{i.word("Startprogramme", "boot loaders"), i.bootLoaders(a)})
	}
	if len(a.GetPcrs()) > 0 {
		facts = append(facts, fact{i.word("Startwerte", "boot values"), i.bootValues(a.GetPcrs())})
	}
	if len(a.GetWarnings()) > 0 {
		facts = append(facts, fact{i.word("Warnung", "warning"), strings.Join(a.GetWarnings(), ", ")})
	}
	if a.GetIncomplete() != "" {
		facts = append(facts, fact{i.word("unvollständig", "incomplete"), a.GetIncomplete()})
	}
	return facts
}

func (i identity) bootLoaders(a *posturev1.Attestation) string {
	digests := make([]string, len(a.GetBootLoaders()))
	for n, sum := range a.GetBootLoaders() {
		digests[n] = fmt.Sprintf("%.8x", sum)
	}
	said := strings.Join(digests, ", ")
	if len(a.GetAuthorities()) > 0 {
		said += i.word("; zugelassen durch ", "; let in by ") + strings.Join(a.GetAuthorities(), ", ")
	}
	if a.GetBootLoadersChangedAt() != nil {
		said += i.word("; geändert ", "; changed ") + i.when(a.GetBootLoadersChangedAt())
	}
	return said
}

// bootValues groups the quoted PCRs by what was decided about their values.
func (i identity) bootValues(pcrs []*posturev1.Pcr) string {
	groups := []struct {
		state posturev1.PcrReference
		name  string
		found []string
	}{
		{state: posturev1.PcrReference_PCR_REFERENCE_REJECTED, name: i.word("zurückgewiesen", "rejected")},
		{state: posturev1.PcrReference_PCR_REFERENCE_UNSPECIFIED, name: i.word("unbekannt", "unknown")},
		{state: posturev1.PcrReference_PCR_REFERENCE_LEARNED, name: i.word("gelernt, nicht freigegeben", "learned, not approved")},
		{state: posturev1.PcrReference_PCR_REFERENCE_APPROVED, name: i.word("freigegeben", "approved")},
	}
	for _, p := range pcrs {
		for g := range groups {
			if groups[g].state == p.GetReference() {
				groups[g].found = append(groups[g].found, fmt.Sprint(p.GetIndex()))
			}
		}
	}
	var parts []string
	for _, g := range groups {
		if len(g.found) > 0 {
			parts = append(parts, "PCR "+strings.Join(g.found, ", ")+" "+g.name)
		}
	}
	return strings.Join(parts, "; ")
}

// secureBoot is on only when it is known to be, with keys that not everybody can
// replace.
func (i identity) secureBoot(enabled, setup posturev1.Ternary) string {
	said := i.word("unbekannt", "unknown")
	switch enabled {
	case posturev1.Ternary_TERNARY_YES:
		said = i.word("an", "on")
	case posturev1.Ternary_TERNARY_NO:
		said = i.word("aus", "off")
	}
	if setup == posturev1.Ternary_TERNARY_YES {
		said += i.word(", aber im Einrichtungsmodus", ", but in setup mode")
	}
	return said
}

// tunnels are the sessions whose notebook has, or should have, proven itself
// through the tunnel.
func (i identity) tunnels(sessions []*fleetv1.Session) []fact {
	var facts []fact
	for _, s := range sessions {
		if said := i.proof(s); said != "" {
			facts = append(facts, fact{i.word("Tunnelnachweis an ", "tunnel proof at ") + s.GetGateway(), said})
		}
	}
	return facts
}

// proof is the state of one session's tunnel proof; empty when nobody asks for
// one.
func (i identity) proof(s *fleetv1.Session) string {
	switch s.GetTunnelProof() {
	case fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_PROVEN:
		return i.word("erbracht", "proven")
	case fleetv1.TunnelProofState_TUNNEL_PROOF_STATE_MISSING:
		if s.GetTunnelProofDueAt() != nil {
			return i.word("fehlt, Trennung ", "missing, cut at ") + i.when(s.GetTunnelProofDueAt())
		}
		return i.word("fehlt", "missing")
	}
	return ""
}

// lines prints facts below a heading; nothing without facts.
func lines(heading string, facts []fact) string {
	if len(facts) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s:\n", heading)
	for _, f := range facts {
		fmt.Fprintf(&b, "  %s: %s\n", strings.TrimSpace(f.label), f.value)
	}
	return b.String()
}

// identityOf is what an explanation says of a device's identity, behind its
// findings.
func identityOf(e *fleetv1.Explanation, lang string) string {
	d := e.GetDevice()
	if d.GetAsset() == nil {
		return "" // not one of ours: there is nothing to bind
	}
	i := identity{de: lang == "de", when: func(t *timestamppb.Timestamp) string { return moment(t, lang, time.Local) }}
	said := lines(i.word("Identität", "Identity"), append(i.about(d), i.tunnels(e.GetSessions())...))
	if d.GetId() == "" {
		return said
	}
	return said + lines(i.word("Vom Sicherheitschip (TPM) bestätigt", "The security chip (TPM) vouches for"), i.attested(d.GetAttested()))
}

// moment is a time as texts for people write it.
func moment(t *timestamppb.Timestamp, lang string, zone *time.Location) string {
	switch {
	case !t.IsValid():
		return "–"
	case lang == "de":
		return t.AsTime().In(zone).Format("02.01.2006, 15:04 Uhr")
	}
	return t.AsTime().In(zone).Format("2 January 2006, 15:04 MST")
}
