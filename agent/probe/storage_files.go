package probe

import (
	"errors"
	"io/fs"
	"path"
	"strings"
)

func (s *storage) exists(name string) bool {
	_, err := fs.Stat(s.files, name)
	return err == nil
}

// attribute reads one value of sysfs.
func (s *storage) attribute(name string) (string, error) {
	b, err := fs.ReadFile(s.files, name)
	if err != nil {
		return "", cause(err)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}

// resolve follows the symbolic links of an absolute path as far as it exists.
func (s *storage) resolve(name string) (string, error) {
	const maxLinks = 40 // as in the kernel, path_resolution(7)
	resolved, rest := "/", strings.TrimPrefix(path.Clean(name), "/")
	for links := 0; rest != ""; {
		first, after, _ := strings.Cut(rest, "/")
		rest = after
		if first == ".." {
			resolved = path.Dir(resolved)
			continue
		}
		next := path.Join(resolved, first)
		target, err := fs.ReadLink(s.files, next[1:])
		if err != nil { // no link, or nothing to follow
			resolved = next
			continue
		}
		if links++; links > maxLinks {
			return "", errors.New("too many symbolic links")
		}
		if path.IsAbs(target) {
			resolved = "/"
		}
		rest = strings.Trim(path.Clean(target)+"/"+rest, "/")
	}
	return resolved, nil
}

// cause leaves out the path of a file error: it may name a person.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}
