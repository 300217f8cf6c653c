package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
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

type headerReading struct {
	header *luksHeader
	err    error
}

func newStorage(files fs.FS, mounts mountTable) *storage {
	return &storage{files: files, mounts: mounts, headers: map[string]headerReading{}}
}

// layer is one block device on the way down. Everything but kind stays on the
// notebook.
type layer struct {
	kind posturev1.LayerType
	dir  string // its directory in sysfs, symbolic links resolved
	// mapping and uuid are device-mapper's; empty for other devices.
	mapping string
	uuid    string
	// image is the file behind a loop device.
	image string
}

// diskPath is one path from a volume to a leaf, outermost layer first.
type diskPath []layer

// device returns the layer of a device number "254:1".
func (s *storage) device(number string) (layer, error) {
	link := "sys/dev/block/" + number
	target, err := fs.ReadLink(s.files, link)
	if err != nil {
		return layer{}, fmt.Errorf("looking up a block device: %w", cause(err))
	}
	return s.describe(path.Join(path.Dir(link), target))
}

// describe reads what kind of device a sysfs directory is.
func (s *storage) describe(dir string) (layer, error) {
	l := layer{dir: dir, kind: posturev1.LayerType_LAYER_TYPE_DISK}
	switch name := path.Base(dir); {
	case s.exists(dir + "/partition"):
		l.kind = posturev1.LayerType_LAYER_TYPE_PARTITION
	case s.exists(dir + "/dm"):
		var err error
		if l.uuid, err = s.attribute(dir + "/dm/uuid"); err != nil {
			return layer{}, fmt.Errorf("reading what a mapping is: %w", err)
		}
		if l.mapping, err = s.attribute(dir + "/dm/name"); err != nil {
			return layer{}, fmt.Errorf("reading a mapping's name: %w", err)
		}
		l.kind = mappingKind(l.uuid)
	case s.exists(dir + "/md"):
		l.kind = posturev1.LayerType_LAYER_TYPE_RAID
	case s.exists(dir + "/loop"):
		l.kind = posturev1.LayerType_LAYER_TYPE_LOOP
		var err error
		if l.image, err = s.attribute(dir + "/loop/backing_file"); err != nil {
			return layer{}, fmt.Errorf("reading which file is behind a loop device: %w", err)
		}
	case strings.HasPrefix(name, "zram"), strings.HasPrefix(name, "bcache"):
		l.kind = posturev1.LayerType_LAYER_TYPE_OTHER
	case strings.HasPrefix(name, "zd") && digits(name[2:]):
		l.kind = posturev1.LayerType_LAYER_TYPE_ZFS
	}
	return l, nil
}

// mappingKinds maps the beginning of a device-mapper UUID to what it tells. A
// longer prefix comes before a shorter one. CRYPT-SUBDEV is the dm-integrity
// device under an authenticated LUKS2 volume.
var mappingKinds = []struct {
	prefix string
	kind   posturev1.LayerType
}{
	{"CRYPT-VERITY-", posturev1.LayerType_LAYER_TYPE_INTEGRITY},
	{"CRYPT-INTEGRITY-", posturev1.LayerType_LAYER_TYPE_INTEGRITY},
	{"CRYPT-SUBDEV-", posturev1.LayerType_LAYER_TYPE_INTEGRITY},
	{"CRYPT-LUKS1-", posturev1.LayerType_LAYER_TYPE_LUKS1},
	{"CRYPT-LUKS2-OPAL-", posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL},
	{"CRYPT-LUKS2_OPAL-", posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL},
	{"CRYPT-LUKS2-", posturev1.LayerType_LAYER_TYPE_LUKS2},
	{"CRYPT-BITLK-", posturev1.LayerType_LAYER_TYPE_BITLOCKER},
	// PLAIN, and dm-crypt without a LUKS header under other names: TCRYPT,
	// LOOPAES, FVAULT2.
	{"CRYPT-", posturev1.LayerType_LAYER_TYPE_PLAIN_CRYPT},
	{"LVM-", posturev1.LayerType_LAYER_TYPE_LINEAR},
	{"DMRAID-", posturev1.LayerType_LAYER_TYPE_RAID},
	{"part", posturev1.LayerType_LAYER_TYPE_PARTITION},
}

func mappingKind(uuid string) posturev1.LayerType {
	for _, k := range mappingKinds {
		if strings.HasPrefix(uuid, k.prefix) {
			return k.kind
		}
	}
	return posturev1.LayerType_LAYER_TYPE_OTHER
}

// encrypts is true for layers that exist to encrypt; whether they do is in
// their header.
func encrypts(kind posturev1.LayerType) bool {
	switch kind {
	case posturev1.LayerType_LAYER_TYPE_LUKS1,
		posturev1.LayerType_LAYER_TYPE_LUKS2,
		posturev1.LayerType_LAYER_TYPE_LUKS2_OPAL,
		posturev1.LayerType_LAYER_TYPE_PLAIN_CRYPT,
		posturev1.LayerType_LAYER_TYPE_BITLOCKER:
		return true
	}
	return false
}

