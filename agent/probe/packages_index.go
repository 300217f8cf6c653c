package probe

import (
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// kernelImagePrefix begins the names of packages that hold or pull in a
// kernel.
const kernelImagePrefix = "linux-image-"

// maxIndexBytes is far above the largest index there is; a bomb of compressed
// nothing ends here.
const maxIndexBytes = 1 << 30

// packagesIndex is what was kept of a Packages index.
type packagesIndex struct {
	// newest is the newest version offered of each package.
	newest map[packageID]string
	// sum identifies the whole content, to be compared with the InRelease.
	sum indexSum
}

// parsePackagesIndex streams a Packages index and keeps of it the newest
// version of each installed package, and of every kernel image: those come
// under new names.
func parsePackagesIndex(r io.Reader, db packageDatabase) (packagesIndex, error) {
	content := &summedReader{from: io.LimitReader(r, maxIndexBytes), hash: sha256.New()}
	paragraphs := newParagraphReader(content, "Package", "Architecture", "Version")
	index := packagesIndex{newest: map[packageID]string{}}
	for {
		err := paragraphs.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return index, err
		}
		name, architecture, version := paragraphs.value(0), paragraphs.value(1), paragraphs.value(2)
		if len(name) == 0 || len(architecture) == 0 || len(version) == 0 {
			return index, fmt.Errorf("entry %.80q has no name, architecture or version", name)
		}
		id := db.id(string(name), string(architecture))
		if _, installed := db.installed[id]; !installed && !strings.HasPrefix(id.name, kernelImagePrefix) {
			continue
		}
		if known, ok := index.newest[id]; !ok || compareVersions(known, string(version)) < 0 {
			index.newest[id] = string(version)
		}
	}
	index.sum = indexSum{content.size, [sha256.Size]byte(content.hash.Sum(nil))}
	return index, nil
}

// summedReader counts and hashes what is read through it.
type summedReader struct {
	from io.Reader
	hash hash.Hash
	size int64
}

func (s *summedReader) Read(p []byte) (int, error) {
	n, err := s.from.Read(p)
	s.hash.Write(p[:n]) // a hash never returns an error
	s.size += int64(n)
	return n, err
}

// untilDone ends reading when ctx ends.
type untilDone struct {
	ctx  context.Context
	from io.Reader
}

func (u untilDone) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.from.Read(p)
}

// decompress reads r as its file name's ending says. Close frees the decoder.
func decompress(name string, r io.Reader) (io.ReadCloser, error) {
	switch {
	case strings.HasSuffix(name, "_Packages"):
		return io.NopCloser(r), nil
	case strings.HasSuffix(name, ".lz4"):
		return io.NopCloser(lz4.NewReader(r)), nil
	case strings.HasSuffix(name, ".gz"):
		return gzip.NewReader(r)
	case strings.HasSuffix(name, ".bz2"):
		return io.NopCloser(bzip2.NewReader(r)), nil
	case strings.HasSuffix(name, ".xz"):
		plain, err := xz.NewReader(r)
		return io.NopCloser(plain), err
	case strings.HasSuffix(name, ".zst"):
		plain, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return plain.IOReadCloser(), nil
	default:
		return nil, errors.New("compressed in a way that is not known here")
	}
}
