package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	currentVersionKey     = `SOFTWARE\Microsoft\Windows NT\CurrentVersion`
	defenderKey           = `SOFTWARE\Microsoft\Windows Defender`
	defenderPolicyKey     = `SOFTWARE\Policies\Microsoft\Windows Defender`
	defenderSignatureKey  = defenderKey + `\Signature Updates`
	defenderSignatureName = "AVSignatureVersion"
	defenderService       = "WinDefend"
	defenderName          = "Microsoft Defender Antivirus"
	// defenderAppliedName is a FILETIME. Known from administrators, not from
	// Microsoft's documentation.
	defenderAppliedName = "AVSignatureApplied"
	// defenderSignatureLife is after how long Defender itself calls its
	// signatures out of date when no policy says otherwise (ADMX
	// Signature_AVSignatureDue).
	defenderSignatureLife = 7 * 24 * time.Hour

	// resultFalse is S_FALSE: the Security Center's service does not run.
	resultFalse = 1
)

// windowsAntivirus asks the Windows Security Center. Servers have none; there
// Defender's own state is read, and other products cannot be seen.
func windowsAntivirus(ctx context.Context, h Host, out *posturev1.Antivirus) error {
	w := h.Windows
	kind, _, err := registryText(w.Registry, currentVersionKey, "InstallationType")
	if err == nil && strings.HasPrefix(kind, "Server") {
		return serverDefender(ctx, h, out)
	}
	out.Reading.Source = "Windows Security Center"
	if w.SecurityCenter == nil {
		return errors.New("the Windows Security Center is not readable on this machine")
	}
	answer, err := w.SecurityCenter.Antivirus(ctx)
	if err != nil {
		return fmt.Errorf("Windows Security Center: %w", err)
	}
	var errs []error
	switch {
	case answer.HealthResult == resultFalse:
		errs = append(errs, errors.New("the service of the Windows Security Center does not run"))
	case answer.HealthResult != 0:
		errs = append(errs, fmt.Errorf("WscGetSecurityProviderHealth: error 0x%08X", answer.HealthResult))
	case answer.Health > 3:
		errs = append(errs, fmt.Errorf("WscGetSecurityProviderHealth: %d is not known", answer.Health))
	default: // 1 not monitored, 2 poor, 3 snoozed
		out.Healthy = ternary(answer.Health == 0)
	}
	if answer.ListResult != 0 {
		return errors.Join(append(errs, fmt.Errorf("IWSCProductList: error 0x%08X", answer.ListResult))...)
	}
	allOff := true
	for _, p := range answer.Products {
		product, contradictions := securityProduct(p)
		if strings.Contains(p.Name, "Defender") {
			product.Version, _, err = registryText(w.Registry, defenderSignatureKey, defenderSignatureName)
			errs = append(errs, err)
		}
		allOff = allOff && product.State != posturev1.AntivirusState_ANTIVIRUS_STATE_ON &&
			product.State != posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED
		out.Products = append(out.Products, product)
		out.Contradictions = append(out.Contradictions, contradictions...)
	}
	if out.Healthy == yes && allOff {
		out.Contradictions = append(out.Contradictions, &posturev1.Contradiction{
			Subject: "antivirus.healthy", SourceA: "WscGetSecurityProviderHealth", SaysA: "good",
			SourceB: "IWSCProductList", SaysB: "no product is on",
		})
	}
	return errors.Join(errs...)
}

// securityProduct reads one product from both sources that describe it: the
// interface of the Security Center, and the word that WMI keeps. Where they
// disagree, the fact stays open.
func securityProduct(p SecurityProduct) (*posturev1.AntivirusProduct, []*posturev1.Contradiction) {
	out := &posturev1.AntivirusProduct{Name: oneLine(p.Name), State: productState(p.State)}
	if p.SignatureStatus <= 1 {
		out.UpToDate = ternary(p.SignatureStatus == 1)
	}
	if p.ProductState == nil {
		return out, nil
	}
	var list []*posturev1.Contradiction
	contradict := func(fact, interfaceSays, wordSays string) {
		list = append(list, &posturev1.Contradiction{
			Subject: "antivirus.products[" + out.Name + "]." + fact,
			SourceA: "IWSCProductList", SaysA: interfaceSays,
			SourceB: fmt.Sprintf("productState 0x%06X", *p.ProductState), SaysB: wordSays,
		})
	}
	state, current := parseProductState(*p.ProductState)
	if state != out.State {
		contradict("state", productWord(out.State), productWord(state))
		out.State = posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED
	}
	if current != out.UpToDate {
		words := map[posturev1.Ternary]string{yes: "up to date", no: "out of date", unknown: "a value that is not known"}
		contradict("up_to_date", words[out.UpToDate], words[current])
		out.UpToDate = unknown
	}
	return out, list
}

