package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
)

// aptSuites returns the suites that sources.list(5) enables for binary
// packages, such as "bookworm-security", from both formats and all files.
func aptSuites(files fs.FS) ([]string, error) {
	const dir = "etc/apt/sources.list.d"
	names := []string{"etc/apt/sources.list"}
	entries, err := fs.ReadDir(files, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		names = append(names, dir+"/"+entry.Name())
	}
	var suites []string
	for _, name := range names {
		parse := parseSourcesList
		switch {
		case strings.HasSuffix(name, ".sources"):
			parse = parseDeb822Sources
		case !strings.HasSuffix(name, ".list"):
			continue // apt leaves out other endings too
		}
		content, err := fs.ReadFile(files, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, err := parse(bytes.NewReader(content))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		suites = append(suites, more...)
	}
	slices.Sort(suites)
	return slices.Compact(suites), nil
}

// parseSourcesList reads the one-line format: "deb [options] uri suite
// components…".
func parseSourcesList(r io.Reader) ([]string, error) {
	var suites []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb")
		if !ok || rest == "" || !strings.ContainsAny(rest[:1], " \t[") {
			continue // deb-src, or nothing
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, after, closed := strings.Cut(rest, "]")
			if !closed {
				return nil, fmt.Errorf("options without an end: %.80q", line)
			}
			rest = after
		}
		words := strings.Fields(rest)
		if len(words) < 2 {
			return nil, fmt.Errorf("a source without a suite: %.80q", line)
		}
		suites = append(suites, words[1])
	}
	return suites, lines.Err()
}

// parseDeb822Sources reads the format of .sources files.
func parseDeb822Sources(r io.Reader) ([]string, error) {
	var suites []string
	paragraphs := newParagraphReader(r, "Types", "Suites", "Enabled")
	for {
		err := paragraphs.next()
		if errors.Is(err, io.EOF) {
			return suites, nil
		}
		if err != nil {
			return nil, err
		}
		enabled := strings.ToLower(string(paragraphs.value(2)))
		if slices.Contains([]string{"no", "false", "without", "off", "disable"}, enabled) ||
			!slices.Contains(strings.Fields(string(paragraphs.value(0))), "deb") {
			continue
		}
		suites = append(suites, strings.Fields(string(paragraphs.value(1)))...)
	}
}

// securitySuite says whether a suite is named like one of security updates for
// one of the codenames. It is used only where the repository's own word, its
// InRelease, was never fetched.
func securitySuite(suite string, codenames []string) bool {
	return slices.ContainsFunc(codenames, func(c string) bool {
		return slices.Contains([]string{c + "-security", c + "/updates", c + "-infra-security", c + "-apps-security"}, suite)
	})
}
