package probe

import (
	"errors"
	"fmt"
	"strings"
)

// cryptEntry is one line of /etc/crypttab (crypttab(5), of systemd and of
// Debian's cryptsetup): how a mapping is opened at boot.
type cryptEntry struct {
	name    string // of the mapping; stays on the notebook
	key     string // "" when a person is asked
	options []string
}

// option returns the value of an option "name" or "name=value".
func (e cryptEntry) option(name string) (string, bool) {
	for _, o := range e.options {
		if key, value, _ := strings.Cut(o, "="); key == name {
			return value, true
		}
	}
	return "", false
}

// parseCrypttab reads /etc/crypttab. A line that makes no sense is an error:
// it might name a key file.
func parseCrypttab(text string) ([]cryptEntry, error) {
	var entries []cryptEntry
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		e, err := parseCryptEntry(strings.Fields(line))
		if err != nil {
			return nil, fmt.Errorf("crypttab line %d: %w", number, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func parseCryptEntry(fields []string) (cryptEntry, error) {
	if len(fields) < 2 || len(fields) > 4 {
		return cryptEntry{}, errors.New("not two to four fields")
	}
	e := cryptEntry{name: unescape(fields[0])}
	if len(fields) > 2 && fields[2] != "none" && fields[2] != "-" {
		e.key = unescape(fields[2])
	}
	if len(fields) > 3 && fields[3] != "none" && fields[3] != "-" {
		e.options = strings.Split(unescape(fields[3]), ",")
	}
	return e, nil
}