// productState is WSC_SECURITY_PRODUCT_STATE.
func productState(code uint32) posturev1.AntivirusState {
	states := [...]posturev1.AntivirusState{
		posturev1.AntivirusState_ANTIVIRUS_STATE_ON, posturev1.AntivirusState_ANTIVIRUS_STATE_OFF,
		posturev1.AntivirusState_ANTIVIRUS_STATE_SNOOZED, posturev1.AntivirusState_ANTIVIRUS_STATE_EXPIRED,
	}
	if code >= uint32(len(states)) {
		return posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED
	}
	return states[code]
}

// parseProductState reads the word of AntiVirusProduct (root\SecurityCenter2):
// the fourth hexadecimal digit is the state, the second says whether signatures
// are out of date. The digits above only say which kind of product it is: they
// are set whether it is on or off.
func parseProductState(word uint32) (posturev1.AntivirusState, posturev1.Ternary) {
	state := map[uint32]posturev1.AntivirusState{
		0x0000: posturev1.AntivirusState_ANTIVIRUS_STATE_OFF,
		0x1000: posturev1.AntivirusState_ANTIVIRUS_STATE_ON,
		0x2000: posturev1.AntivirusState_ANTIVIRUS_STATE_SNOOZED,
		0x3000: posturev1.AntivirusState_ANTIVIRUS_STATE_EXPIRED,
	}[word&0xF000]
	current := map[uint32]posturev1.Ternary{0x00: yes, 0x10: no}[word&0xF0]
	return state, current
}

func productWord(s posturev1.AntivirusState) string {
	if s == posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED {
		return "a state that is not known"
	}
	return strings.ToLower(strings.TrimPrefix(s.String(), "ANTIVIRUS_STATE_"))
}

// serverDefender reads Defender's service and switches, and when it was given
// its signatures.
func serverDefender(ctx context.Context, h Host, out *posturev1.Antivirus) error {
	w := h.Windows
	out.Reading.Source = "service control manager, registry"
	if w.Services == nil {
		return errors.New("the service control manager is not readable on this machine")
	}
	services, err := w.Services.Matching(ctx, defenderService)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("service %s: %w", defenderService, err)
	}
	if len(services) == 0 {
		return errors.New("this server has neither Security Center nor Defender; other products cannot be told")
	}
	product := &posturev1.AntivirusProduct{Name: defenderName, State: posturev1.AntivirusState_ANTIVIRUS_STATE_OFF}
	out.Products = append(out.Products, product)
	disabled, err := defenderDisabled(w.Registry)
	if err == nil && !disabled && services[0].State == serviceRunning {
		product.State = posturev1.AntivirusState_ANTIVIRUS_STATE_ON
	}
	if err != nil && services[0].State == serviceRunning {
		product.State = posturev1.AntivirusState_ANTIVIRUS_STATE_UNSPECIFIED
	}
	var errVersion, errAge error
	product.Version, _, errVersion = registryText(w.Registry, defenderSignatureKey, defenderSignatureName)
	product.UpToDate, errAge = defenderUpToDate(w.Registry, h.Now())
	return errors.Join(err, errVersion, errAge)
}

// defenderUpToDate says whether Defender has been given signatures within
// defenderSignatureLife. Unknown where it does not say when it was.
func defenderUpToDate(r Registry, now time.Time) (posturev1.Ternary, error) {
	v, set, err := registryValue(r, defenderSignatureKey, defenderAppliedName)
	if err != nil || !set {
		return unknown, err
	}
	if v.Type != "BINARY" || len(v.Bytes) != 8 {
		return unknown, fmt.Errorf("registry %s: is no time", defenderAppliedName)
	}
	ticks := binary.LittleEndian.Uint64(v.Bytes)
	if ticks == 0 { // never, or a capture, which keeps no bytes
		return unknown, nil
	}
	switch age := now.Sub(fileTime(ticks)); {
	case age < -24*time.Hour:
		return unknown, fmt.Errorf("registry %s: lies in the future", defenderAppliedName)
	default:
		return ternary(age <= defenderSignatureLife), nil
	}
}

// fileTime is a FILETIME: steps of 100 ns since 1601, UTC. One that is beyond
// all calendars is as far in the future as it gets here.
func fileTime(ticks uint64) time.Time {
	const second = 10_000_000
	return time.Date(1601, time.January, 1, 0, 0, int(ticks/second), int(ticks%second)*100, time.UTC)
}

// defenderDisabled says whether any of Defender's switches turns its guard off.
func defenderDisabled(r Registry) (bool, error) {
	var errs []error
	disabled := false
	for _, s := range []struct{ key, name string }{
		{defenderKey, "DisableAntiSpyware"}, {defenderKey, "DisableAntiVirus"}, {defenderKey, "PassiveMode"},
		{defenderKey + `\Real-Time Protection`, "DisableRealtimeMonitoring"},
		{defenderPolicyKey, "DisableAntiSpyware"}, {defenderPolicyKey, "DisableAntiVirus"},
		{defenderPolicyKey + `\Real-Time Protection`, "DisableRealtimeMonitoring"},
	} {
		number, _, err := registryNumber(r, s.key, s.name)
		errs = append(errs, err)
		disabled = disabled || number != 0
	}
	return disabled, errors.Join(errs...)
}
