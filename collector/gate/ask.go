//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"pfoertner/collector/gate/link"
	"pfoertner/internal/mtls"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// question is what `ask` asks about: one of the two.
type question struct {
	certificate string
	fingerprint string
}

// ask puts the question to a collector and prints the answer. The exit code
// says it too.
func (q question) ask(ctx context.Context, path string, out io.Writer) (int, error) {
	sum, err := q.sum()
	if err != nil {
		return exitError, err
	}
	config, err := loadConfig(path)
	if err != nil {
		return exitError, err
	}
	o, err := linkOptions(config, slog.New(slog.DiscardHandler))
	if err != nil {
		return exitError, err
	}
	answer, collector, err := link.Ask(ctx, o, &gatev1.SessionFacts{
		SessionId:         "ask/" + strings.ToLower(rand.Text()),
		CertificateSha256: sum,
		Protocol:          gatev1.Protocol_PROTOCOL_OPENVPN,
	})
	if err != nil {
		return exitError, err
	}
	l := answer.Lease
	word, code := "denied", exitDenied
	switch l.GetVerdict() {
	case posturev1.Verdict_VERDICT_ADMIT:
		word, code = "admitted", exitOK
	case posturev1.Verdict_VERDICT_QUARANTINE:
		word, code = "quarantine", exitQuarantine
	}
	for _, line := range []struct{ name, value string }{
		{"verdict", word},
		{"device", l.GetDeviceId()},
		{"lease", l.GetTtl().AsDuration().String()},
		{"code", l.GetCode()},
		{"text (de)", answer.Message.GetDe()},
		{"text (en)", answer.Message.GetEn()},
		{"certificate", hex.EncodeToString(sum)},
		{"collector", collector},
	} {
		if line.value != "" {
			fmt.Fprintf(out, "%-12s %s\n", line.name, line.value)
		}
	}
	return code, nil
}

// sum is the certificate's SHA-256.
func (q question) sum() ([]byte, error) {
	switch {
	case (q.certificate == "") == (q.fingerprint == ""):
		return nil, errors.New("ask: either --certificate or --fingerprint is needed")
	case q.fingerprint != "":
		sum, err := hex.DecodeString(strings.ReplaceAll(q.fingerprint, ":", ""))
		if err != nil || len(sum) != sha256.Size {
			return nil, errors.New("ask: a fingerprint is 64 hexadecimal digits")
		}
		return sum, nil
	}
	certs, err := mtls.ReadCertificates(q.certificate)
	if err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	sum := sha256.Sum256(certs[0].Raw)
	return sum[:], nil
}
