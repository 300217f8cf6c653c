// Package capture turns what a Windows machine answers into a file and back.
//
// Purpose. A capture is every answer that the probes got on one machine. The
// probes give the same evidence over it on any machine, so that a state that
// was once seen becomes a test, and a fault of a notebook can be looked into
// elsewhere.
//
// Rules. A capture holds nothing that docs/collection.md does not name: what
// is not known to be harmless is left out or replaced when the file is
// written, by rules that say what may stay, never by rules that say what must
// go. Replaying never guesses: a question that was not recorded has no answer,
// and its reading is FAILED. Files are strict: an unknown key, an answer to a
// question that nobody asks or a value of the wrong shape is an error.
//
// A file may name another as its base, lie over its answers and so say only
// what is different.
package capture

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
)

// formatVersion is the version of the format that this package writes and
// reads.
const formatVersion = 1

const (
	maxBytes   = 4 << 20
	maxAnswers = 4096
	maxBases   = 4
	maxBefore  = 12
)

// document is the file.
type document struct {
	Version int `json:"version"`
	// About says what the capture shows, for people.
	About string `json:"about,omitempty"`
	// Base is the file beside this one that this one lies over.
	Base string `json:"base,omitempty"`
	// Before is the file beside this one that shows the same machine earlier.
	// What the probes remember of it, they know here. Only files made by hand
	// have it; that of a base does not count.
	Before string `json:"before,omitempty"`
	// CapturedAt is the clock of the probes when it is replayed.
	CapturedAt time.Time `json:"captured_at,omitzero"`
	// Absent names kinds of questions, such as "registry.value": those that
	// have no answer here are answered with "not there". Only files made by
	// hand have it.
	Absent []string `json:"absent,omitempty"`
	// Answers by question: "registry.value SOFTWARE\…". In a file with a base
	// null takes the base's answer away.
	Answers map[string]*answer `json:"answers"`
}

// answer is what one question was answered with: a value, an error, or, rarely,
// both.
type answer struct {
	Value json.RawMessage `json:"value,omitempty"`
	Error string          `json:"error,omitempty"`
	// Is is what the probes know of the error: "not_found", "not_applicable",
	// "no_route" or "timeout"; empty for any other.
	Is string `json:"is,omitempty"`
}

// Capture is a recorded machine.
type Capture struct {
	// About says what it shows.
	About string
	// At is when it was made.
	At time.Time
	// Before is the machine earlier; nil when nothing is known of that.
	Before  *Capture
	absent  map[string]bool
	replies map[string]reply
}

// reply is an answer as a probe gets it.
type reply struct {
	value any
	err   error
}

// Read reads the capture with this name in dir, the bases it names and those
// before it, which lie in dir too.
func Read(dir fs.FS, name string) (*Capture, error) {
	return read(dir, name, 0)
}

// read reads a capture that is before so many others.
func read(dir fs.FS, name string, others int) (*Capture, error) {
	c := &Capture{absent: map[string]bool{}, replies: map[string]reply{}}
	before, err := c.read(dir, name, 0)
	if err != nil {
		return nil, err
	}
	if before != "" {
		if others == maxBefore {
			return nil, fmt.Errorf("capture %s: more than %d are before one another", name, maxBefore)
		}
		if c.Before, err = read(dir, before, others+1); err != nil {
			return nil, err
		}
	}
	switch {
	case c.Before != nil && !c.Before.At.Before(c.At):
		return nil, fmt.Errorf("capture %s: %s is not before it", name, before)
	case c.At.IsZero():
		return nil, fmt.Errorf("capture %s: captured_at is missing", name)
	case len(c.replies) == 0:
		return nil, fmt.Errorf("capture %s: holds no answers", name)
	}
	return c, nil
}

