package lease

import "cmp"

// Position orders everything that a collector says to gates: first by epoch
// (one more at each start of a collector), then by sequence. Leases and
// standings draw from the same sequence. The zero Position is before all
// others.
type Position struct {
	Epoch, Sequence uint64
}

// Positioned is every message of gate.v1 that has a position: Lease,
// Standings, Start, WatchRequest, WatchHeartbeat, SessionUp, CutConfirmed.
type Positioned interface {
	GetEpoch() uint64
	GetSequence() uint64
}

// At is the position of a message; of a nil message the zero Position.
func At(m Positioned) Position {
	return Position{Epoch: m.GetEpoch(), Sequence: m.GetSequence()}
}

// Compare is -1 when p is before q, 0 when they are the same, +1 when p is
// after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Sequence, q.Sequence))
}

// After says that p is newer than q. A gate takes a lease only when it is
// After the newest that it holds for the session: the same lease again would
// begin its time to live anew.
func (p Position) After(q Position) bool {
	return p.Compare(q) > 0
}
