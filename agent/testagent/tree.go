package main

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed notebook.yaml
var notebook []byte

// book is notebook.yaml.
type book struct {
	Compliant change            `yaml:"compliant"`
	Changes   map[string]change `yaml:"changes"`
}

// change is a set of files to put in place. Names have no leading slash.
type change struct {
	Files  map[string]string      `yaml:"files"`
	LUKS2  map[string]luks2Volume `yaml:"luks2"`
	Links  map[string]string      `yaml:"links"`
	Remove []string               `yaml:"remove"`
	// Ages sets how long ago files were last written.
	Ages map[string]time.Duration `yaml:"ages"`
}

type luks2Volume struct {
	UUID   string `yaml:"uuid"`
	Cipher string `yaml:"cipher"`
}

func readBook() (book, error) {
	var b book
	dec := yaml.NewDecoder(bytes.NewReader(notebook))
	dec.KnownFields(true)
	if err := dec.Decode(&b); err != nil {
		return book{}, fmt.Errorf("notebook.yaml: %w", err)
	}
	return b, nil
}

// applyChange makes the named change to a tree; "compliant" makes the whole
// tree anew.
func applyChange(tree, name string, now time.Time) error {
	b, err := readBook()
	if err != nil {
		return err
	}
	c, ok := b.Changes[name]
	if name == "compliant" {
		c, ok = b.Compliant, true
	}
	if !ok {
		return fmt.Errorf("unknown change %q: compliant, %s", name, strings.Join(slices.Sorted(maps.Keys(b.Changes)), ", "))
	}
	w := writer{tree: tree, texts: maps.Clone(b.Compliant.Files), now: now}
	maps.Copy(w.texts, c.Files)
	return w.apply(c)
}

// writer puts files in place, each in one step: whoever reads the tree sees the
// old content or the new one.
type writer struct {
	tree  string
	texts map[string]string // for {{sum}}
	now   time.Time
}

func (w writer) apply(c change) error {
	var errs []error
	for name, v := range c.LUKS2 {
		header, err := v.header()
		errs = append(errs, err, w.put(name, header))
	}
	for name, target := range c.Links {
		errs = append(errs, w.link(name, target))
	}
	for name, text := range c.Files {
		content, err := w.fill(text)
		errs = append(errs, err, w.put(name, content))
	}
	for _, name := range c.Remove {
		if err := os.Remove(w.path(name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for name, age := range c.Ages {
		at := w.now.Add(-age)
		errs = append(errs, os.Chtimes(w.path(name), at, at))
	}
	return errors.Join(errs...)
}

func (w writer) path(name string) string { return filepath.Join(w.tree, filepath.FromSlash(name)) }

func (w writer) put(name string, content []byte) error {
	path := w.path(name)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + newSuffix
	if err := os.WriteFile(temp, content, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

// newSuffix ends the names of files that are not in place yet.
const newSuffix = ".new"

func (w writer) link(name, target string) error {
	path := w.path(name)
	if old, err := os.Readlink(path); err == nil && old == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, path)
}

// fill executes a text's template.
func (w writer) fill(text string) ([]byte, error) {
	at := func(sign time.Duration, layout string) func(string) (string, error) {
		return func(s string) (string, error) {
			d, err := time.ParseDuration(s)
			return w.now.Add(sign * d).UTC().Format(layout), err
		}
	}
	const aptTime = "Mon, 02 Jan 2006 15:04:05 UTC"
	t, err := template.New("").Funcs(template.FuncMap{
		"ago":   at(-1, aptTime),
		"ahead": at(1, aptTime),
		"since": at(-1, time.RFC3339),
		"sum": func(name string) (string, error) {
			other, ok := w.texts[name]
			if !ok {
				return "", fmt.Errorf("no file %s", name)
			}
			content, err := w.fill(other)
			return fmt.Sprintf("%x %d", sha256.Sum256(content), len(content)), err
		},
	}).Parse(text)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = t.Execute(&out, nil)
	return out.Bytes(), err
}

// header makes the primary header of a volume that nobody can open: it has no
// key (LUKS2 on-disk format 1.1.1, 2 and 3).
func (v luks2Volume) header() ([]byte, error) {
	area, err := json.Marshal(map[string]any{
		"keyslots": map[string]any{"0": map[string]any{
			"type": "luks2", "key_size": 64,
			"area": map[string]any{"type": "raw", "encryption": v.Cipher, "key_size": 64, "offset": "32768", "size": "258048"},
			"kdf":  map[string]any{"type": "argon2id", "time": 4, "memory": 1048576, "cpus": 4},
		}},
		"segments": map[string]any{"0": map[string]any{
			"type": "crypt", "encryption": v.Cipher, "offset": "16777216", "size": "dynamic", "sector_size": 512,
		}},
		"tokens": map[string]any{}, "digests": map[string]any{},
		"config": map[string]any{"json_size": "12288", "keyslots_size": "16744448"},
	})
	if err != nil {
		return nil, err
	}
	const size = 16 << 10
	h := make([]byte, size)
	copy(h, "LUKS\xba\xbe")
	binary.BigEndian.PutUint16(h[6:], 2)
	binary.BigEndian.PutUint64(h[8:], size)
	copy(h[72:], "sha256")
	copy(h[168:], v.UUID)
	copy(h[4096:], area)
	sum := sha256.Sum256(h)
	copy(h[448:], sum[:])
	return h, nil
}
