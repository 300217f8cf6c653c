//go:build linux

package guest

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/qemu"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// situation is one state of the machine's disks, and what the agent has to say
// of it beside the root.
type situation struct {
	name string
	// setup is shell text, with the words of situations.sh.
	setup string
	// nobody runs the agent without root.
	nobody bool
	want   []string
}

// expected is the root and what the situation adds.
func (s situation) expected() []string {
	first := root
	if s.nobody {
		first = "root ext4: " + unreadTop
	}
	return append([]string{first}, s.want...)
}

const (
	root      = "root ext4: luks2(aes-xts-plain64 512 bits by header, 1 of pbkdf2, key none) > partition > disk"
	luks1     = "luks1(aes-xts-plain64 512 bits by header, 1 of pbkdf2, key none) > partition > disk"
	luks2     = "luks2(aes-xts-plain64 512 bits by header, 1 of pbkdf2, key none) > partition > disk"
	unreadTop = "luks2(by none, key none: reading the LUKS header needs root) > partition > disk"
)

var situations = []situation{
	{name: "an encrypted root, and nothing else"},
	{
		name: "LUKS1, and a plain boot partition", setup: "luks1 vdb1 data; volume data /srv; plain vdb2 /boot",
		want: []string{"data ext4: " + luks1, "boot ext4: partition > disk"},
	},
	{
		name: "LUKS2 with two passphrases and a token",
		setup: `luks2 vdb1 data; volume data /home
			cryptsetup luksAddKey -q --key-file $K --pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-memory 32 /dev/vdb1 /run/other
			cryptsetup token add --key-description posture /dev/vdb1`,
		want: []string{"home ext4: luks2(aes-xts-plain64 512 bits by header, 2 of argon2id pbkdf2, token luks2-keyring, key none) > partition > disk"},
	},
	{
		name: "without root", nobody: true, setup: "luks2 vdb1 data; volume data /srv",
		want: []string{"data ext4: " + unreadTop},
	},
	{
		name: "LUKS2 with the null cipher", setup: "luks2 vdb1 data --cipher cipher_null-ecb --key-size 128; volume data /srv",
		want: []string{"data ext4: luks2(cipher_null-ecb 128 bits by header, 1 of pbkdf2, key none) > partition > disk"},
	},
	{
		name: "LUKS2 with a detached header", setup: "luks2 vdb1 data --header /run/header; volume data /srv",
		want: []string{"data ext4: luks2(aes-xts-plain64 512 bits by table, key none) > partition > disk"},
	},
	{
		name: "LUKS2 with integrity", setup: "luks2 vdb1 data --integrity hmac-sha256 --integrity-no-wipe; dd if=/dev/zero of=/dev/mapper/data bs=64k count=1; swap /dev/mapper/data",
		want: []string{"swap swap: luks2(aes-xts-plain64 768 bits by header, 1 of pbkdf2, key none) > integrity > partition > disk"},
	},
	{
		name: "LUKS2 on dm-integrity",
		setup: `integrity vdb1 checked; cryptsetup luksFormat -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K /dev/mapper/checked
			cryptsetup open --key-file $K /dev/mapper/checked data; swap /dev/mapper/data`,
		want: []string{"swap swap: luks2(aes-xts-plain64 512 bits by header, 1 of pbkdf2, key none) > integrity > partition > disk"},
	},
	{
		name: "LUKS2 that is being encrypted anew",
		setup: `luks2 vdb1 data; volume data /srv
			cryptsetup reencrypt -q --init-only --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K --active-name data /dev/vdb1`,
		want: []string{"data ext4: luks2(aes-xts-plain64 512 bits by header, 2 of pbkdf2 pbkdf2, key none, online-reencrypt-v2) > partition > disk"},
	},
	{
		name: "dm-integrity alone", setup: "integrity vdb1 data; swap /dev/mapper/data",
		want: []string{"swap swap: integrity > partition > disk"},
	},
	{
		name: "a volume group with one plain member",
		setup: `luks2 vdb1 pv
			printf '0 32768 linear /dev/mapper/pv 0\n32768 32768 linear /dev/vdb2 0\n' | dmsetup create vg-home --uuid LVM-abcdef
			volume vg-home /home`,
		want: []string{"home ext4: linear > " + luks2 + " | linear > partition > disk"},
	},
	{
		name: "btrfs with one plain member",
		setup: `luks2 vdb1 data; mkfs.btrfs -q -f --mixed -d single -m single /dev/mapper/data /dev/vdb2
			btrfs device scan /dev/mapper/data /dev/vdb2; mount -t btrfs /dev/mapper/data /srv`,
		want: []string{"data btrfs: " + luks2 + " | partition > disk"},
	},
	{
		name: "keys beside what they open",
		setup: `plain vdb1 /srv; luks2 vdb2 one; volume one /home; luks2 vdb3 two; volume two /opt
			touch /srv/key /etc/key; printf 'one /dev/vdb2 /srv/key luks\ntwo /dev/vdb3 /etc/key luks\n' >/etc/crypttab`,
		want: []string{
			"home ext4: luks2(aes-xts-plain64 512 bits by header, 1 of pbkdf2, key on_plaintext) > partition > disk",
			"data ext4: partition > disk",
			"data ext4: luks2(aes-xts-plain64 512 bits by header, 1 of pbkdf2, key on_encrypted) > partition > disk",
		},
	},
	{
		name: "swap with a new random key at each boot",
		setup: `echo 'cswap /dev/vdb1 /dev/urandom swap,cipher=aes-xts-plain64,size=512' >/etc/crypttab
			crypt vdb1 cswap aes-xts-plain64; swap /dev/mapper/cswap`,
		want: []string{"swap swap: plain_crypt(aes-xts-plain64 512 bits by table, key random) > partition > disk"},
	},
	{
		name: "swap for which crypttab promises more than there is",
		setup: `echo 'cswap /dev/vdb1 /dev/urandom swap,cipher=aes-xts-plain64,size=512' >/etc/crypttab
			crypt vdb1 cswap cipher_null-ecb; swap /dev/mapper/cswap`,
		want: []string{"swap swap: plain_crypt(cipher_null-ecb by table, key random) > partition > disk"},
	},
	{
		name: "swap files", setup: "plain vdb1 /srv; swapfile /swapfile; swapfile '/srv/swap file'",
		want: []string{"data ext4: partition > disk", "swap swap: " + luks2, "swap swap: partition > disk"},
	},
	{
		name: "a plain swap partition", setup: "swap /dev/vdb1",
		want: []string{"swap swap: partition > disk"},
	},
	{
		name: "swap in compressed memory", setup: "echo 32M >/sys/block/zram0/disksize; swap /dev/zram0",
	},
	{
		name:  "swap in compressed memory that spills to a plain disk",
		setup: "echo /dev/vdb1 >/sys/block/zram0/backing_dev; echo 32M >/sys/block/zram0/disksize; swap /dev/zram0",
		want:  []string{"swap swap: other > partition > disk"},
	},
	{
		name: "a file system in a file on the encrypted root",
		setup: `truncate -s 8M /image; losetup /dev/loop0 /image; mke2fs -F -b 4096 /dev/loop0
			mount -t ext4 /dev/loop0 /srv`,
		want: []string{"data ext4: loop > " + luks2},
	},
}

