package probe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// machine is a prepared file tree with /proc, /sys and /dev as the kernel and
// udev make them.
type machine struct {
	fstest.MapFS
	swaps  string
	mounts string
	number map[string]string // of a device by its kernel name
	tables tables            // nil: device-mapper cannot be asked
}

// tables are device-mapper's answers by device number.
type tables map[string][]string

// Segments implements Mappings.
func (t tables) Segments(_ context.Context, number string) ([]string, error) {
	if segments, ok := t[number]; ok {
		return segments, nil
	}
	return nil, errors.New("asking device-mapper: no such device or address")
}

func newMachine() *machine {
	m := &machine{MapFS: fstest.MapFS{}, number: map[string]string{}}
	return m
}

// host is the machine as probes see it, at a fixed time.
func (m *machine) host() Host {
	m.file("proc/1/mountinfo", m.mounts)
	m.file("proc/swaps", "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"+m.swaps)
	h := Host{Files: m.MapFS, Now: func() time.Time { return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC) }}
	if m.tables != nil {
		h.Mappings = m.tables
	}
	return h
}

func (m *machine) file(name, content string) { m.MapFS[name] = &fstest.MapFile{Data: []byte(content)} }

func (m *machine) link(name, target string) {
	m.MapFS[name] = &fstest.MapFile{Data: []byte(target), Mode: fs.ModeSymlink}
}

func (m *machine) directory(name string) { m.MapFS[name] = &fstest.MapFile{Mode: fs.ModeDir | 0o755} }

// block adds a block device at a directory below sys/devices.
func (m *machine) block(number, dir string) string {
	dir = "sys/devices/" + dir
	name := path.Base(dir)
	m.number[name] = number
	m.file(dir+"/dev", number+"\n")
	m.directory(dir + "/slaves")
	m.link("sys/dev/block/"+number, "../../"+strings.TrimPrefix(dir, "sys/"))
	m.link("sys/class/block/"+name, "../../"+strings.TrimPrefix(dir, "sys/"))
	m.link("dev/block/"+number, "../"+name)
	m.file("dev/"+name, "nothing that begins like a header")
	return dir
}

// disk adds a whole disk with one partition, "sda" and "sda1".
func (m *machine) disk(name, number, partitionNumber string) {
	dir := m.block(number, "pci0000:00/0000:00:17.0/block/"+name)
	m.file(dir+"/removable", "0\n")
	part := m.block(partitionNumber, "pci0000:00/0000:00:17.0/block/"+name+"/"+name+"1")
	m.file(part+"/partition", "1\n")
}

// mapping adds a device-mapper device that lies on others.
func (m *machine) mapping(name, number, mapping, uuid string, on ...string) {
	dir := m.block(number, "virtual/block/"+name)
	m.file(dir+"/dm/name", mapping+"\n")
	m.file(dir+"/dm/uuid", uuid+"\n")
	m.link("dev/mapper/"+mapping, "../"+name)
	m.stack(name, on...)
}

// stack makes a virtual device lie on others.
func (m *machine) stack(name string, on ...string) {
	for _, lower := range on {
		target, err := fs.ReadLink(m.MapFS, "sys/class/block/"+lower)
		if err != nil {
			panic(err)
		}
		m.link("sys/devices/virtual/block/"+name+"/slaves/"+lower, "../../../../"+strings.TrimPrefix(target, "../../devices/"))
	}
}

// loop adds a loop device for a file.
func (m *machine) loop(name, number, file string) {
	m.file(m.block(number, "virtual/block/"+name)+"/loop/backing_file", file+"\n")
}

// luks opens a LUKS2 volume with a real header on a device.
func (m *machine) luks(t testing.TB, name, number, mapping, on string) {
	m.header(on, capture(t, "luks2.img"))
	m.mapping(name, number, mapping, uuidOf("LUKS2", mapping), on)
}

// header puts content at the beginning of a device.
func (m *machine) header(device string, content []byte) { m.file("dev/"+device, string(content)) }

