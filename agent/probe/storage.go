package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

const (
	maxDepth = 16  // layers of one path
	maxPaths = 256 // of one volume
)

// storage walks from a filesystem down to the disks it lies on, by what sysfs
// says of each block device.
type storage struct {
	files  fs.FS
	mounts mountTable
	// headers remembers what was found on a device: many volumes share one
	// crypt layer, and each reading wakes the disk.
	headers map[string]headerReading
}

func newStorage(files fs.FS, mounts mountTable) *storage {
	return &storage{files: files, mounts: mounts, headers: map[string]headerReading{}}
}

// diskPath is one path from a volume to a leaf, outermost layer first.
type diskPath []layer

// behindFile returns the layers on which a file or device node lies: those of
// the filesystem that holds it.
func (s *storage) behindFile(name string) ([]layer, error) {
	if strings.HasPrefix(name, "/dev/") {
		l, err := s.node(name)
		return []layer{l}, err
	}
	m, ok := s.mounts.containing(name)
	if !ok {
		return nil, errors.New("a file lies on no known mount")
	}
	return s.tops(m)
}

// tops returns the devices directly under a filesystem.
func (s *storage) tops(m mount) ([]layer, error) {
	switch m.fstype {
	case "btrfs":
		return s.btrfsMembers(m)
	case "overlay":
		return s.overlayParts(m)
	}
	if m.anonymous() {
		return nil, fmt.Errorf("a filesystem of type %s lies on no block device", word(m.fstype))
	}
	first, err := s.device(m.device)
	if err != nil {
		return nil, err
	}
	devices := []layer{first}
	for _, extra := range []string{m.option("logdev"), m.option("rtdev")} { // xfs
		if extra == "" {
			continue
		}
		l, err := s.node(extra)
		if err != nil {
			return nil, err
		}
		devices = append(devices, l)
	}
	return devices, nil
}

// btrfsMembers returns all members of a btrfs: mountinfo names only one.
func (s *storage) btrfsMembers(m mount) ([]layer, error) {
	named, err := s.node(m.source)
	if err != nil {
		return nil, err
	}
	filesystems, err := fs.ReadDir(s.files, "sys/fs/btrfs")
	if err != nil {
		return nil, fmt.Errorf("listing btrfs filesystems: %w", cause(err))
	}
	for _, f := range filesystems {
		dir := "sys/fs/btrfs/" + f.Name() + "/devices"
		entries, err := fs.ReadDir(s.files, dir)
		if errors.Is(err, fs.ErrNotExist) { // "features" is listed beside the filesystems
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing the members of a btrfs: %w", cause(err))
		}
		members, err := s.members(dir, entries)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(members, func(l layer) bool { return l.dir == named.dir }) {
			return members, nil
		}
	}
	return nil, errors.New("the members of a btrfs are not listed in sysfs")
}

// overlayParts returns the devices under every layer of an overlay: what was
// written and what shows through.
func (s *storage) overlayParts(m mount) ([]layer, error) {
	dirs := strings.Split(m.option("lowerdir"), ":")
	if upper := m.option("upperdir"); upper != "" {
		dirs = append(dirs, upper)
	}
	var parts []layer
	for _, dir := range dirs {
		under, ok := s.mounts.containing(dir)
		if !ok || under.fstype == "overlay" {
			return nil, errors.New("the layers of an overlay lie on no known mount")
		}
		if inMemory(under.fstype) {
			continue
		}
		tops, err := s.tops(under)
		if err != nil {
			return nil, err
		}
		for _, l := range tops {
			if !slices.ContainsFunc(parts, func(p layer) bool { return p.dir == l.dir }) {
				parts = append(parts, l)
			}
		}
	}
	return parts, nil
}

func inMemory(fstype string) bool {
	return fstype == "tmpfs" || fstype == "ramfs" || fstype == "rootfs"
}

// ways follows every path from the given layers to the leaves.
func (s *storage) ways(tops []layer) ([]diskPath, error) {
	var all []diskPath
	var descend func(above diskPath, l layer) error
	descend = func(above diskPath, l layer) error {
		if len(above) == maxDepth {
			return fmt.Errorf("devices are stacked deeper than %d", maxDepth)
		}
		here := append(slices.Clip(above), l)
		lower, err := s.below(l)
		if err != nil {
			return err
		}
		if len(lower) == 0 {
			if len(all) == maxPaths {
				return fmt.Errorf("more than %d paths to a disk", maxPaths)
			}
			all = append(all, here)
		}
		for _, next := range lower {
			if err := descend(here, next); err != nil {
				return err
			}
		}
		return nil
	}
	for _, l := range tops {
		if err := descend(nil, l); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// inMemory is true for a way that ends in compressed memory.
func (w diskPath) inMemory() bool {
	return strings.HasPrefix(path.Base(w[len(w)-1].dir), "zram")
}
