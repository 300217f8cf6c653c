package probe

import (
	"path"
	"slices"
	"strings"
	"testing"
)

func TestMountinfo(t *testing.T) {
	const text = `22 27 0:21 / /proc rw,relatime - proc proc rw
36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue
42 27 254:0 / /mit\040Leerzeichen\134und\011Tab rw - ext4 /dev/a\040b rw
43 27 0:24 / /leer rw - tmpfs  rw,size=4k
44 27 0:25 / / rw - overlay overlay rw,lowerdir=/a\,b:/c,upperdir=/d
`
	got, err := parseMountinfo(text)
	if err != nil {
		t.Fatal(err)
	}
	want := mountTable{
		{device: "0:21", point: "/proc", fstype: "proc", source: "proc", options: []string{"rw"}},
		{device: "98:0", point: "/mnt2", fstype: "ext3", source: "/dev/root", options: []string{"rw", "errors=continue"}},
		{device: "254:0", point: "/mit Leerzeichen\\und\tTab", fstype: "ext4", source: "/dev/a b", options: []string{"rw"}},
		{device: "0:24", point: "/leer", fstype: "tmpfs", source: "", options: []string{"rw", "size=4k"}},
		{device: "0:25", point: "/", fstype: "overlay", source: "overlay", options: []string{"rw", `lowerdir=/a\,b:/c`, "upperdir=/d"}},
	}
	if !slices.EqualFunc(got, want, sameMount) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestMountinfoRefusesLinesThatMakeNoSense(t *testing.T) {
	for name, line := range map[string]string{
		"empty":             "",
		"cut off":           "36 35 98:0 / /mnt",
		"no separator":      "36 35 98:0 / /mnt rw master:1 shared:2 ext3 /dev/root rw",
		"nothing after it":  "36 35 98:0 / /mnt rw master:1 shared:2 x y -",
		"no device number":  "36 35 sda1 / /mnt rw - ext3 /dev/root rw",
		"half a number":     "36 35 98: / /mnt rw - ext3 /dev/root rw",
		"a negative number": "36 35 -1:0 / /mnt rw - ext3 /dev/root rw",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseMountinfo(line + "\n"); err == nil {
				t.Errorf("taken as %+v", got)
			}
		})
	}
}

func TestAFileLiesOnTheNearestMountThatIsSeen(t *testing.T) {
	table := mountTable{
		{device: "8:1", point: "/"},
		{device: "8:2", point: "/home"},
		{device: "8:3", point: "/home"},
		{device: "8:4", point: "/home/max"},
	}
	for file, device := range map[string]string{
		"/etc/key":          "8:1",
		"/homestead":        "8:1",
		"/home":             "8:3",
		"/home/eva/key":     "8:3",
		"/home/max/../eva":  "8:3",
		"/home/max/a/b/key": "8:4",
	} {
		if m, ok := table.containing(file); !ok || m.device != device {
			t.Errorf("%s lies on %v", file, m)
		}
	}
	if m, ok := table.containing("relative"); ok {
		t.Errorf("a relative path lies on %v", m)
	}
}

func TestSwaps(t *testing.T) {
	got, err := parseSwaps("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n" +
		"/dev/dm-1                               partition\t8388604\t\t0\t\t-2\n" +
		"/mit\\040Leerzeichen                     file\t\t1048572\t\t12\t\t-3\n")
	want := []swapSpace{{"/dev/dm-1", false}, {"/mit Leerzeichen", true}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, line := range map[string]string{
		"too few fields":  "/dev/dm-1 partition 1 2",
		"too many fields": "/dev/dm-1 partition 1 2 3 4",
		"another type":    "/dev/dm-1 tape 1 2 3",
		"a relative path": "dm-1 partition 1 2 3",
	} {
		if got, err := parseSwaps("Filename\n" + line + "\n"); err == nil {
			t.Errorf("%s: taken as %+v", name, got)
		}
	}
}

func sameMount(a, b mount) bool {
	return a.device == b.device && a.point == b.point && a.fstype == b.fstype && a.source == b.source &&
		slices.Equal(a.options, b.options)
}

// Every line becomes a mount or an error: none is lost.
func FuzzMountinfo(f *testing.F) {
	f.Add("22 27 0:21 / /proc rw,relatime - proc proc rw\n")
	f.Add("42 27 254:0 / /a\\040b rw shared:1 master:2 - ext4 /dev/a rw,lowerdir=/a\\,b\n")
	f.Add("43 27 0:24 / / rw - tmpfs  rw")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := parseMountinfo(text)
		if err != nil {
			return
		}
		if n := len(slices.Collect(strings.Lines(text))); n != len(table) {
			t.Errorf("%d lines, %d mounts", n, len(table))
		}
		for _, m := range table {
			table.containing(m.point)
			table.containing(m.source)
		}
	})
}

func FuzzSwaps(f *testing.F) {
	f.Add("Filename Type Size Used Priority\n/dev/dm-1 partition 8388604 0 -2\n")
	f.Add("Filename\n/swap\\040file file 1 2 3\n")
	f.Fuzz(func(t *testing.T, text string) {
		spaces, err := parseSwaps(text)
		if err != nil {
			return
		}
		if n := len(slices.Collect(strings.Lines(text))); n > 0 && n-1 != len(spaces) {
			t.Errorf("%d lines, %d swap spaces", n, len(spaces))
		}
		for _, s := range spaces {
			if !path.IsAbs(s.path) {
				t.Errorf("%q is no absolute path", s.path)
			}
		}
	})
}

func FuzzCrypttab(f *testing.F) {
	f.Add("# comment\nroot UUID=1 none luks,discard\nswap /dev/sda2 /dev/urandom swap,cipher=aes-xts-plain64,size=512\n")
	f.Add("data /dev/sdb1 /key\\040file:LABEL=stick luks,tpm2-device=auto,header=/h")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := parseCrypttab(text)
		if err != nil {
			return
		}
		for _, e := range entries {
			e.option("cipher")
			if name, device := splitKey(e.key); e.key != "" && name == "" && device == "" {
				t.Errorf("the key %q is lost", e.key)
			}
		}
	})
}
