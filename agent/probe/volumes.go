package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// maxVolumes is far above what a notebook has; beyond it the list would be
// refused as a whole by the collector.
const maxVolumes = 256

// volumesTimeout is above the time that BitLocker gets to answer, so that what
// ends the reading says what was asked.
const volumesTimeout = 30 * time.Second

// volumesProbe reads every persistent mount and swap space of the machine,
// each with all paths down to its disks; on Windows every volume.
func volumesProbe() Probe {
	return Probe{Section: "volumes", Timeout: volumesTimeout, Collect: collectVolumes}
}

func collectVolumes(ctx context.Context, h Host, ev *posturev1.Evidence) error {
	out := &posturev1.Volumes{Reading: &posturev1.Reading{Source: sourceMounts + ", " + sourceSwaps}}
	ev.Volumes = out
	if h.Windows != nil {
		return collectWindowsVolumes(ctx, h.Windows, out)
	}
	if h.Files == nil {
		return errors.New("this machine's files are not readable")
	}
	r, err := newVolumeReader(h)
	if err != nil {
		return err
	}
	mounted := r.mounted(ctx)
	swaps, errSwaps := r.swapSpaces()
	found := slices.Concat(mounted, swaps)
	slices.SortStableFunc(found, func(a, b *volume) int { return cmp.Compare(a.class, b.class) })
	if len(found) > maxVolumes {
		return fmt.Errorf("more than %d volumes", maxVolumes)
	}
	for _, v := range found {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.report(ctx, v, out)
	}
	if !slices.ContainsFunc(found, func(v *volume) bool { return v.class == posturev1.MountClass_MOUNT_CLASS_ROOT }) {
		return errors.Join(errors.New("no mount on /"), errSwaps)
	}
	return errSwaps
}

const (
	sourceMounts = "/proc/1/mountinfo"
	sourceSwaps  = "/proc/swaps"
)

// volumeReader holds what is read once for all volumes of one collection.
type volumeReader struct {
	storage  *storage
	mappings Mappings
	commands Commands

	crypttab      []cryptEntry
	crypttabErr   error
	cmdline       []string // of the kernel
	initramfsHook string   // Debian's configuration of what goes into the initramfs
}

// newVolumeReader reads the mounts of pid 1: this process may be confined to
// a part of them.
func newVolumeReader(h Host) (*volumeReader, error) {
	info, err := fs.ReadFile(h.Files, sourceMounts[1:])
	if err != nil {
		return nil, fmt.Errorf("reading mounts: %w", cause(err))
	}
	mounts, err := parseMountinfo(string(info))
	if err != nil {
		return nil, err
	}
	r := &volumeReader{storage: newStorage(h.Files, mounts), mappings: h.Mappings, commands: h.Commands}
	if r.crypttab, err = readCrypttab(h.Files); err != nil {
		r.crypttabErr = fmt.Errorf("crypttab is unreadable: %w", err)
	}
	// Without these two files there is nothing in them to worry about.
	if cmdline, err := fs.ReadFile(h.Files, "proc/cmdline"); err == nil {
		r.cmdline = strings.Fields(string(cmdline))
	}
	if hook, err := fs.ReadFile(h.Files, "etc/cryptsetup-initramfs/conf-hook"); err == nil {
		r.initramfsHook = string(hook)
	}
	return r, nil
}

func readCrypttab(files fs.FS) ([]cryptEntry, error) {
	content, err := fs.ReadFile(files, "etc/crypttab")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, cause(err)
	}
	return parseCrypttab(string(content))
}

func (r *volumeReader) cryptEntry(mapping string) (cryptEntry, bool) {
	i := slices.IndexFunc(r.crypttab, func(e cryptEntry) bool { return e.name == mapping })
	if i < 0 {
		return cryptEntry{}, false
	}
	return r.crypttab[i], true
}

// volume is one volume on its way into evidence.
type volume struct {
	class  posturev1.MountClass
	fstype string
	source string // of the reading
	mounts []mount
	// files is the encryption of whole filesystems (ZFS).
	files []*posturev1.FileEncryption
	ways  []diskPath
	state posturev1.ReadingState
	err   error // why state is not OBSERVED
}

// same is true for two views of one filesystem: bind mounts and subvolumes.
func (v *volume) same(other *volume) bool {
	leads := func(a, b diskPath) bool {
		return slices.EqualFunc(a, b, func(x, y layer) bool { return x.dir == y.dir })
	}
	return v.fstype == other.fstype && v.err == nil && other.err == nil &&
		len(v.ways) > 0 && slices.EqualFunc(v.ways, other.ways, leads)
}

