package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
	"pfoertner/internal/posture"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// newEvidence reads this machine and prints what the service would send. It
// needs neither collector nor service nor root: what cannot be read says so.
func newEvidence(f *flag.FlagSet, out io.Writer) func(context.Context) error {
	var s settings
	s.register(f)
	lang := f.String("lang", "", "`language` of headings, de or en (default: that of the environment)")
	asJSON := f.Bool("json", false, "print protobuf's JSON")
	raw := f.String("raw", "", "write every answer of this machine to a `file` instead, reduced to what docs/collection.md\n"+
		"names, so that its state can be looked into elsewhere (Windows only: Linux is read from files)")
	replay := f.String("replay", "", "print the evidence of the machine that such a `file` shows; it is never sent")
	return func(ctx context.Context) error {
		c, err := s.load()
		if err != nil {
			return err
		}
		if *raw != "" && *replay != "" {
			return errors.New("--raw and --replay exclude each other")
		}
		host, options := probe.NewHost(), probe.Options{AgentVersion: version, Ledger: sightings(c), VPNCatalogue: clients(c)}
		options.UpdateSearches = probe.NewUpdateSearches("")
		options.UpdateSearches.Patience = time.Minute // somebody waits for it
		var ev *posturev1.Evidence
		switch {
		case *raw != "":
			options.UpdateSearches.Patience = 10 * time.Minute
			return writeCapture(ctx, host, options, *raw, out)
		case *replay != "":
			machine, err := readCapture(*replay)
			if err != nil {
				return err
			}
			options.Ledger = nil // what this notebook saw pending says nothing about another
			ev = machine.Evidence(ctx, probe.Probes(options))
		default:
			ev = probe.NewCollector(host, probe.Probes(options)).Collect(ctx)
		}
		if *asJSON {
			b, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true}.Marshal(ev)
			if err != nil {
				return fmt.Errorf("printing evidence: %w", err)
			}
			_, err = fmt.Fprintf(out, "%s\n", b)
			return err
		}
		words := headingsFor(locale(*lang))
		if *replay != "" {
			words.end = words.replayed
		}
		_, err = io.WriteString(out, showEvidence(ev, words))
		return err
	}
}

// sightings is the service's ledger, not written to; nil for who may not read
// it.
func sightings(c config) probe.Ledger {
	l := readOnly{probe.FileLedger{Path: c.ledger()}}
	if _, err := os.Stat(l.Path); err != nil {
		return nil
	}
	return l
}

// clients are the VPN clients that the collector told the service of; none for
// who may not read its state.
func clients(c config) *probe.VPNCatalogue {
	told := &probe.VPNCatalogue{}
	if _, err := os.Stat(c.StateDir); err != nil {
		return told
	}
	if state, err := identity.Open(c.StateDir, c.keys()); err == nil {
		defer state.Close()
		_ = session.RestoreVPNCatalogue(state, told, time.Now()) // what does not hold up is not used
	}
	return told
}

type readOnly struct{ probe.FileLedger }

// Save implements probe.Ledger: it keeps nothing.
func (readOnly) Save([]probe.Sighting) error { return nil }

// headings are the words around the fields. The fields keep the names that
// docs/collection.md explains.
type headings struct {
	sections                             map[string]string
	observed, notApplicable, failed, end string
	// replayed stands for end below the evidence of a capture.
	replayed string
}

func headingsFor(locale string) headings {
	if status.German(locale) {
		return headings{
			sections: map[string]string{
				"platform": "Betriebssystem und Gerät", "volumes": "Festplattenverschlüsselung",
				"patch": "Aktualisierungsstand", "vpn": "VPN-Zugang", "tpm": "Sicherheitschip (TPM)",
				"secure_boot": "Abgesicherter Start (Secure Boot)", "firewall": "Firewall",
				"antivirus": "Virenschutz", "screen_lock": "Bildschirmsperre",
			},
			observed: "gelesen", notApplicable: "entfällt", failed: "nicht feststellbar",
			end:      "Das ist alles, was gesendet wird. Was leer ist, wird nicht gesendet.",
			replayed: "So liest sich die Aufzeichnung. Gesendet wird davon nichts.",
		}
	}
	return headings{
		sections: map[string]string{
			"platform": "Operating system and device", "volumes": "Disk encryption",
			"patch": "Patch level", "vpn": "VPN client", "tpm": "Security chip (TPM)",
			"secure_boot": "Secure Boot", "firewall": "Firewall",
			"antivirus": "Antivirus", "screen_lock": "Screen lock",
		},
		observed: "read", notApplicable: "not applicable", failed: "could not be read",
		end:      "This is all that is sent. What is empty is not sent.",
		replayed: "This is what the capture shows. Nothing of it is sent.",
	}
}