// read lays the named file over what its base says, and tells what it says is
// before it.
func (c *Capture) read(dir fs.FS, name string, depth int) (before string, err error) {
	content, err := readLimited(dir, name)
	if err != nil {
		return "", fmt.Errorf("capture %s: %w", name, err)
	}
	d, err := parse(content)
	if err != nil {
		return "", fmt.Errorf("capture %s: %w", name, err)
	}
	for _, other := range []string{d.Base, d.Before} {
		if other != "" && (!fs.ValidPath(other) || other == "." || strings.ContainsAny(other, `/\`)) {
			return "", fmt.Errorf("capture %s: %q is not the name of a file beside it", name, other)
		}
	}
	if d.Base != "" {
		if depth == maxBases {
			return "", fmt.Errorf("capture %s: more than %d bases lie below one another", name, maxBases)
		}
		if _, err := c.read(dir, d.Base, depth+1); err != nil {
			return "", err
		}
	}
	if err := c.lay(d); err != nil {
		return "", fmt.Errorf("capture %s: %w", name, err)
	}
	return d.Before, nil
}

func readLimited(dir fs.FS, name string) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(content) > maxBytes {
		return nil, fmt.Errorf("larger than %d bytes", maxBytes)
	}
	return content, nil
}

// parse reads the file's own format; values stay raw.
func parse(content []byte) (document, error) {
	var d document
	if err := uniqueKeys(content); err != nil {
		return d, err
	}
	if err := strict(content, &d); err != nil {
		return d, err
	}
	switch {
	case d.Version != formatVersion:
		return d, fmt.Errorf("format version %d, this program reads %d", d.Version, formatVersion)
	case len(d.Answers) > maxAnswers:
		return d, fmt.Errorf("more than %d answers", maxAnswers)
	}
	return d, nil
}

// lay puts the answers of d over those that are there.
func (c *Capture) lay(d document) error {
	if d.About != "" {
		c.About = d.About
	}
	if !d.CapturedAt.IsZero() {
		c.At = d.CapturedAt
	}
	for _, method := range d.Absent {
		if !mayBeAbsent(method) {
			return fmt.Errorf("absent: there is no question %q that can be answered so", method)
		}
		c.absent[method] = true
	}
	for _, q := range slices.Sorted(maps.Keys(d.Answers)) {
		a := d.Answers[q]
		if a == nil {
			if _, ok := c.replies[q]; !ok {
				return fmt.Errorf("%s: null, and the base has no such answer", q)
			}
			delete(c.replies, q)
			continue
		}
		r, err := a.reply(question(q))
		if err != nil {
			return fmt.Errorf("%s: %w", q, err)
		}
		c.replies[q] = r
	}
	return nil
}

// reply decodes an answer by the question's kind.
func (a *answer) reply(q question) (reply, error) {
	k, ok := kindOf(q.method())
	if !ok {
		return reply{}, errors.New("no such question")
	}
	if k.arguments != (q.argument() != "") {
		return reply{}, errors.New("an argument is missing, or is one too many")
	}
	r := reply{}
	if len(a.Value) == 0 && a.Error == "" && a.Is == "" {
		return r, errors.New("neither value nor error")
	}
	var err error
	if r.value, err = k.decode(a.Value); err != nil {
		return r, err
	}
	r.err, err = recalled(a.Error, a.Is)
	return r, err
}

// strict decodes exactly one JSON value without unknown keys.
func strict(content []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(content))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// uniqueKeys refuses an object with the same key twice, of which encoding/json
// silently takes the last: whoever edits a capture would look at the other.
func uniqueKeys(content []byte) error {
	d := json.NewDecoder(bytes.NewReader(content))
	type level struct {
		object, value bool // value: the next token of an object is a value
		keys          map[string]bool
	}
	var open []*level
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var in *level
		if len(open) > 0 {
			in = open[len(open)-1]
		}
		if key, ok := token.(string); ok && in != nil && in.object && !in.value {
			if in.keys[key] {
				return fmt.Errorf("%q is there twice", key)
			}
			in.keys[key], in.value = true, true
			continue
		}
		switch token {
		case json.Delim('{'), json.Delim('['):
			open = append(open, &level{object: token == json.Delim('{'), keys: map[string]bool{}})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
			if len(open) == 0 {
				continue
			}
			in = open[len(open)-1]
		}
		if in != nil {
			in.value = false
		}
	}
}
