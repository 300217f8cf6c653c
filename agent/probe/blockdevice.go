package probe

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

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
// longer prefix comes before a shorter one.
var mappingKinds = []struct {
	prefix string
	kind   posturev1.LayerType
}{
	{"CRYPT-VERITY-", posturev1.LayerType_LAYER_TYPE_INTEGRITY},
	{"CRYPT-INTEGRITY-", posturev1.LayerType_LAYER_TYPE_INTEGRITY},
	{"CRYPT-SUBDEV-", posturev1.LayerType_LAYER_TYPE_OTHER}, // a part of a LUKS2 volume
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

// zramBacking returns the device node to which zram writes what does not fit,
// "" when there is none.
func (s *storage) zramBacking(dir string) (string, error) {
	backing, err := s.attribute(dir + "/backing_dev")
	if errors.Is(err, fs.ErrNotExist) || backing == "none" { // not built into this kernel, or not used
		return "", nil
	}
	return backing, err
}
