package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"pfoertner/collector/audit"
	"pfoertner/collector/endorsement"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
)

// uploads keeps what operators have added to the authorities of TPMs
// (store.Store).
type uploads interface {
	SaveAuthorities(ctx context.Context, certificates []byte, actor string, records ...audit.Record) error
	EachAuthorities(ctx context.Context, fn func(certificates []byte, actor string, at time.Time) error) error
}

// authorities are those by which genuine TPMs are known: what is shipped, over
// it the roots of virtual TPMs that the configuration allows, over these what
// operators have uploaded.
type authorities struct {
	store   uploads
	now     func() time.Time
	current atomic.Pointer[endorsement.Bundle]

	mu    sync.Mutex // held by Add; guards added
	added map[string]addition
}

// addition is who added an authority, and when.
type addition struct {
	by string
	at time.Time
}

// openAuthorities loads them. A configured root that is not taken is an error;
// an upload that is not taken any more, because a newer review refuses it, is
// left out and logged: fewer authorities endorse fewer TPMs.
func openAuthorities(ctx context.Context, store uploads, virtualRoots []string, now func() time.Time, log *slog.Logger) (*authorities, error) {
	bundle, err := endorsement.Shipped()
	if err != nil {
		return nil, fmt.Errorf("reading the shipped authorities of TPMs: %w", err)
	}
	for _, file := range virtualRoots {
		roots, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("tpm.virtual_roots: %w", err)
		}
		if bundle, _, err = bundle.AllowVirtual(roots); err != nil {
			return nil, fmt.Errorf("tpm.virtual_roots: %s: %w", file, err)
		}
	}
	a := &authorities{store: store, now: now, added: map[string]addition{}}
	err = store.EachAuthorities(ctx, func(certificates []byte, actor string, at time.Time) error {
		next, taken, err := bundle.Add(certificates)
		if err != nil {
			log.Warn("uploaded authorities of TPMs are not believed any more", "operator", actor, "added_at", at, "error", err)
			return nil
		}
		bundle = next
		a.remember(taken, addition{by: actor, at: at})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loading the uploaded authorities of TPMs: %w", err)
	}
	a.current.Store(bundle)
	return a, nil
}

// Current is the bundle in force; it does not change.
func (a *authorities) Current() *endorsement.Bundle { return a.current.Load() }

// List is what fleet.Authorities asks for.
func (a *authorities) List() []*fleetv1.EndorsementAuthority {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.view(a.Current().Authorities())
}

// Add is what fleet.Authorities asks for. They are believed once they are
// stored, each with an audit record.
func (a *authorities) Add(ctx context.Context, actor string, certificates []byte, dryRun bool) ([]*fleetv1.EndorsementAuthority, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	next, taken, err := a.Current().Add(certificates)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, fs.ErrInvalid)
	}
	if dryRun || len(taken) == 0 {
		return a.view(taken), nil
	}
	at := a.now()
	records := make([]audit.Record, len(taken))
	for i, one := range taken {
		records[i] = audit.Record{At: at, Kind: "endorsement.added", Actor: actor, Details: map[string]string{
			"sha256": one.SHA256, "subject": one.Certificate.Subject.String(), "manufacturer": one.ManufacturerID,
		}}
	}
	if err := a.store.SaveAuthorities(ctx, certificates, actor, records...); err != nil {
		return nil, fmt.Errorf("keeping the authorities of TPMs: %w", err)
	}
	a.remember(taken, addition{by: actor, at: at})
	a.current.Store(next)
	return a.view(taken), nil
}

func (a *authorities) remember(taken []endorsement.Authority, how addition) {
	for _, one := range taken {
		a.added[one.SHA256] = how
	}
}

func (a *authorities) view(list []endorsement.Authority) []*fleetv1.EndorsementAuthority {
	shown := make([]*fleetv1.EndorsementAuthority, len(list))
	for i, one := range list {
		sum, _ := hex.DecodeString(one.SHA256) // the bundle's own spelling
		shown[i] = &fleetv1.EndorsementAuthority{
			Sha256: sum, Subject: one.Certificate.Subject.String(), Issuer: one.Certificate.Issuer.String(),
			Manufacturer: one.ManufacturerID, Root: one.Root, Virtual: one.Virtual, ExpiresAt: timestamppb.New(one.Certificate.NotAfter),
		}
		if how, ok := a.added[one.SHA256]; ok {
			shown[i].AddedBy, shown[i].AddedAt = how.by, timestamppb.New(how.at)
		}
	}
	return shown
}
