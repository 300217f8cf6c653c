package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxFieldBytes is the longest line, and the longest value of a field that was
// asked for. Nothing that is read here comes near it.
const maxFieldBytes = 64 << 10

// paragraphReader reads deb822 text (deb822(5)): the dpkg status, Packages
// indexes and .sources files. It keeps one line in memory and copies only the
// fields it was asked for, so an index of any size is read in flat memory.
type paragraphReader struct {
	lines  *bufio.Reader
	fields []string
	values [][]byte
}

// newParagraphReader reads r and keeps the named fields of each paragraph.
func newParagraphReader(r io.Reader, fields ...string) *paragraphReader {
	return &paragraphReader{
		lines:  bufio.NewReaderSize(r, maxFieldBytes),
		fields: fields,
		values: make([][]byte, len(fields)),
	}
}

// next moves to the next paragraph and returns io.EOF after the last.
func (p *paragraphReader) next() error {
	for i := range p.values {
		p.values[i] = p.values[i][:0]
	}
	started, field := false, -1
	for {
		line, long, err := p.line()
		switch {
		case errors.Is(err, io.EOF) && started:
			return nil
		case err != nil:
			return err
		case len(line) == 0 && started:
			return nil
		case len(line) == 0 || line[0] == '#':
			continue
		}
		started = true
		value := line
		if line[0] != ' ' && line[0] != '\t' {
			name, rest, ok := bytes.Cut(line, []byte(":"))
			if !ok {
				return fmt.Errorf("a line without a field name: %.40q", line)
			}
			field, value = p.index(name), rest
		}
		if field < 0 {
			continue
		}
		if long || len(p.values[field])+len(value) > maxFieldBytes {
			return fmt.Errorf("field %s is longer than %d bytes", p.fields[field], maxFieldBytes)
		}
		if len(p.values[field]) > 0 {
			p.values[field] = append(p.values[field], '\n')
		}
		p.values[field] = append(p.values[field], bytes.TrimSpace(value)...)
	}
}

// value is the i-th of the fields asked for, empty when the paragraph has
// none. Lines of a folded field are joined by newlines. It is valid until the
// next call of next.
func (p *paragraphReader) value(i int) []byte { return p.values[i] }

// line returns the next line without trailing space, and whether its end was
// cut off because it is longer than maxFieldBytes.
func (p *paragraphReader) line() (line []byte, long bool, err error) {
	line, err = p.lines.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long = true
		line = bytes.Clone(line[:min(len(line), 256)])
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = p.lines.ReadSlice('\n')
		}
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil
	}
	return bytes.TrimRight(line, " \t\r\n"), long, err
}

func (p *paragraphReader) index(name []byte) int {
	for i, field := range p.fields {
		if len(field) == len(name) && bytes.EqualFold([]byte(field), name) {
			return i
		}
	}
	return -1
}