// mount adds a line to mountinfo; device is a kernel name or a number.
func (m *machine) mount(device, point, fstype, source string, options ...string) {
	number, ok := m.number[device]
	if !ok {
		number = device
	}
	m.mounts += fmt.Sprintf("%d 1 %s / %s rw,relatime shared:1 - %s %s %s\n",
		20+strings.Count(m.mounts, "\n"), number, point, fstype, source, strings.Join(append([]string{"rw"}, options...), ","))
}

func (m *machine) swap(path, kind string) {
	m.swaps += path + "\t\t" + kind + "\t8388604\t\t0\t\t-2\n"
}

// btrfs lists the members of a btrfs.
func (m *machine) btrfs(fsid string, members ...string) {
	for _, member := range members {
		target, _ := fs.ReadLink(m.MapFS, "sys/class/block/"+member)
		m.link("sys/fs/btrfs/"+fsid+"/devices/"+member, "../../../../"+strings.TrimPrefix(target, "../../"))
	}
	m.directory("sys/fs/btrfs/features")
}

const (
	luks1UUID = "3f0c1b2a11114a4a8b8b0123456789ab" // of the captured headers
	luks2UUID = "7d9e5c4422224c4c9d9dabcdef012345"
)

func uuidOf(kind, mapping string) string {
	uuid := luks2UUID
	if kind == "LUKS1" {
		uuid = luks1UUID
	}
	return "CRYPT-" + kind + "-" + uuid + "-" + mapping
}

// capture is a header that cryptsetup made.
func capture(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/luks/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// forge changes the JSON area of a captured LUKS2 header and gives it a valid
// checksum: cryptsetup makes some headers only where dm-crypt works.
func forge(t testing.TB, header []byte, old, replacement string) []byte {
	t.Helper()
	b := bytes.Clone(header)
	area := b[luks2BinarySize:]
	if !bytes.Contains(area, []byte(old)) {
		t.Fatalf("the header does not contain %q", old)
	}
	changed := bytes.TrimRight(bytes.ReplaceAll(area, []byte(old), []byte(replacement)), "\x00")
	clear(area)
	copy(area, changed)
	clear(b[448:512])
	sum := sha256.Sum256(b)
	copy(b[448:], sum[:])
	return b
}

// lines writes volumes the way they are compared in tests: one line each.
func lines(v *posturev1.Volumes) []string {
	var all []string
	for _, volume := range v.GetVolumes() {
		all = append(all, line(volume))
	}
	return all
}

func line(v *posturev1.Volume) string {
	class := strings.ToLower(strings.TrimPrefix(v.GetMountClass().String(), "MOUNT_CLASS_"))
	s := class + " " + v.GetFilesystem() + ":"
	if state := v.GetReading().GetState(); state != posturev1.ReadingState_READING_STATE_OBSERVED {
		s += " " + strings.TrimPrefix(state.String(), "READING_STATE_") + " " + v.GetReading().GetReason()
	}
	for i, p := range v.GetPaths() {
		if i > 0 {
			s += " |"
		}
		for j, l := range p.GetLayers() {
			if j > 0 {
				s += " >"
			}
			s += " " + layerText(l)
		}
	}
	for _, f := range v.GetFileEncryption() {
		s += " +" + f.GetSystem() + "(" + f.GetCipher() + ")"
		if f.GetHomeOnly() {
			s += " home only"
		}
	}
	return s
}

func layerText(l *posturev1.StorageLayer) string {
	s := strings.ToLower(kindName(l.GetType()))
	if l.GetVerifiedBy() == posturev1.VerifiedBy_VERIFIED_BY_UNSPECIFIED {
		return s
	}
	s += "(" + l.GetCipher()
	switch l.GetVerifiedBy() {
	case posturev1.VerifiedBy_VERIFIED_BY_NONE:
		s += " unverified"
	case posturev1.VerifiedBy_VERIFIED_BY_TABLE:
		s += " by table"
	}
	if k := l.GetKeyFile(); k != posturev1.KeyFile_KEY_FILE_NONE {
		s += " key " + strings.ToLower(strings.TrimPrefix(k.String(), "KEY_FILE_"))
	}
	if len(l.GetRequirements()) > 0 {
		s += " " + strings.Join(l.GetRequirements(), " ")
	}
	if l.GetReason() != "" {
		s += ": " + l.GetReason()
	}
	return s + ")"
}
