// Package lease signs and verifies what a gate obeys: leases, renewals and
// standings (gate.v1).
//
// Rules. One Ed25519 signature costs more than all the rest of an admission,
// so leases asked for at the same moment share one: it covers the root of a
// Merkle tree (RFC 9162, 2.1) whose leaves are the marshalled leases. Every
// signature names its purpose; none can pass for another. Verification is
// strict: what is not exactly as the signer makes it is an error, and an error
// comes with no lease. A signature does not make a lease new: the gate
// compares Positions, and checks that the lease names itself and the session.
package lease

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Purposes, as gate.proto fixes them: what is signed begins with its purpose
// and a zero byte.
const (
	purposeLease     = "pfoertner-lease-v1"
	purposeStandings = "pfoertner-standings-v1"
)

// MaxTree is the most leases that one signature covers.
const MaxTree = 4096

// ErrSignature says that a message is not what the holder of the key signed.
var ErrSignature = errors.New("signature does not match")

// VerifyLease checks one lease as Signer.Sign made it and returns it. Errors:
// ErrSignature, or what is wrong with the message's form.
func VerifyLease(pub ed25519.PublicKey, s *gatev1.SignedLease) (*gatev1.Lease, error) {
	root, err := rootOf(leafHash(s.GetLease()), s.GetLeafIndex(), s.GetTreeSize(), s.GetAuditPath())
	if err != nil {
		return nil, err
	}
	if err := verify(pub, treeHead(s.GetTreeSize(), root), s.GetSignature()); err != nil {
		return nil, err
	}
	return parse(s.GetLease())
}

// VerifyRenewal checks a batch as Signer.SignBatch made it and returns its
// leases in order: all of them or none. Errors as VerifyLease.
func VerifyRenewal(pub ed25519.PublicKey, r *gatev1.LeaseRenewal) ([]*gatev1.Lease, error) {
	n := len(r.GetLeases())
	if n == 0 || n > MaxTree {
		return nil, fmt.Errorf("renewal of %d leases: 1 to %d are taken", n, MaxTree)
	}
	leaves := make([]hash, n)
	for i, raw := range r.GetLeases() {
		leaves[i] = leafHash(raw)
	}
	if err := verify(pub, treeHead(uint64(n), newTree(leaves).root()), r.GetSignature()); err != nil {
		return nil, err
	}
	leases := make([]*gatev1.Lease, n)
	for i, raw := range r.GetLeases() {
		l, err := parse(raw)
		if err != nil {
			return nil, fmt.Errorf("lease %d of %d: %w", i+1, n, err)
		}
		leases[i] = l
	}
	return leases, nil
}

// VerifyStandings checks standings as Signer.SignStandings made them and
// returns them. Errors as VerifyLease.
func VerifyStandings(pub ed25519.PublicKey, s *gatev1.SignedStandings) (*gatev1.Standings, error) {
	if err := verify(pub, standingsHead(s.GetStandings()), s.GetSignature()); err != nil {
		return nil, err
	}
	standings := &gatev1.Standings{}
	if err := proto.Unmarshal(s.GetStandings(), standings); err != nil {
		return nil, fmt.Errorf("parsing standings: %w", err)
	}
	return standings, nil
}

func verify(pub ed25519.PublicKey, message, signature []byte) error {
	if len(pub) != ed25519.PublicKeySize {
		return fmt.Errorf("public key of %d bytes: %d are needed", len(pub), ed25519.PublicKeySize)
	}
	if !ed25519.Verify(pub, message, signature) {
		return ErrSignature
	}
	return nil
}

func parse(raw []byte) (*gatev1.Lease, error) {
	l := &gatev1.Lease{}
	if err := proto.Unmarshal(raw, l); err != nil {
		return nil, fmt.Errorf("parsing lease: %w", err)
	}
	if l.GetTtl() != nil {
		if err := l.GetTtl().CheckValid(); err != nil {
			return nil, fmt.Errorf("parsing lease: %w", err)
		}
	}
	if l.GetTtl().AsDuration() < 0 {
		return nil, errors.New("parsing lease: negative time to live")
	}
	return l, nil
}

// treeHead is what the signature of a batch of leases covers.
func treeHead(size uint64, root hash) []byte {
	b := make([]byte, 0, len(purposeLease)+1+8+len(root))
	b = append(b, purposeLease...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint64(b, size)
	return append(b, root[:]...)
}

// standingsHead is what the signature of standings covers.
func standingsHead(standings []byte) []byte {
	b := make([]byte, 0, len(purposeStandings)+1+len(standings))
	b = append(b, purposeStandings...)
	b = append(b, 0)
	return append(b, standings...)
}
