package attestation

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/internal/attest"
	"pfoertner/internal/attest/bootlog"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// source is where all facts here come from.
	source = "TPM quote"
	// maxList is how much of each kind an Attestation takes from an event log,
	// which may be long. What starts a notebook is a handful.
	maxList = 64
	// maxReason bounds texts that a notebook has a part in.
	maxReason = 200
)

// Quoted is what is known after a quote has proven something at a moment. How
// PCRs compare with the model's is not in it: the Book adds that.
func (k Known) Quoted(a *attest.Attested, at time.Time) Known {
	k.Failure = ""
	changedAt := k.Attestation.GetBootLoadersChangedAt()
	now, tooLong := describe(a, at, k.Virtual)
	if loaders := now.GetBootLoaders(); len(loaders) > 0 && !tooLong {
		if len(k.BootLoaders) > 0 && !slices.EqualFunc(k.BootLoaders, loaders, bytes.Equal) {
			changedAt = timestamppb.New(at)
		}
		k.BootLoaders = loaders
	}
	now.BootLoadersChangedAt = changedAt
	k.Attestation = now
	return k
}

// describe makes an Attestation of what a TPM has proven.
func describe(a *attest.Attested, at time.Time, virtual bool) (d *posturev1.Attestation, tooLong bool) {
	d = &posturev1.Attestation{
		Reading:    &posturev1.Reading{State: posturev1.ReadingState_READING_STATE_OBSERVED, Source: source, ObservedAt: timestamppb.New(at)},
		QuotedAt:   timestamppb.New(at),
		ValidUntil: timestamppb.New(at.Add(Validity)),
		SecureBoot: ternary(a.Boot.SecureBoot),
		SetupMode:  ternary(a.Boot.SetupMode),
		Keys:       keys(a.Boot), BootLoaders: a.Boot.Loaders,
		Authorities: authorities(a.Boot), Warnings: warnings(a.Boot),
		TpmFirmware: a.Clock.Firmware, Virtual: virtual,
	}
	for _, index := range slices.Sorted(maps.Keys(a.PCRs)) {
		d.Pcrs = append(d.Pcrs, &posturev1.Pcr{Index: index, Sha256: a.PCRs[index]})
	}
	var why []string
	if a.BootError != nil {
		why = append(why, strings.ReplaceAll(a.BootError.Error(), "\n", "; "))
	}
	if d.BootLoaders, tooLong = head(d.BootLoaders); tooLong {
		why = append(why, fmt.Sprintf("more than %d boot loaders", maxList))
	}
	var cut bool
	if d.Authorities, cut = head(d.Authorities); cut {
		why = append(why, fmt.Sprintf("more than %d authorities", maxList))
	}
	if d.Warnings, cut = head(d.Warnings); cut {
		why = append(why, fmt.Sprintf("more than %d warnings", maxList))
	}
	d.Incomplete = clip(strings.Join(why, "; "), maxReason)
	return d, tooLong
}

func keys(f *bootlog.Facts) []*posturev1.BootKey {
	var list []*posturev1.BootKey
	for _, k := range []struct {
		name   string
		sha256 []byte
	}{{"PK", f.PK}, {"KEK", f.KEK}, {"db", f.DB}, {"dbx", f.DBX}} {
		if k.sha256 != nil {
			list = append(list, &posturev1.BootKey{Name: k.name, Sha256: k.sha256})
		}
	}
	return list
}

// authorities are the names that the log proves, each once.
func authorities(f *bootlog.Facts) []string {
	var names []string
	for _, a := range f.Authorities {
		if name := clip(a.Variable, maxReason); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
		if len(names) > maxList {
			break
		}
	}
	return names
}

func warnings(f *bootlog.Facts) []string {
	var list []string
	for _, w := range f.Warnings {
		list = append(list, clip(w, maxReason))
		if len(list) > maxList {
			break
		}
	}
	return list
}

func ternary(t bootlog.Ternary) posturev1.Ternary {
	switch t {
	case bootlog.Yes:
		return posturev1.Ternary_TERNARY_YES
	case bootlog.No:
		return posturev1.Ternary_TERNARY_NO
	}
	return posturev1.Ternary_TERNARY_UNSPECIFIED
}

// head is the beginning of a list that is too long.
func head[T any](list []T) (short []T, cut bool) {
	if len(list) <= maxList {
		return list, false
	}
	return slices.Clone(list[:maxList]), true
}

// clip makes a text that protobuf and people take, of n bytes at most.
func clip(text string, n int) string {
	text = strings.ToValidUTF8(strings.ReplaceAll(text, "\x00", ""), "")
	return strings.ToValidUTF8(text[:min(len(text), n)], "")
}