//go:embed situations.sh
var situationWords string

// One boot, each situation after the other, with the agent as it is released.
func TestTheAgentTellsHowRealVolumesAreEncrypted(t *testing.T) {
	console := Guest{
		Programs: []string{
			buildAgent(t), qemu.Find(t, "dmsetup"), qemu.Find(t, "integritysetup"), qemu.Find(t, "mkfs.btrfs"), qemu.Find(t, "btrfs"), qemu.Find(t, "setpriv"),
		},
		Modules: []string{"dm-integrity", "authenc", "hmac", "sha256", "btrfs", "lzo-rle", "zram", "loop"},
		Script:  script(situations),
	}.Run(t)
	for _, s := range situations {
		t.Run(s.name, func(t *testing.T) {
			ev := evidence(t, console, s.name)
			if got, want := volumes(ev.GetVolumes()), s.expected(); !slices.Equal(got, want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
			if c := ev.GetVolumes().GetContradictions(); len(c) > 0 {
				t.Errorf("contradictions: %v", c)
			}
		})
	}
	t.Run("the TPM", func(t *testing.T) {
		tpm := evidence(t, console, situations[0].name).GetTpm()
		if tpm.GetReading().GetState() != posturev1.ReadingState_READING_STATE_OBSERVED ||
			tpm.GetPresent() != posturev1.Ternary_TERNARY_YES || tpm.GetVersion() != "2.0" {
			t.Errorf("%v", tpm)
		}
	})
	t.Run("Secure Boot", func(t *testing.T) {
		boot := evidence(t, console, situations[0].name).GetSecureBoot()
		if boot.GetReading().GetState() != posturev1.ReadingState_READING_STATE_OBSERVED ||
			boot.GetEnabled() != posturev1.Ternary_TERNARY_YES || boot.GetSetupMode() != posturev1.Ternary_TERNARY_NO {
			t.Errorf("%v", boot)
		}
	})
}

// buildAgent builds the agent as it is released.
func buildAgent(t *testing.T) string {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "pfoertner-agent")
	e2e.BuildProgram(t, agent, "pfoertner/agent")
	return agent
}

