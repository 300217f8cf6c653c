package link

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"pfoertner/collector/gate/session"
	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// maxIdentities is how many identities a snapshot may have.
const maxIdentities = 1_000_000

// watched reads the messages of one Watch after its first.
type watched struct {
	gateway  string
	signer   ed25519.PublicKey
	start    *gatev1.Start
	interval time.Duration

	// chunks of a snapshot that is not complete yet.
	chunks []*gatev1.Standing
	part   lease.Position
}

// read verifies a message and says what it means; nil for a chunk after which
// more are to come. After an error the stream is of no use.
func (w *watched) read(m *gatev1.WatchResponse, received time.Time) (*session.News, error) {
	switch m := m.GetMessage().(type) {
	case *gatev1.WatchResponse_Snapshot:
		s, err := w.standings(m.Snapshot)
		if err != nil {
			return nil, err
		}
		return w.chunk(s, received)
	case *gatev1.WatchResponse_Change:
		s, err := w.standings(m.Change)
		if err != nil {
			return nil, err
		}
		return &session.News{At: lease.At(s), Received: received, Standings: s.GetStandings()}, nil
	case *gatev1.WatchResponse_Renewal:
		leases, err := lease.VerifyRenewal(w.signer, m.Renewal)
		if err != nil {
			return nil, fmt.Errorf("renewal: %w", err)
		}
		return &session.News{Received: received, Leases: leases}, nil
	case *gatev1.WatchResponse_Heartbeat:
		return &session.News{At: lease.At(m.Heartbeat), Received: received}, nil
	case *gatev1.WatchResponse_Start:
		return nil, errors.New("a second start")
	}
	return nil, errors.New("a message that says nothing")
}

func (w *watched) standings(signed *gatev1.SignedStandings) (*gatev1.Standings, error) {
	s, err := lease.VerifyStandings(w.signer, signed)
	if err != nil {
		return nil, fmt.Errorf("standings: %w", err)
	}
	if s.GetGateway() != w.gateway {
		return nil, fmt.Errorf("standings for gateway %q, we are %q", s.GetGateway(), w.gateway)
	}
	if s.GetEpoch() != w.start.GetEpoch() {
		return nil, fmt.Errorf("standings of epoch %d in a watch of epoch %d", s.GetEpoch(), w.start.GetEpoch())
	}
	return s, nil
}

// chunk adds to a snapshot; all its chunks have one position.
func (w *watched) chunk(s *gatev1.Standings, received time.Time) (*session.News, error) {
	at := lease.At(s)
	if len(w.chunks) > 0 && at != w.part {
		return nil, errors.New("chunks of two snapshots are mixed")
	}
	w.part, w.chunks = at, append(w.chunks, s.GetStandings()...)
	if len(w.chunks) > maxIdentities {
		return nil, fmt.Errorf("snapshot of more than %d identities", maxIdentities)
	}
	if !s.GetLast() {
		return nil, nil
	}
	news := &session.News{At: at, Received: received, Snapshot: true, Standings: w.chunks}
	w.chunks = nil
	return news, nil
}