// mounted lists the filesystems of this machine, each class of use once.
func (r *volumeReader) mounted(ctx context.Context) []*volume {
	var all []*volume
	for i, m := range r.storage.mounts {
		hidden := slices.ContainsFunc(r.storage.mounts[i+1:], func(later mount) bool { return later.point == m.point })
		class := mountClass(m.point)
		if hidden {
			class = posturev1.MountClass_MOUNT_CLASS_DATA
		}
		if class != posturev1.MountClass_MOUNT_CLASS_ROOT && !persistent(m.fstype, m.anonymous()) {
			continue
		}
		if v := r.filesystem(ctx, m, class); v != nil {
			all = append(all, v)
		}
	}
	return merge(all)
}

// merge joins views of one filesystem with the same class, and drops the class
// data for a filesystem that is listed with a stricter one.
func merge(all []*volume) []*volume {
	var merged []*volume
	for _, v := range all {
		i := slices.IndexFunc(merged, func(m *volume) bool { return m.class == v.class && m.same(v) })
		if i < 0 {
			merged = append(merged, v)
			continue
		}
		merged[i].mounts = append(merged[i].mounts, v.mounts...)
	}
	return slices.DeleteFunc(merged, func(v *volume) bool {
		return v.class == posturev1.MountClass_MOUNT_CLASS_DATA &&
			slices.ContainsFunc(merged, func(m *volume) bool { return m.class != v.class && m.same(v) })
	})
}

// filesystem follows one mount to its disks; nil when it holds nothing of its
// own.
func (r *volumeReader) filesystem(ctx context.Context, m mount, class posturev1.MountClass) *volume {
	v := &volume{
		class:  class,
		fstype: m.fstype,
		source: sourceMounts,
		mounts: []mount{m},
		state:  posturev1.ReadingState_READING_STATE_OBSERVED,
	}
	switch {
	case inMemory(m.fstype):
		v.state, v.err = posturev1.ReadingState_READING_STATE_NOT_APPLICABLE, errors.New("held in memory")
	case m.fstype == "zfs":
		r.followZFS(ctx, v, m.source)
	default:
		tops, err := r.storage.tops(m)
		r.follow(v, tops, err)
	}
	root := class == posturev1.MountClass_MOUNT_CLASS_ROOT
	switch {
	case v.err != nil || root:
		return v
	case len(v.ways) == 0 || isImage(m.fstype, v.ways):
		return nil
	case class == posturev1.MountClass_MOUNT_CLASS_DATA && every(v.ways, r.storage.removable):
		v.class = posturev1.MountClass_MOUNT_CLASS_REMOVABLE
	}
	return v
}

// follow fills in the ways to the disks, without those into compressed memory.
func (r *volumeReader) follow(v *volume, tops []layer, err error) {
	if err == nil {
		v.ways, err = r.storage.ways(tops)
	}
	if err != nil {
		v.state, v.err = posturev1.ReadingState_READING_STATE_FAILED, err
		return
	}
	v.ways = slices.DeleteFunc(v.ways, diskPath.inMemory)
}

// followZFS asks ZFS itself: sysfs does not know what a pool lies on.
func (r *volumeReader) followZFS(ctx context.Context, v *volume, dataset string) {
	cipher, err := "", errors.New("zfs cannot be asked on this machine")
	if r.commands != nil {
		cipher, err = r.commands.ZFSEncryption(ctx, dataset)
	}
	// All datasets with the same answer are one volume: there may be hundreds.
	v.ways = []diskPath{{layer{kind: posturev1.LayerType_LAYER_TYPE_ZFS, dir: "zfs/" + cipher}}}
	switch {
	case err != nil:
		v.state, v.err = posturev1.ReadingState_READING_STATE_FAILED, fmt.Errorf("asking zfs: %w", err)
	case cipher != "" && cipher != "-" && cipher != "off":
		v.files = []*posturev1.FileEncryption{{System: "zfs", Cipher: word(cipher)}}
	}
}