// showEvidence prints every field that is sent, generically: a field that a
// later version adds cannot be forgotten here.
func showEvidence(ev *posturev1.Evidence, h headings) string {
	p := &evidencePage{headings: h}
	for _, name := range posture.Sections() {
		title := h.sections[name]
		if title == "" {
			title = name
		}
		p.line(0, "%s: %s", title, p.reading(posture.ReadingOf(ev, name)))
		m := ev.ProtoReflect()
		if field := m.Descriptor().Fields().ByName(protoreflect.Name(name)); m.Has(field) {
			p.fields(1, m.Get(field).Message(), "reading") // the heading has it
		}
		p.WriteString("\n")
	}
	p.line(0, "%s", h.end)
	return p.String()
}

type evidencePage struct {
	strings.Builder
	headings
}

func (p *evidencePage) line(depth int, format string, args ...any) {
	fmt.Fprintf(p, strings.Repeat("  ", depth)+format+"\n", args...)
}

// fields prints the fields of m that are set, in the order of their numbers,
// but for the one named.
func (p *evidencePage) fields(depth int, m protoreflect.Message, but protoreflect.Name) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) || f.Name() == but {
			continue
		}
		v := m.Get(f)
		switch {
		case f.IsList() && f.Message() != nil:
			for j := range v.List().Len() {
				p.value(depth, fmt.Sprintf("%s[%d]", f.Name(), j), v.List().Get(j).Message())
			}
		case f.IsList():
			words := make([]string, v.List().Len())
			for j := range words {
				words[j] = scalar(f, v.List().Get(j))
			}
			p.line(depth, "%s: %s", f.Name(), strings.Join(words, ", "))
		case f.Message() != nil:
			p.value(depth, string(f.Name()), v.Message())
		default:
			p.line(depth, "%s: %s", f.Name(), scalar(f, v))
		}
	}
}

// value prints a message: the well-known ones on one line, others as a block.
func (p *evidencePage) value(depth int, name string, m protoreflect.Message) {
	switch v := m.Interface().(type) {
	case *timestamppb.Timestamp:
		p.line(depth, "%s: %s", name, v.AsTime().Format(time.RFC3339))
	case *durationpb.Duration:
		p.line(depth, "%s: %s", name, v.AsDuration())
	case *posturev1.Reading:
		p.line(depth, "%s: %s", name, p.reading(v))
	default:
		p.line(depth, "%s:", name)
		p.fields(depth+1, m, "")
	}
}

// state is a reading in a word, with the reason.
func (p *evidencePage) state(r *posturev1.Reading) string {
	word := p.failed
	switch r.GetState() {
	case posturev1.ReadingState_READING_STATE_OBSERVED:
		word = p.observed
	case posturev1.ReadingState_READING_STATE_NOT_APPLICABLE:
		word = p.notApplicable
	}
	if r.GetReason() != "" {
		word += " (" + r.GetReason() + ")"
	}
	return word
}

// reading is all of a reading on one line.
func (p *evidencePage) reading(r *posturev1.Reading) string {
	parts := []string{p.state(r)}
	if r.GetSource() != "" {
		parts = append(parts, r.GetSource())
	}
	if t := r.GetObservedAt(); t != nil {
		parts = append(parts, t.AsTime().Format(time.RFC3339))
	}
	if d := r.GetDuration(); d != nil {
		parts = append(parts, d.AsDuration().String())
	}
	return strings.Join(parts, ", ")
}

// scalar is one value; enum values without the prefix that buf's style gives
// them.
func scalar(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	if f.Enum() == nil {
		return v.String()
	}
	value := f.Enum().Values().ByNumber(v.Enum())
	if value == nil {
		return fmt.Sprint(v.Enum())
	}
	// The zero value of every enum here is PREFIX_UNSPECIFIED.
	prefix := strings.TrimSuffix(string(f.Enum().Values().Get(0).Name()), "UNSPECIFIED")
	return strings.TrimPrefix(string(value.Name()), prefix)
}
