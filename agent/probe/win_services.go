package probe

import "strings"

// serviceNamed says whether a service has one of the names, whatever their
// case; a name that ends in "*" is a prefix.
func serviceNamed(service string, names []string) bool {
	service = strings.ToLower(service)
	for _, name := range names {
		prefix, isPrefix := strings.CutSuffix(strings.ToLower(name), "*")
		if service == prefix || isPrefix && strings.HasPrefix(service, prefix) {
			return true
		}
	}
	return false
}

// serviceProgram takes the executable out of a service's ImagePath as Windows
// does when it starts it: what is in quotes, or the shortest beginning up to a
// space that is a file. Drivers are named from the root of the object
// namespace or from the Windows directory.
func serviceProgram(imagePath, windowsDir string, expand func(string) string, isFile func(string) bool) string {
	path := strings.TrimSpace(expand(imagePath))
	path = strings.TrimPrefix(path, `\??\`)
	lower := strings.ToLower(path)
	switch {
	case strings.HasPrefix(lower, `\systemroot\`):
		path = windowsDir + path[len(`\systemroot`):]
	case strings.HasPrefix(lower, `system32\`):
		path = windowsDir + `\` + path
	}
	if quoted, ok := strings.CutPrefix(path, `"`); ok {
		program, _, _ := strings.Cut(quoted, `"`)
		return program
	}
	for i, r := range path {
		if r != ' ' {
			continue
		}
		for _, program := range []string{path[:i], path[:i] + ".exe"} {
			if isFile(program) {
				return program
			}
		}
	}
	if isFile(path) {
		return path
	}
	// The file is gone: its name ends at the first ".exe".
	if i := strings.Index(strings.ToLower(path), ".exe"); i >= 0 {
		return path[:i+len(".exe")]
	}
	return path
}
