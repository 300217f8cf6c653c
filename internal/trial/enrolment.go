package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// idCard is what `pfoertner-agent id --json` prints, as far as the trial looks
// at it.
type idCard struct {
	Fingerprint string `json:"fingerprint"`
	TPM         *struct {
		EndorsementKey string `json:"endorsement_key_sha256"`
		Manufacturer   string `json:"manufacturer"`
	} `json:"tpm"`
	TPMProblem string `json:"tpm_problem"`
}

// enrolThisMachine puts this machine into the inventory, with a VPN certificate,
// and starts its agent. Its key is in its TPM, if it has one that this user may
// use and the collector believes; otherwise two operators allow a software key,
// and the trial says so.
func (t *trial) enrolThisMachine(ctx context.Context) error {
	if err := t.makeVPNCertificate(); err != nil {
		return err
	}
	why := t.enrolByTPM(ctx)
	if why == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if t.agent != nil {
		t.agent.kill()
		t.agent = nil
	}
	step("key", "this machine's key is not hardware-bound: "+why.Error())
	return t.enrolBySoftwareKey(ctx)
}

// enrolByTPM enrols with the TPM. The delivery list names its endorsement key;
// if no manufacturer vouches for that, two operators approve it, by the
// fingerprint that the machine itself shows.
func (t *trial) enrolByTPM(ctx context.Context) error {
	card, err := t.id(ctx)
	if err != nil {
		return err
	}
	if card.TPM == nil {
		return errors.New(card.TPMProblem)
	}
	t.asset = "NB-0001"
	if err := t.importAsset(ctx, "endorsement_key_sha256", card.TPM.EndorsementKey); err != nil {
		return err
	}
	if err := t.startAgent(ctx, "tpm"); err != nil {
		return err
	}
	approved := false
	err = t.await(ctx, func() error {
		d, err := t.device(ctx)
		if err != nil || d.ID != "" {
			return err
		}
		if d.Pending != nil && !approved {
			if err := t.both(ctx, "approve", t.asset, "--fingerprint", card.Fingerprint, "--reason", "compared with what the machine shows"); err != nil {
				return err
			}
			approved = true
			step("key", "no manufacturer vouches for this machine's TPM: anna and bernd have approved "+card.Fingerprint)
		}
		return errors.New("not enrolled yet")
	})
	if err != nil {
		return fmt.Errorf("the collector has not accepted its TPM (%s) within %s", card.TPM.Manufacturer, patience)
	}
	step("key", "in this machine's TPM ("+card.TPM.Manufacturer+")")
	return nil
}

// enrolBySoftwareKey is the exception: by two operators, with a reason and an
// end.
func (t *trial) enrolBySoftwareKey(ctx context.Context) error {
	if t.asset == "" {
		t.asset = "NB-0001"
	} else {
		t.asset = "NB-0002" // the other one has a TPM by the inventory, and no way back from that
	}
	if err := t.importAsset(ctx, "unit", "inneres/it"); err != nil {
		return err
	}
	tomorrow := time.Now().UTC().AddDate(0, 0, 1).Format(time.DateOnly)
	if err := t.both(ctx, "software-key", "allow", t.asset, "--until", tomorrow, "--reason", "trial without a usable TPM"); err != nil {
		return err
	}
	step("key", "anna and bernd have allowed a software key until "+tomorrow)
	if err := t.startAgent(ctx, "software"); err != nil {
		return err
	}
	return t.await(ctx, func() error {
		d, err := t.device(ctx)
		if err == nil && d.ID == "" {
			err = errors.New("not enrolled yet")
		}
		return err
	})
}

// importAsset takes the asset into the inventory, with one column of its own.
func (t *trial) importAsset(ctx context.Context, column, value string) error {
	csv := "asset_number;vpn_certificate_sha256;" + column + "\n" + t.asset + ";" + t.vpn + ";" + value + "\n"
	if err := os.WriteFile(t.path("inventory.csv"), []byte(csv), 0o600); err != nil {
		return err
	}
	_, err := t.operator(ctx, "inventory", "import", t.path("inventory.csv"))
	return err
}

// startAgent starts the agent with a one-time token.
func (t *trial) startAgent(ctx context.Context, deviceKey string) error {
	token, err := t.operator(ctx, "token", t.asset)
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.path("token"), []byte(token), 0o600); err != nil {
		return err
	}
	t.agent, err = t.start("pfoertner-agent", append([]string{"run"}, t.agentFlags(deviceKey)...)...)
	return err
}

func (t *trial) agentFlags(deviceKey string) []string {
	return []string{
		"--collector", t.address.agents, "--ca-file", t.path(anna, "server-ca.crt"), "--token-file", t.path("token"), "--device-key", deviceKey,
		"--state-dir", t.path("agent", deviceKey), "--status-file", t.path("agent", "status.json"),
	}
}

// id asks the agent who this machine is.
func (t *trial) id(ctx context.Context) (*idCard, error) {
	text, err := t.run(ctx, "pfoertner-agent", append([]string{"id", "--json"}, t.agentFlags("tpm")...)...)
	if err != nil {
		return nil, err
	}
	card := &idCard{}
	if err := json.Unmarshal([]byte(text), card); err != nil {
		return nil, fmt.Errorf("reading who this machine is: %w", err)
	}
	return card, nil
}
