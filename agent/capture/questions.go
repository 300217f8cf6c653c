package capture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"pfoertner/agent/probe"
)

// question is the name of one call in a capture: the method, and after a space
// its argument, if it has one.
type question string

func (q question) method() string {
	method, _, _ := strings.Cut(string(q), " ")
	return method
}

func (q question) argument() string {
	_, argument, _ := strings.Cut(string(q), " ")
	return argument
}

// The methods. One question for each service name, so that a catalogue that
// names more clients later asks the old captures the same.
const (
	askSystem    = "system.info"
	askLinks     = "network.links"
	askRoute     = "network.route"
	askIPsec     = "network.ipsec_policies"
	askWireGuard = "network.wireguard"
	askValue     = "registry.value"
	askExists    = "registry.exists"
	askBitLocker = "bitlocker.volumes"
	askDisks     = "disks.volumes"
	askUpdates   = "updates.search"
	askServices  = "services.matching"
	askProgram   = "programs.identify"
	askDialups   = "dialups.connections"
	askVariable  = "firmware.variable"
	askSMBIOS    = "firmware.smbios"
	askChip      = "security_chip.device"
	askFirewall  = "firewall.profiles"
	askAntivirus = "security_center.antivirus"
	askVersion   = "version.running"
	askLicences  = "licences.extended_updates"
)

// runningVersion is the answer of probe.VersionCheck.
type runningVersion struct {
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Build uint32 `json:"build"`
}

// kind is one kind of question.
type kind struct {
	arguments bool
	// decode reads the value of an answer; none gives the zero value.
	decode func(json.RawMessage) (any, error)
	// redact reduces a value of that type to what may be kept.
	redact func(r *redactor, argument string, value any) any
}

// kindOf is empty and false for a method that nobody asks.
func kindOf(method string) (kind, bool) {
	switch method {
	case askSystem:
		return plain((*redactor).system), true
	case askLinks:
		return plain((*redactor).links), true
	case askRoute:
		return plain((*redactor).route).asked(), true
	case askIPsec:
		return plain((*redactor).policies), true
	case askWireGuard:
		return plain((*redactor).wireGuard), true
	case askValue:
		return about((*redactor).registryValue), true
	case askExists:
		return plain(same[bool]).asked(), true
	case askBitLocker:
		return plain((*redactor).encryptable), true
	case askDisks:
		return plain((*redactor).disks), true
	case askUpdates:
		return plain((*redactor).updates), true
	case askServices:
		return about((*redactor).services), true
	case askProgram:
		return plain((*redactor).program).asked(), true
	case askDialups:
		return plain((*redactor).dialups), true
	case askVariable:
		return about((*redactor).variable), true
	case askSMBIOS:
		return plain((*redactor).smbios), true
	case askChip:
		return plain(same[probe.ChipAnswer]), true
	case askFirewall:
		return plain(same[probe.FirewallAnswer]), true
	case askAntivirus:
		return plain((*redactor).antivirus), true
	case askVersion:
		return plain(same[runningVersion]), true
	case askLicences:
		return plain((*redactor).licences), true
	}
	return kind{}, false
}

// mayBeAbsent says whether "it is not there" is an answer to this method.
func mayBeAbsent(method string) bool {
	switch method {
	case askValue, askExists, askServices, askProgram, askVariable, askRoute:
		return true
	}
	return false
}

// about is a kind whose redaction depends on the argument.
func about[T any](redact func(r *redactor, argument string, value T) T) kind {
	return kind{
		arguments: true,
		decode: func(raw json.RawMessage) (any, error) {
			var value T
			if len(raw) == 0 {
				return value, nil
			}
			// Go would take null for a zero value, and zero for an answer.
			if string(raw) == "null" {
				return value, errors.New("null is no value")
			}
			err := strict(raw, &value)
			return value, err
		},
		redact: func(r *redactor, argument string, value any) any {
			typed, _ := value.(T)
			return redact(r, argument, typed)
		},
	}
}

// plain is a kind whose redaction does not.
func plain[T any](redact func(r *redactor, value T) T) kind {
	k := about(func(r *redactor, _ string, value T) T { return redact(r, value) })
	k.arguments = false
	return k
}

// asked is the same kind with an argument.
func (k kind) asked() kind {
	k.arguments = true
	return k
}

// same is for answers that are numbers and truth values only.
func same[T any](_ *redactor, value T) T { return value }

// class is what the probes know of an error.
type class struct {
	name string
	is   error
}

func classes() []class {
	return []class{
		{"not_found", probe.ErrNotFound},
		{"not_applicable", probe.ErrNotApplicable},
		{"no_route", probe.ErrNoRoute},
		{"timeout", context.DeadlineExceeded},
	}
}

// recalled is a recorded error as the probes get it; nil for none.
func recalled(text, is string) (error, error) {
	if is == "" {
		if text == "" {
			return nil, nil
		}
		return errors.New(text), nil
	}
	for _, c := range classes() {
		switch {
		case c.name != is:
		case text == "":
			return c.is, nil
		default:
			return fmt.Errorf("%s: %w", text, c.is), nil
		}
	}
	return nil, fmt.Errorf("an error cannot be %q", is)
}
