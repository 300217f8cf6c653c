package lease

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"runtime"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
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

// batch is leases that share a signature. Its leaves belong to Signer.mu until
// it is closed to newcomers, then to the one that signs.
type batch struct {
	leaves    []hash
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
// same moment. A lone caller is signed at once. Errors: the context's if it has
// ended already, or a lease that cannot be marshalled.
func (s *Signer) Sign(ctx context.Context, l *gatev1.Lease) (*gatev1.SignedLease, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	leaf, err := proto.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("marshalling lease: %w", err)
	}
	b, i := s.sign(leafHash(leaf))
	return &gatev1.SignedLease{
		Lease:     leaf,
		Signature: b.signature,
		LeafIndex: uint64(i),
		TreeSize:  uint64(len(b.leaves)),
		AuditPath: b.tree.path(i),
	}, nil
}

// AppendSigned is Sign for the busiest way: it appends the SignedLease to b as
// it is marshalled.
func (s *Signer) AppendSigned(ctx context.Context, b []byte, l *gatev1.Lease) ([]byte, error) {
	if ctx.Err() != nil {
		return b, context.Cause(ctx)
	}
	marshal := proto.MarshalOptions{}
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(marshal.Size(l)))
	marshal.UseCachedSize = true
	start := len(b)
	b, err := marshal.MarshalAppend(b, l)
	if err != nil {
		return b, fmt.Errorf("marshalling lease: %w", err)
	}
	signed, i := s.sign(leafHash(b[start:]))
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, signed.signature)
	if i > 0 {
		b = protowire.AppendTag(b, 3, protowire.VarintType)
		b = protowire.AppendVarint(b, uint64(i))
	}
	b = protowire.AppendTag(b, 4, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(len(signed.leaves)))
	for node := range signed.tree.walk(i) {
		b = protowire.AppendTag(b, 5, protowire.BytesType)
		b = protowire.AppendBytes(b, node[:])
	}
	return b, nil
}

// sign puts a leaf into a batch and returns once that is signed, with the
// leaf's index.
func (s *Signer) sign(leaf hash) (b *batch, index int) {
	b, index, first := s.join(leaf)
	if first {
		s.finish(b)
	} else {
		<-b.done
	}
	return b, index
}

// join adds a leaf to the open batch, or opens one: then the caller is first
// and has to finish it.
func (s *Signer) join(leaf hash) (b *batch, index int, first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = &batch{leaves: make([]hash, 0, 16), done: make(chan struct{})}
		first = true
	}
	b = s.open
	b.leaves = append(b.leaves, leaf)
	if len(b.leaves) == MaxTree {
		s.open = nil
	}
	return b, len(b.leaves) - 1, first
}

// finish closes the batch to newcomers and signs it.
func (s *Signer) finish(b *batch) {
	// Whoever could run now may join, and who they wake, until a turn brings
	// nobody. On an idle machine that is at once; on a busy one it is what makes
	// batches large.
	for size := 0; size < s.size(b); {
		size = s.size(b)
		runtime.Gosched()
	}
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

func (s *Signer) size(b *batch) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(b.leaves)
}

// SignBatch signs leases that are renewed together: 1 to MaxTree.
func (s *Signer) SignBatch(leases []*gatev1.Lease) (*gatev1.LeaseRenewal, error) {
	n := len(leases)
	if n == 0 || n > MaxTree {
		return nil, fmt.Errorf("batch of %d leases: 1 to %d are taken", n, MaxTree)
	}
	r := &gatev1.LeaseRenewal{Leases: make([][]byte, n)}
	leaves := make([]hash, n)
	for i, l := range leases {
		leaf, err := proto.Marshal(l)
		if err != nil {
			return nil, fmt.Errorf("marshalling lease %d of %d: %w", i+1, n, err)
		}
		r.Leases[i], leaves[i] = leaf, leafHash(leaf)
	}
	r.Signature = ed25519.Sign(s.key, treeHead(uint64(n), newTree(leaves).root()))
	return r, nil
}

// SignStandings signs standings: a snapshot's chunk or a change.
func (s *Signer) SignStandings(standings *gatev1.Standings) (*gatev1.SignedStandings, error) {
	raw, err := proto.Marshal(standings)
	if err != nil {
		return nil, fmt.Errorf("marshalling standings: %w", err)
	}
	return &gatev1.SignedStandings{Standings: raw, Signature: ed25519.Sign(s.key, standingsHead(raw))}, nil
}
