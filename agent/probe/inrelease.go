package probe

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// release is what a repository says of itself in its InRelease file
// (DebianRepository/Format). apt checked the signature when it fetched it.
type release struct {
	origin, label, suite, codename string
	// date is when the repository made it, zero when it does not say;
	// validUntil is zero when the repository sets no end.
	date, validUntil time.Time
	// packages holds size and hash of every uncompressed Packages index, by
	// its path with "/" as "_", as apt names the file: "main_binary-amd64_Packages".
	packages map[string]indexSum
}

// indexSum identifies the content of an index.
type indexSum struct {
	size   int64
	sha256 [sha256.Size]byte
}

// name is how updates from here are called in evidence: "Debian-Security",
// "Ubuntu:jammy-security".
func (r release) name() string {
	switch {
	case strings.HasPrefix(r.origin, "Ubuntu") && r.suite != "":
		return r.origin + ":" + r.suite
	case r.label != "":
		return r.label
	default:
		return r.origin
	}
}

// security says whether this repository brings security updates for one of the
// given codenames. Debian tells by label and codename: its suite is renamed
// from stable- to oldstable-security when the next release comes. Ubuntu and
// its extended maintenance tell by suite. A security repository for another
// release does not count: it fixes nothing that is installed here.
func (r release) security(codenames []string) bool {
	return slices.ContainsFunc(codenames, func(c string) bool {
		if strings.HasPrefix(r.origin, "Ubuntu") {
			return slices.Contains([]string{c + "-security", c + "-infra-security", c + "-apps-security"}, r.suite)
		}
		// Until buster the codename had no suffix: only the label told.
		return r.codename == c+"-security" || r.label == "Debian-Security" && r.codename == c
	})
}

// parseRelease reads an InRelease or a Release file. One with a date that is
// not UTC is an error: its age could not be judged.
func parseRelease(r io.Reader) (release, error) {
	rel := release{packages: map[string]indexSum{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), maxFieldBytes)
	list := ""
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "-----BEGIN PGP SIGNATURE-----":
			return rel, nil
		case strings.HasPrefix(line, "-") || line == "":
			continue
		case line[0] == ' ':
			if list == "SHA256" {
				if err := rel.addIndex(line); err != nil {
					return rel, err
				}
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return rel, fmt.Errorf("a line without a field name: %.40q", line)
		}
		list = name
		if err := rel.set(name, strings.TrimSpace(value)); err != nil {
			return rel, err
		}
	}
	return rel, lines.Err()
}

func (r *release) set(name, value string) (err error) {
	switch name {
	case "Origin":
		r.origin = value
	case "Label":
		r.label = value
	case "Suite":
		r.suite = value
	case "Codename":
		r.codename = value
	case "Date":
		r.date, err = parseReleaseTime(value)
	case "Valid-Until":
		r.validUntil, err = parseReleaseTime(value)
	}
	return err
}

// parseReleaseTime reads "Fri, 20 Nov 2026 00:12:41 UTC". Other time zones
// than UTC are not allowed there, and Go would take an unknown one for UTC.
func parseReleaseTime(s string) (time.Time, error) {
	zoned, ok := strings.CutSuffix(s, " UTC")
	for _, zone := range []string{" GMT", " Z", " +0000"} {
		if !ok {
			zoned, ok = strings.CutSuffix(s, zone)
		}
	}
	t, err := time.Parse("Mon, _2 Jan 2006 15:04:05", zoned)
	if !ok || err != nil {
		return time.Time{}, fmt.Errorf("date %.40q is not of the form \"Fri, 20 Nov 2026 00:12:41 UTC\"", s)
	}
	return t, nil
}

// addIndex reads " <sha256> <size> main/binary-amd64/Packages".
func (r *release) addIndex(line string) error {
	if !strings.HasSuffix(line, "/Packages") {
		return nil
	}
	words := strings.Fields(line)
	if len(words) != 3 {
		return fmt.Errorf("index line %.80q", line)
	}
	size, err := strconv.ParseInt(words[1], 10, 64)
	if err != nil || size < 0 {
		return fmt.Errorf("index size %.40q", words[1])
	}
	sum, err := hex.DecodeString(words[0])
	if err != nil || len(sum) != sha256.Size {
		return fmt.Errorf("index hash %.80q", words[0])
	}
	r.packages[strings.ReplaceAll(words[2], "/", "_")] = indexSum{size, [sha256.Size]byte(sum)}
	return nil
}
