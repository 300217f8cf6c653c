package lease

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/bits"
)

// hash is a node of the tree.
type hash = [sha256.Size]byte

// tree is a Merkle tree (RFC 9162, 2.1.1), level by level, leaves first. The
// last node of a level without a sibling is its own parent, which gives the
// same tree as the RFC's recursive definition.
type tree struct {
	levels [][]hash
}

// newTree hashes the leaves, of which there is at least one.
func newTree(leaves [][]byte) tree {
	slab := make([]hash, 0, 2*len(leaves)+bits.Len(uint(len(leaves))))
	for _, leaf := range leaves {
		slab = append(slab, leafHash(leaf))
	}
	level := slab
	t := tree{levels: make([][]hash, 0, bits.Len(uint(len(leaves)))+1)}
	t.levels = append(t.levels, level)
	for len(level) > 1 {
		start := len(slab)
		for i := 0; i+1 < len(level); i += 2 {
			slab = append(slab, nodeHash(level[i], level[i+1]))
		}
		if len(level)%2 == 1 {
			slab = append(slab, level[len(level)-1])
		}
		level = slab[start:]
		t.levels = append(t.levels, level)
	}
	return t
}

func (t tree) root() hash {
	return t.levels[len(t.levels)-1][0]
}

// path is the audit path of leaf i (RFC 9162, 2.1.3.1). It shares the tree's
// memory.
func (t tree) path(i int) [][]byte {
	if len(t.levels) == 1 {
		return nil
	}
	path := make([][]byte, 0, len(t.levels)-1)
	for _, level := range t.levels[:len(t.levels)-1] {
		if sibling := i ^ 1; sibling < len(level) {
			path = append(path, level[sibling][:])
		}
		i >>= 1
	}
	return path
}

// rootOf walks an audit path up (RFC 9162, 2.1.3.2).
func rootOf(node hash, index, size uint64, path [][]byte) (hash, error) {
	if size == 0 || size > MaxTree {
		return hash{}, fmt.Errorf("tree of %d leases: 1 to %d are taken", size, MaxTree)
	}
	if index >= size {
		return hash{}, fmt.Errorf("leaf %d of a tree of %d", index, size)
	}
	last := size - 1
	for _, p := range path {
		if len(p) != sha256.Size {
			return hash{}, fmt.Errorf("audit path with a node of %d bytes", len(p))
		}
		if last == 0 {
			return hash{}, errors.New("audit path is too long")
		}
		sibling := hash(p)
		if index&1 == 1 || index == last {
			node = nodeHash(sibling, node)
			for index&1 == 0 && index != 0 {
				index >>= 1
				last >>= 1
			}
		} else {
			node = nodeHash(node, sibling)
		}
		index >>= 1
		last >>= 1
	}
	if last != 0 {
		return hash{}, errors.New("audit path is too short")
	}
	return node, nil
}

func leafHash(leaf []byte) hash {
	var stack [512]byte
	return sha256.Sum256(append(append(stack[:0], 0x00), leaf...))
}

func nodeHash(left, right hash) hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = 0x01
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}
