package openvpn

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxInclude is how deep `config` files may name one another, as in OpenVPN.
const maxInclude = 10

// directive is one line of a server's configuration.
type directive struct {
	name string
	args []string
	file string
	line int
}

func (d directive) where() string { return fmt.Sprintf("%s:%d", d.file, d.line) }

// arg is the i-th argument, empty when there is none.
func (d directive) arg(i int) string {
	if i >= len(d.args) {
		return ""
	}
	return d.args[i]
}

// readConfig reads a configuration and the files that it includes, in order.
func readConfig(path string) ([]directive, error) {
	return include(path, 0)
}

func include(path string, depth int) ([]directive, error) {
	if depth > maxInclude {
		return nil, fmt.Errorf("%s: configuration files include one another more than %d deep", path, maxInclude)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	own, err := parseConfig(path, string(text))
	if err != nil {
		return nil, err
	}
	var all []directive
	for _, d := range own {
		if d.name != "config" {
			all = append(all, d)
			continue
		}
		// A relative name is relative to the server's working directory, which
		// the packages set to the directory of the configuration.
		other := d.arg(0)
		if !filepath.IsAbs(other) {
			other = filepath.Join(filepath.Dir(path), other)
		}
		included, err := include(other, depth+1)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.where(), err)
		}
		all = append(all, included...)
	}
	return all, nil
}

// parseConfig reads one file as OpenVPN does (options_util.c, options_parse.c):
// words with quotes and backslashes, comments, inline files between <name> and
// </name>. `setenv opt NAME …` is the directive NAME.
func parseConfig(file, text string) ([]directive, error) {
	var out []directive
	inline := "" // name of the inline file that is open
	opened := 0
	text = strings.TrimPrefix(text, "\ufeff")
	for i, raw := range strings.Split(text, "\n") {
		line := i + 1
		trimmed := strings.TrimSpace(raw)
		if inline != "" {
			if trimmed == "</"+inline+">" {
				inline = ""
			}
			continue
		}
		if name, ok := inlineStart(trimmed); ok {
			inline, opened = name, line
			out = append(out, directive{name: name, args: []string{"[inline]"}, file: file, line: line})
			continue
		}
		words, err := splitWords(raw)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, line, err)
		}
		if len(words) == 0 {
			continue
		}
		words[0] = strings.TrimPrefix(words[0], "--")
		if len(words) > 2 && words[0] == "setenv" && words[1] == "opt" {
			words = words[2:]
			words[0] = strings.TrimPrefix(words[0], "--")
		}
		out = append(out, directive{name: words[0], args: words[1:], file: file, line: line})
	}
	if inline != "" {
		return nil, fmt.Errorf("%s:%d: <%s> is not closed", file, opened, inline)
	}
	return out, nil
}

func inlineStart(line string) (string, bool) {
	if len(line) < 3 || line[0] != '<' || line[len(line)-1] != '>' || line[1] == '/' {
		return "", false
	}
	return line[1 : len(line)-1], true
}

// splitWords splits a line into words: double quotes and bare words take
// backslash escapes, single quotes take nothing, # and ; at the beginning of a
// word begin a comment.
func splitWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	const (
		between = iota
		bare
		double
		single
	)
	state, escaped := between, false
	end := func() {
		words = append(words, word.String())
		word.Reset()
		state = between
	}
	for _, r := range line {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
			if state == between {
				state = bare
			}
		case r == '\\' && state != single:
			escaped = true
		case state == between && (r == '#' || r == ';'):
			return words, nil
		case state == between && r == '"':
			state = double
		case state == between && r == '\'':
			state = single
		case state == between && isSpace(r):
		case state == between:
			state = bare
			word.WriteRune(r)
		case state == bare && isSpace(r), state == double && r == '"', state == single && r == '\'':
			end()
		default:
			word.WriteRune(r)
		}
	}
	switch {
	case escaped:
		return nil, errors.New("backslash at the end of the line")
	case state == double || state == single:
		return nil, errors.New("quote is not closed")
	case state == bare:
		end()
	}
	return words, nil
}

func isSpace(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\v' || r == '\f' }
