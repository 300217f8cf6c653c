package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"runtime"
	"strings"
	"time"
)

// device is what `pfoertner-collector devices ASSET --json` prints, as far as
// the trial looks at it.
type device struct {
	ID      string `json:"id"`
	Online  bool   `json:"online"`
	Pending *struct {
		Fingerprint string `json:"fingerprint"`
	} `json:"pending"`
	Evidence *struct {
		Platform struct {
			Reading       reading `json:"reading"`
			KernelRelease string  `json:"kernel_release"`
			Architecture  string  `json:"architecture"`
			Distribution  string  `json:"distribution"`
			Version       string  `json:"version"`
		} `json:"platform"`
		Volumes struct {
			Reading reading           `json:"reading"`
			Volumes []json.RawMessage `json:"volumes"`
		} `json:"volumes"`
		Patch struct {
			Reading         reading `json:"reading"`
			Installed       int     `json:"installed_packages"`
			PendingSecurity int     `json:"pending_security"`
		} `json:"patch"`
	} `json:"evidence"`
	Result *struct {
		Verdict  string `json:"verdict"`
		Code     string `json:"code"`
		Findings []struct {
			Rule    string `json:"rule"`
			Outcome string `json:"outcome"`
		} `json:"findings"`
	} `json:"result"`
}

type reading struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
}

// isThisMachine compares the stored evidence with what this machine says of
// itself by another way.
func (d *device) isThisMachine() error {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return err
	}
	p := d.Evidence.Platform
	if want := strings.TrimSpace(string(kernel)); p.KernelRelease != want {
		return fmt.Errorf("the evidence says kernel %q, this machine runs %q", p.KernelRelease, want)
	}
	if p.Architecture != runtime.GOARCH {
		return fmt.Errorf("the evidence says architecture %q, this machine is %q", p.Architecture, runtime.GOARCH)
	}
	if len(d.Result.Findings) == 0 {
		return fmt.Errorf("the evidence was judged by no rule")
	}
	return nil
}

func (d *device) summary() string {
	e := d.Evidence
	return fmt.Sprintf("%s %s, kernel %s; %d volumes, %d packages, %d security updates pending",
		e.Platform.Distribution, e.Platform.Version, e.Platform.KernelRelease,
		len(e.Volumes.Volumes), e.Patch.Installed, e.Patch.PendingSecurity)
}

// verdict in one line.
func (d *device) verdict() string {
	if d.Result == nil {
		return "no result"
	}
	count := map[string]int{}
	for _, f := range d.Result.Findings {
		count[strings.TrimPrefix(f.Outcome, "OUTCOME_")]++
	}
	return fmt.Sprintf("%s %s (%d passed, %d failed, %d unknown)", strings.TrimPrefix(d.Result.Verdict, "VERDICT_"),
		d.Result.Code, count["PASS"], count["FAIL"], count["UNKNOWN"])
}

// makeVPNCertificate stands in for the certificate that the administration's
// VPN gave this notebook: only its fingerprint matters.
func (t *trial) makeVPNCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "trial"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(der)
	t.vpn = hex.EncodeToString(sum[:])
	return nil
}

// answer is what `pfoertner-gate ask` prints.
type answer struct{ verdict, code, text string }

// askAsGateway asks for this machine and for a stranger: the first answer must
// be the result's, the second no.
func (t *trial) askAsGateway(ctx context.Context, d *device) error {
	ours, err := t.ask(ctx, t.vpn)
	if err != nil {
		return err
	}
	step("gate", fmt.Sprintf("asked for %s: %s. %s", t.asset, ours.verdict, ours.text))
	want := map[string]string{"VERDICT_ADMIT": "admitted", "VERDICT_QUARANTINE": "quarantine", "VERDICT_DENY": "denied"}[d.Result.Verdict]
	if want == "" || ours.verdict != want || ours.code != d.Result.Code {
		return fmt.Errorf("admission says %s %s, the result says %s %s", ours.verdict, ours.code, d.Result.Verdict, d.Result.Code)
	}
	stranger, err := t.ask(ctx, strings.Repeat("5a", sha256.Size))
	if err != nil {
		return err
	}
	step("gate", fmt.Sprintf("asked for a stranger: %s. %s", stranger.verdict, stranger.text))
	if stranger.verdict != "denied" {
		return fmt.Errorf("a stranger is answered %q", stranger.verdict)
	}
	return nil
}

// ask asks for one VPN certificate. A refusal is an answer: only what prints no
// verdict is an error.
func (t *trial) ask(ctx context.Context, fingerprint string) (answer, error) {
	text, err := t.run(ctx, "pfoertner-gate", "ask", "--config", t.path("gate.yaml"), "--fingerprint", fingerprint)
	said := map[string]string{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "  ")
		said[name] = strings.TrimSpace(value)
	}
	if said["verdict"] == "" {
		return answer{}, errors.Join(errors.New("no verdict was answered"), err)
	}
	return answer{verdict: said["verdict"], code: said["code"], text: said["text (de)"]}, nil
}
