//go:build linux

package nft_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"pfoertner/internal/e2e"
)

// guarded runs Guard and returns what it tells.
func (s *site) guarded(t *testing.T) <-chan error {
	t.Helper()
	f := s.open(t)
	apply(t, f, admit("10.8.0.2", time.Minute))
	ctx, cancel := context.WithCancel(context.Background())
	told, ended := make(chan error, 16), make(chan error, 1)
	go func() { ended <- f.Guard(ctx, func(err error) { told <- err }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("guard ended with %v", err)
		}
	})
	return told
}

func TestDeletedTableComesBackClosed(t *testing.T) {
	for _, command := range [][]string{{"flush", "ruleset"}, {"delete", "table", "inet", "pfoertner"}} {
		t.Run(command[0], func(t *testing.T) {
			s := newSite(t)
			p := e2e.StartProber(t, s.notebook, e2e.StartEcho(t, s.lan, netip.MustParseAddrPort("10.9.0.2:7")))
			told := s.guarded(t)
			p.AwaitFlow(t, soon)
			s.gateway.Run(t, "nft", command...)
			select {
			case err := <-told:
				if err != nil {
					t.Fatal(err)
				}
			case <-time.After(soon):
				t.Fatal("nothing was told")
			}
			p.AwaitSilence(t, 200*time.Millisecond, soon)
			s.gateway.Run(t, "nft", "list", "chain", "inet", "pfoertner", "forward")
		})
	}
}

func TestOtherTablesComeAndGo(t *testing.T) {
	s := newSite(t)
	told := s.guarded(t)
	s.gateway.Run(t, "nft", "add table inet other; delete table inet other")
	s.gateway.Run(t, "nft", "add table ip pfoertner; delete table ip pfoertner")
	select {
	case err := <-told:
		t.Errorf("told %v", err)
	case <-time.After(200 * time.Millisecond):
	}
}
