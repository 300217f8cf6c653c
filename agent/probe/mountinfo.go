package probe

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// mount is one line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	device  string // "254:1"; major 0 for filesystems without a block device
	point   string
	fstype  string
	source  string
	options []string // of the filesystem, not of this mount
}

// anonymous is true when the kernel made the device number up.
func (m mount) anonymous() bool { return strings.HasPrefix(m.device, "0:") }

// option returns the value of a filesystem option "name=value", "" when it is
// not set.
func (m mount) option(name string) string {
	for _, o := range m.options {
		if value, ok := strings.CutPrefix(o, name+"="); ok {
			return value
		}
	}
	return ""
}

// mountTable is a mountinfo file in its order: of two mounts on one point the
// later one is seen.
type mountTable []mount

// parseMountinfo reads a whole mountinfo file. A line that makes no sense is
// an error: a mount that is left out would never be judged.
func parseMountinfo(text string) (mountTable, error) {
	var table mountTable
	number := 0
	for line := range strings.Lines(text) {
		number++
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %d: %w", number, err)
		}
		table = append(table, m)
	}
	return table, nil
}

func parseMount(line string) (mount, error) {
	// Split, not Fields: an empty source leaves two spaces in a row.
	fields := strings.Split(line, " ")
	if len(fields) < 10 {
		return mount{}, errors.New("too few fields")
	}
	end := slices.Index(fields[6:], "-") // the optional fields end here
	if end < 0 || len(fields) < 6+end+4 {
		return mount{}, errors.New("no separator, or too little after it")
	}
	major, minor, ok := strings.Cut(fields[2], ":")
	if !ok || !digits(major) || !digits(minor) {
		return mount{}, errors.New("no device number")
	}
	after := fields[6+end+1:]
	return mount{
		device:  fields[2],
		point:   unescape(fields[4]),
		fstype:  after[0],
		source:  unescape(after[1]),
		options: splitOptions(after[2]),
	}, nil
}

// at returns the mount that is seen at point.
func (t mountTable) at(point string) (mount, bool) {
	for _, m := range slices.Backward(t) {
		if m.point == point {
			return m, true
		}
	}
	return mount{}, false
}

// containing returns the mount on which the absolute path lies.
func (t mountTable) containing(name string) (mount, bool) {
	for point := path.Clean(name); ; point = path.Dir(point) {
		if m, ok := t.at(point); ok {
			return m, true
		}
		if point == "/" || point == "." {
			return mount{}, false
		}
	}
}

// swapSpace is one line of /proc/swaps (proc_swaps(5)).
type swapSpace struct {
	path string
	file bool // a file on some filesystem, not a block device
}

// parseSwaps reads /proc/swaps.
func parseSwaps(text string) ([]swapSpace, error) {
	var spaces []swapSpace
	number := 0
	for line := range strings.Lines(text) {
		number++
		if number == 1 { // the table's heading
			continue
		}
		fields := strings.Fields(line)
		if len(fields) != 5 {
			return nil, fmt.Errorf("swaps line %d: %d fields instead of 5", number, len(fields))
		}
		s := swapSpace{path: unescape(fields[0])}
		switch fields[1] {
		case "partition":
		case "file":
			s.file = true
		default:
			return nil, fmt.Errorf("swaps line %d: unknown type", number)
		}
		if !path.IsAbs(s.path) {
			return nil, fmt.Errorf("swaps line %d: no absolute path", number)
		}
		spaces = append(spaces, s)
	}
	return spaces, nil
}

// unescape decodes the kernel's \ooo for space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && len(s)-i >= 4 && s[i+1] <= '3' && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// splitOptions splits at commas; a comma inside a value is escaped as \, by
// overlayfs.
func splitOptions(s string) []string {
	var options []string
	begin := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ',':
			options = append(options, unescape(s[begin:i]))
			begin = i + 1
		}
	}
	return append(options, unescape(s[begin:]))
}

func octal(c byte) bool { return '0' <= c && c <= '7' }

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}
