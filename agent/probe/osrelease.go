package probe

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// osRelease is os-release(5): fields by name, quotes removed.
type osRelease map[string]string

// readOSRelease reads /etc/os-release, or /usr/lib/os-release when the first
// does not exist, and returns which of them it was.
func readOSRelease(files fs.FS) (osRelease, string, error) {
	var errs []error
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := files.Open(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer f.Close()
		fields, err := parseOSRelease(f)
		if err != nil {
			return nil, name, fmt.Errorf("%s: %w", name, err)
		}
		return fields, name, nil
	}
	return nil, "", errors.Join(errs...)
}

// parseOSRelease reads the shell-like assignments of os-release(5). Lines that
// are none are left out, as the format asks for; without an ID it is an error.
func parseOSRelease(r io.Reader) (osRelease, error) {
	fields := osRelease{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		fields[name] = unquote(value)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if fields["ID"] == "" {
		return nil, errors.New("no ID in it")
	}
	return fields, nil
}

// unquote removes the quotes and backslashes that os-release(5) allows.
func unquote(value string) string {
	if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
		if value[0] == '\'' {
			return value[1 : len(value)-1]
		}
		value = value[1 : len(value)-1]
	}
	var plain strings.Builder
	escaped := false
	for _, c := range value {
		if escaped = c == '\\' && !escaped; !escaped {
			plain.WriteRune(c)
		}
	}
	return plain.String()
}

// codenames are the releases whose repositories serve this system: its own
// and, for a derivative, the one it is built on.
func (o osRelease) codenames() []string {
	var names []string
	for _, field := range []string{"VERSION_CODENAME", "UBUNTU_CODENAME", "DEBIAN_CODENAME"} {
		if c := o[field]; c != "" {
			names = append(names, c)
		}
	}
	return names
}

// like says whether the system is, or is built on, one of the distributions.
func (o osRelease) like(ids ...string) bool {
	own := append(strings.Fields(o["ID_LIKE"]), o["ID"])
	return slices.ContainsFunc(ids, func(id string) bool { return slices.Contains(own, id) })
}