// swapSpaces lists the swap spaces in use. A kernel without swap has no list.
func (r *volumeReader) swapSpaces() ([]*volume, error) {
	content, err := fs.ReadFile(r.storage.files, sourceSwaps[1:])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading swap spaces: %w", cause(err))
	}
	spaces, err := parseSwaps(string(content))
	if err != nil {
		return nil, err
	}
	var all []*volume
	for _, s := range spaces {
		v := &volume{
			class:  posturev1.MountClass_MOUNT_CLASS_SWAP,
			fstype: "swap",
			source: sourceSwaps,
			state:  posturev1.ReadingState_READING_STATE_OBSERVED,
		}
		tops, err := r.storage.behindFile(s.path)
		r.follow(v, tops, err)
		if v.err != nil || len(v.ways) > 0 {
			all = append(all, v)
		}
	}
	return all, nil
}

// report adds a volume and its contradictions to evidence.
func (r *volumeReader) report(ctx context.Context, v *volume, out *posturev1.Volumes) {
	entry := &posturev1.Volume{
		Reading:        &posturev1.Reading{State: v.state, Source: v.source},
		MountClass:     v.class,
		Filesystem:     word(v.fstype),
		FileEncryption: slices.Concat(v.files, r.homeEncryption(v)),
	}
	if v.err != nil {
		entry.Reading.Reason = oneLine(v.err.Error())
	}
	for i, w := range v.ways {
		p := &posturev1.StoragePath{}
		for j, l := range w {
			layer, contradictions := r.describeLayer(ctx, l)
			for _, c := range contradictions {
				c.Subject = fmt.Sprintf("volumes[%d].paths[%d].layers[%d].%s", len(out.Volumes), i, j, c.Subject)
			}
			p.Layers = append(p.Layers, layer)
			out.Contradictions = append(out.Contradictions, contradictions...)
		}
		entry.Paths = append(entry.Paths, p)
	}
	out.Volumes = append(out.Volumes, entry)
}

// homeEncryption finds encryption that covers homes only: it leaves the rest
// of the filesystem readable.
func (r *volumeReader) homeEncryption(v *volume) []*posturev1.FileEncryption {
	var found []*posturev1.FileEncryption
	for _, m := range v.mounts {
		if r.storage.exists(path.Join(m.point, ".fscrypt")[1:]) {
			found = append(found, &posturev1.FileEncryption{System: "fscrypt", HomeOnly: true})
			break
		}
	}
	for _, above := range r.storage.mounts {
		if above.fstype != "ecryptfs" {
			continue
		}
		below, ok := r.storage.mounts.containing(above.source)
		if ok && slices.ContainsFunc(v.mounts, func(m mount) bool { return m.device == below.device }) {
			found = append(found, &posturev1.FileEncryption{
				System: "ecryptfs", Cipher: word(above.option("ecryptfs_cipher")), HomeOnly: true,
			})
			break
		}
	}
	homed := func(l layer) bool { return strings.HasSuffix(l.image, ".home") }
	if slices.ContainsFunc(v.ways, func(w diskPath) bool { return slices.ContainsFunc(w, homed) }) {
		found = append(found, &posturev1.FileEncryption{System: "homed", HomeOnly: true})
	}
	return found
}

// mountClass is what a mount is used for, by the place it has in every
// distribution.
func mountClass(point string) posturev1.MountClass {
	switch point {
	case "/":
		return posturev1.MountClass_MOUNT_CLASS_ROOT
	case "/boot", "/boot/efi", "/boot/firmware", "/efi":
		return posturev1.MountClass_MOUNT_CLASS_BOOT
	}
	for _, home := range []string{"/home", "/root", "/var/home"} {
		if point == home || strings.HasPrefix(point, home+"/") {
			return posturev1.MountClass_MOUNT_CLASS_HOME
		}
	}
	return posturev1.MountClass_MOUNT_CLASS_DATA
}

// persistent is true for filesystems that keep their content on this machine:
// those on a block device, and those that hide it behind an anonymous number.
func persistent(fstype string, anonymous bool) bool {
	return !anonymous || slices.Contains([]string{"btrfs", "zfs", "bcachefs", "ubifs"}, fstype)
}

// isImage is true for read-only images in a file, such as snaps: their content
// is that of the filesystem the file lies on.
func isImage(fstype string, ways []diskPath) bool {
	return (fstype == "squashfs" || fstype == "erofs") &&
		every(ways, func(w diskPath) bool { return w[0].kind == posturev1.LayerType_LAYER_TYPE_LOOP })
}

func every(ways []diskPath, is func(diskPath) bool) bool {
	return !slices.ContainsFunc(ways, func(w diskPath) bool { return !is(w) })
}