// below returns the layers directly below one, none for a leaf.
func (s *storage) below(l layer) ([]layer, error) {
	switch {
	case l.kind == posturev1.LayerType_LAYER_TYPE_PARTITION && l.uuid == "":
		disk, err := s.describe(path.Dir(l.dir))
		return []layer{disk}, err
	case l.kind == posturev1.LayerType_LAYER_TYPE_LOOP:
		return s.behindFile(l.image)
	case l.kind == posturev1.LayerType_LAYER_TYPE_ZFS:
		return nil, errors.New("a ZFS volume does not tell its dataset")
	case strings.HasPrefix(path.Base(l.dir), "zram"):
		backing, err := s.zramBacking(l.dir)
		if err != nil || backing == "" {
			return nil, err
		}
		return s.behindFile(backing)
	}
	entries, err := fs.ReadDir(s.files, l.dir+"/slaves")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the devices below one: %w", cause(err))
	}
	return s.members(l.dir+"/slaves", entries)
}

// members describes the block devices that a sysfs directory links to.
func (s *storage) members(dir string, entries []fs.DirEntry) ([]layer, error) {
	var found []layer
	for _, e := range entries {
		number, err := s.attribute(dir + "/" + e.Name() + "/dev")
		if err != nil {
			return nil, fmt.Errorf("reading a member's device number: %w", err)
		}
		l, err := s.device(number)
		if err != nil {
			return nil, err
		}
		found = append(found, l)
	}
	return found, nil
}

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

// node returns the layer of a device node "/dev/mapper/x": by the kernel's
// name after links are followed, else by the mapping's name (without udev the
// nodes under /dev/mapper are no links).
func (s *storage) node(name string) (layer, error) {
	name, err := s.resolve(name)
	if err != nil {
		return layer{}, err
	}
	base := path.Base(name)
	number, err := s.attribute("sys/class/block/" + base + "/dev")
	if err == nil {
		return s.device(number)
	}
	entries, err := fs.ReadDir(s.files, "sys/class/block")
	if err != nil {
		return layer{}, fmt.Errorf("listing block devices: %w", cause(err))
	}
	for _, e := range entries {
		dir := "sys/class/block/" + e.Name()
		if mapping, err := s.attribute(dir + "/dm/name"); err != nil || mapping != base {
			continue
		}
		if number, err = s.attribute(dir + "/dev"); err != nil {
			return layer{}, err
		}
		return s.device(number)
	}
	return layer{}, errors.New("a device node belongs to no block device")
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

// removable is true when the leaf can be pulled out: a removable medium, or
// anything on USB.
func (s *storage) removable(w diskPath) bool {
	leaf := w[len(w)-1].dir
	if flag, err := s.attribute(leaf + "/removable"); err == nil && flag == "1" {
		return true
	}
	if kind, err := s.attribute(leaf + "/device/type"); err == nil && kind == "SD" {
		return true
	}
	return strings.Contains(leaf, "/usb")
}

// inMemory is true for a way that ends in compressed memory.
func (w diskPath) inMemory() bool {
	return strings.HasPrefix(path.Base(w[len(w)-1].dir), "zram")
}

// zramBacking returns the device node to which zram writes what does not fit,
// "" when there is none.
func (s *storage) zramBacking(dir string) (string, error) {
	backing, err := s.attribute(dir + "/backing_dev")
	if errors.Is(err, fs.ErrNotExist) || backing == "none" { // not built into this kernel, or not used
		return "", nil
	}
	return backing, err
}

// header reads the LUKS header under a crypt layer: from the device below it,
// or below that device's own integrity layer.
func (s *storage) header(crypt layer) (*luksHeader, error) {
	lower, err := s.below(crypt)
	for err == nil && len(lower) > 0 && lower[0].kind == posturev1.LayerType_LAYER_TYPE_INTEGRITY {
		lower, err = s.below(lower[0])
	}
	if err != nil {
		return nil, err
	}
	if len(lower) == 0 {
		return nil, errors.New("no device below the crypt layer")
	}
	dir := lower[0].dir
	read, ok := s.headers[dir]
	if !ok {
		read.header, read.err = s.readHeader(dir)
		s.headers[dir] = read
	}
	return read.header, read.err
}

func (s *storage) readHeader(dir string) (*luksHeader, error) {
	number, err := s.attribute(dir + "/dev")
	if err != nil {
		return nil, fmt.Errorf("reading a device number: %w", err)
	}
	node, err := s.files.Open("dev/block/" + number)
	if errors.Is(err, fs.ErrNotExist) { // these links are udev's; the kernel's own name is always there
		node, err = s.files.Open("dev/" + strings.ReplaceAll(path.Base(dir), "!", "/"))
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("reading the LUKS header needs root")
	case err != nil:
		return nil, fmt.Errorf("opening the device to read its LUKS header: %w", cause(err))
	}
	defer node.Close()
	h, err := parseLUKS(node)
	if err != nil {
		return nil, cause(err)
	}
	return h, nil
}

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
