package probe

import (
	"fmt"
	"io"
	"io/fs"
	"time"
)

// fileStamp tells whether a file is still the one that was parsed.
type fileStamp struct {
	name     string
	size     int64
	modified time.Time
}

func stampOf(files fs.FS, name string) (fileStamp, error) {
	info, err := fs.Stat(files, name)
	if err != nil {
		return fileStamp{}, err
	}
	return fileStamp{name, info.Size(), info.ModTime()}, nil
}

// fileCache keeps what was parsed of files until they change. The zero value
// is ready.
type fileCache[T any] struct {
	parsed map[string]parsedFile[T]
}

type parsedFile[T any] struct {
	stamp fileStamp
	value T
}

// get returns what parse makes of a file, without parsing it again while name,
// size and time of change stay the same. Errors are not kept.
func (c *fileCache[T]) get(files fs.FS, name string, parse func(io.Reader) (T, error)) (T, error) {
	var none T
	stamp, err := stampOf(files, name)
	if err != nil {
		return none, err
	}
	if known, ok := c.parsed[name]; ok && known.stamp == stamp {
		return known.value, nil
	}
	f, err := files.Open(name)
	if err != nil {
		return none, err
	}
	defer f.Close()
	value, err := parse(f)
	if err != nil {
		return none, fmt.Errorf("%s: %w", name, err)
	}
	if c.parsed == nil {
		c.parsed = map[string]parsedFile[T]{}
	}
	c.parsed[name] = parsedFile[T]{stamp, value}
	return value, nil
}

// keep forgets every file that is not among names.
func (c *fileCache[T]) keep(wanted func(name string) bool) {
	for name := range c.parsed {
		if !wanted(name) {
			delete(c.parsed, name)
		}
	}
}