// script goes through all situations and prints the agent's evidence of each
// between two lines that name it.
func script(all []situation) string {
	var b strings.Builder
	b.WriteString(situationWords)
	for i, s := range all {
		as := "as_root"
		if s.nobody {
			as = "as_nobody"
		}
		fmt.Fprintf(&b, "situation%d() {\n:\n%s\n}\nshow %q situation%d %s\n", i, s.setup, s.name, i, as)
	}
	return b.String()
}

// evidence takes one situation's evidence out of what the guest printed.
func evidence(t *testing.T, console, name string) *posturev1.Evidence {
	t.Helper()
	_, rest, _ := strings.Cut(strings.ReplaceAll(console, "\r", ""), "@@ begin "+name+"\n")
	text, _, ok := strings.Cut(rest, "@@ end "+name+"\n")
	if !ok {
		t.Fatalf("the guest did not show it:\n%s", console)
	}
	var ev posturev1.Evidence
	if err := protojson.Unmarshal([]byte(text), &ev); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return &ev
}

// volumes writes evidence one line to a volume.
func volumes(vs *posturev1.Volumes) []string {
	var all []string
	for _, v := range vs.GetVolumes() {
		s := lower(v.GetMountClass().String(), "MOUNT_CLASS_") + " " + v.GetFilesystem() + ": "
		if r := v.GetReading(); r.GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
			s += lower(r.GetState().String(), "READING_STATE_") + " " + r.GetReason()
		}
		var paths []string
		for _, p := range v.GetPaths() {
			var layers []string
			for _, l := range p.GetLayers() {
				layers = append(layers, layer(l))
			}
			paths = append(paths, strings.Join(layers, " > "))
		}
		all = append(all, s+strings.Join(paths, " | "))
	}
	return all
}

// layer writes all that evidence says of a layer.
func layer(l *posturev1.StorageLayer) string {
	kind := lower(l.GetType().String(), "LAYER_TYPE_")
	if l.GetVerifiedBy() == posturev1.VerifiedBy_VERIFIED_BY_UNSPECIFIED {
		return kind
	}
	var cipher []string
	if l.GetCipher() != "" {
		cipher = append(cipher, l.GetCipher())
	}
	if l.GetKeyBits() > 0 {
		cipher = append(cipher, fmt.Sprintf("%d bits", l.GetKeyBits()))
	}
	cipher = append(cipher, "by "+lower(l.GetVerifiedBy().String(), "VERIFIED_BY_"))
	facts := []string{strings.Join(cipher, " ")}
	if l.GetKeyslots() > 0 {
		facts = append(facts, fmt.Sprintf("%d of %s", l.GetKeyslots(), strings.Join(l.GetKdfs(), " ")))
	}
	for _, token := range l.GetTokenTypes() {
		facts = append(facts, "token "+token)
	}
	facts = append(facts, "key "+lower(l.GetKeyFile().String(), "KEY_FILE_"))
	facts = append(facts, l.GetRequirements()...)
	s := strings.Join(facts, ", ")
	if l.GetReason() != "" {
		s += ": " + l.GetReason()
	}
	return kind + "(" + s + ")"
}

func lower(name, prefix string) string { return strings.ToLower(strings.TrimPrefix(name, prefix)) }
