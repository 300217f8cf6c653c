package probe

import (
	"context"
	"errors"
	"fmt"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	firewallService = "MpsSvc"
	// firewallPolicyKey holds what group policy demands of the firewall; its
	// word wins over local settings ([MS-FASP] 2.2.38).
	firewallPolicyKey = `SOFTWARE\Policies\Microsoft\WindowsFirewall\`
	serviceRunning    = 4
)

// windowsFirewall reads the profiles that are in force: one for each kind of
// network that the notebook is in, often several at once. One engine of
// evidence is one of them.
func windowsFirewall(ctx context.Context, w *Windows, out *posturev1.Firewall) error {
	out.Reading.Source = "INetFwPolicy2, service control manager, registry"
	if w.Firewall == nil {
		return errors.New("Windows Firewall is not readable on this machine")
	}
	service, errService := serviceState(ctx, w, firewallService)
	answer, err := w.Firewall.Profiles(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("INetFwPolicy2: %w", err), errService)
	}
	if answer.Current == 0 || answer.Current > 7 {
		return errors.Join(fmt.Errorf("INetFwPolicy2: %d is no set of profiles in force", answer.Current), errService)
	}
	errs := []error{errService}
	for _, kind := range []struct {
		bit          uint32
		name, policy string
	}{
		{1, "domain", "DomainProfile"}, {2, "private", "PrivateProfile"}, {4, "public", "PublicProfile"},
	} {
		if answer.Current&kind.bit == 0 {
			continue
		}
		e := &posturev1.FirewallEngine{Engine: "windows-firewall", Profile: kind.name, ServiceActive: service}
		errs = append(errs, profileState(answer.Profiles, kind.bit, e))
		demanded, set, err := registryNumber(w.Registry, firewallPolicyKey+kind.policy, "EnableFirewall")
		errs = append(errs, err)
		out.Engines = append(out.Engines, e)
		out.Contradictions = append(out.Contradictions, profileContradictions(e, set, demanded == 1)...)
	}
	return errors.Join(errs...)
}

// profileState fills in what one profile in force does.
func profileState(profiles []FirewallProfile, bit uint32, e *posturev1.FirewallEngine) error {
	for _, p := range profiles {
		if p.Profile != bit {
			continue
		}
		var errs []error
		if p.EnabledResult != 0 {
			errs = append(errs, fmt.Errorf("profile %s: FirewallEnabled: error 0x%08X", e.Profile, p.EnabledResult))
		} else {
			e.RulesLoaded = ternary(p.Enabled)
		}
		switch {
		case e.RulesLoaded == no: // a profile that is off drops nothing
			e.InboundDefaultDrop = no
		case p.InboundResult != 0:
			errs = append(errs, fmt.Errorf("profile %s: DefaultInboundAction: error 0x%08X", e.Profile, p.InboundResult))
		case p.Inbound > 1:
			errs = append(errs, fmt.Errorf("profile %s: DefaultInboundAction: %d is not known", e.Profile, p.Inbound))
		case e.RulesLoaded == yes:
			e.InboundDefaultDrop = ternary(p.Inbound == 0 || p.BlockAll)
		}
		return errors.Join(errs...)
	}
	return fmt.Errorf("profile %s is in force and not described", e.Profile)
}

func profileContradictions(e *posturev1.FirewallEngine, demanded, demandsOn bool) []*posturev1.Contradiction {
	var list []*posturev1.Contradiction
	add := func(sourceA, saysA string) {
		list = append(list, &posturev1.Contradiction{
			Subject: "firewall.engines[" + e.Engine + " " + e.Profile + "]",
			SourceA: sourceA, SaysA: saysA, SourceB: "INetFwPolicy2", SaysB: "the profile is " + onOff(e.RulesLoaded == yes),
		})
	}
	if e.ServiceActive == no && e.RulesLoaded == yes {
		add("service control manager", "the service "+firewallService+" does not run")
	}
	if demanded && e.RulesLoaded != unknown && demandsOn != (e.RulesLoaded == yes) {
		add("group policy", "the profile is to be "+onOff(demandsOn))
	}
	return list
}

// serviceState says whether a service runs; a service that is not there does
// not.
func serviceState(ctx context.Context, w *Windows, name string) (posturev1.Ternary, error) {
	if w.Services == nil {
		return unknown, errors.New("the service control manager is not readable on this machine")
	}
	services, err := w.Services.Matching(ctx, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return unknown, fmt.Errorf("service %s: %w", name, err)
	}
	for _, s := range services {
		if s.State == serviceRunning {
			return yes, nil
		}
	}
	return no, nil
}
