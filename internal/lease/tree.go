package lease

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
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

// newTree builds the tree over hashed leaves, of which there is at least one.
// It keeps them.
func newTree(leaves []hash) tree {
	depth := bits.Len(uint(len(leaves) - 1))
	inner := make([]hash, 0, len(leaves)+depth)
	t := tree{levels: append(make([][]hash, 0, depth+1), leaves)}
	for level := leaves; len(level) > 1; {
		start := len(inner)
		for i := 0; i+1 < len(level); i += 2 {
			inner = append(inner, nodeHash(level[i], level[i+1]))
		}
		if len(level)%2 == 1 {
			inner = append(inner, level[len(level)-1])
		}
		level = inner[start:]
		t.levels = append(t.levels, level)
	}
	return t
}

func (t tree) root() hash {
	return t.levels[len(t.levels)-1][0]
}

// walk yields the audit path of leaf i, from the bottom (RFC 9162, 2.1.3.1).
func (t tree) walk(i int) iter.Seq[*hash] {
	return func(yield func(*hash) bool) {
		for _, level := range t.levels[:len(t.levels)-1] {
			if sibling := i ^ 1; sibling < len(level) && !yield(&level[sibling]) {
				return
			}
			i >>= 1
		}
	}
}

// path is the audit path of leaf i. It shares the tree's memory.
func (t tree) path(i int) [][]byte {
	path := make([][]byte, 0, len(t.levels)-1)
	for node := range t.walk(i) {
		path = append(path, node[:])
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
