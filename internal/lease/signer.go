package lease

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"runtime"
	"sync"

	"google.golang.org/protobuf/proto"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Signer signs with the collector's lease-signing key. It starts no
// goroutines: of the callers that come together, the first signs for all.
type Signer struct {
	key ed25519.PrivateKey
	// signing is held by the one that signs; the next batch fills meanwhile.
	signing sync.Mutex
	mu      sync.Mutex
	open    *batch // takes more leases; nil when the next caller begins one
}

// batch is leases that share a signature. Its fields up to done belong to
// Signer.mu until it is closed to newcomers, then to the one that signs.
type batch struct {
	leaves    [][]byte
	tree      tree
	signature []byte
	done      chan struct{}
}

// NewSigner returns a Signer for a complete Ed25519 private key
// (ed25519.PrivateKeySize bytes).
func NewSigner(key ed25519.PrivateKey) *Signer {
	return &Signer{key: key}
}

// Sign signs one lease, together with those that other goroutines bring at the
// same moment. A lone caller is signed at once. Errors: a lease that cannot be
// marshalled, or the context's.
func (s *Signer) Sign(ctx context.Context, l *gatev1.Lease) (*gatev1.SignedLease, error) {
	leaf, err := proto.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("marshalling lease: %w", err)
	}
	b, i, first := s.join(leaf)
	if first {
		s.sign(b)
	} else {
		select {
		case <-b.done:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return &gatev1.SignedLease{
		Lease:     leaf,
		Signature: b.signature,
		LeafIndex: uint64(i),
		TreeSize:  uint64(len(b.leaves)),
		AuditPath: b.tree.path(i),
	}, nil
}

// join adds a leaf to the open batch, or opens one: then the caller is first
// and has to sign it.
func (s *Signer) join(leaf []byte) (b *batch, index int, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = &batch{done: make(chan struct{})}
		first = true
	}
	b = s.open
	b.leaves = append(b.leaves, leaf)
	if len(b.leaves) == MaxTree {
		s.open = nil
	}
	return b, len(b.leaves) - 1, first
}

// sign closes the batch to newcomers and signs it.
func (s *Signer) sign(b *batch) {
	// Whoever could run now may join. On an idle machine this returns at once;
	// on a busy one it is what makes batches large.
	runtime.Gosched()
	s.signing.Lock()
	defer s.signing.Unlock()
	s.mu.Lock()
	if s.open == b {
		s.open = nil
	}
	s.mu.Unlock()
	b.tree = newTree(b.leaves)
	b.signature = ed25519.Sign(s.key, treeHead(uint64(len(b.leaves)), b.tree.root()))
	close(b.done)
}

// SignBatch signs leases that are renewed together: 1 to MaxTree.
func (s *Signer) SignBatch(leases []*gatev1.Lease) (*gatev1.LeaseRenewal, error) {
	n := len(leases)
	if n == 0 || n > MaxTree {
		return nil, fmt.Errorf("batch of %d leases: 1 to %d are taken", n, MaxTree)
	}
	leaves := make([][]byte, n)
	for i, l := range leases {
		leaf, err := proto.Marshal(l)
		if err != nil {
			return nil, fmt.Errorf("marshalling lease %d of %d: %w", i+1, n, err)
		}
		leaves[i] = leaf
	}
	head := treeHead(uint64(n), newTree(leaves).root())
	return &gatev1.LeaseRenewal{Leases: leaves, Signature: ed25519.Sign(s.key, head)}, nil
}

// SignStandings signs standings: a snapshot's chunk or a change.
func (s *Signer) SignStandings(standings *gatev1.Standings) (*gatev1.SignedStandings, error) {
	raw, err := proto.Marshal(standings)
	if err != nil {
		return nil, fmt.Errorf("marshalling standings: %w", err)
	}
	return &gatev1.SignedStandings{Standings: raw, Signature: ed25519.Sign(s.key, standingsHead(raw))}, nil
}
