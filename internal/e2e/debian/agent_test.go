//go:build linux

package debian_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"pfoertner/internal/e2e"
	"pfoertner/internal/e2e/debian"
	fleetv1 "pfoertner/proto/pfoertner/fleet/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// Two versions of the agent, the second one newer.
	older = "1.0.1"
	newer = "1.0.2"

	asset = "NB-0816"
	top   = "../../.."
	// limit is far above what anything takes here, also on a busy machine; often
	// is how often the collector is asked.
	limit = 5 * time.Minute
	often = 500 * time.Millisecond
)

// packages builds the collector and two versions of the agent's package into
// dir.
func packages(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test makes a Debian with debootstrap and needs root")
	}
	e2e.BuildProgram(t, filepath.Join(dir, "pfoertner-collector"), "pfoertner/collector")
	nfpm := filepath.Join(dir, "nfpm")
	run(t, top+"/installer/tools", "go", "build", "-o", nfpm, "github.com/goreleaser/nfpm/v2/cmd/nfpm")
	for _, version := range []string{older, newer} {
		agent := filepath.Join(dir, "agent-"+version)
		e2e.Build{Version: version}.Program(t, agent, "pfoertner/agent")
		run(t, top, "installer/linux/build", nfpm, "agent", agent, "amd64", version, dir)
	}
}

// deb is the file of a version's package.
func deb(version string) string { return "pfoertner-agent_" + version + "_amd64.deb" }

func run(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1763726400")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
}

// notebook is a guest and the collector that waits for it.
type notebook struct {
	*debian.Guest
	*e2e.Collector
	dir string
}

// stage takes the notebook into the inventory by what it says of its TPM, as a
// workshop does with notebooks that are on no delivery list.
func (n *notebook) stage(t *testing.T) {
	t.Helper()
	printed := n.Must(t, "pfoertner-agent id --csv")
	header, line, _ := strings.Cut(printed, "\n")
	if !strings.HasPrefix(header, "asset_number;") || !strings.HasPrefix(line, ";") {
		t.Fatalf("id --csv prints %q", printed)
	}
	inventory := filepath.Join(n.dir, "inventory.csv")
	write(t, inventory, header+"\n"+asset+line)
	n.Operator(t, "inventory", "import", inventory)
}

func newNotebook(t *testing.T) *notebook {
	t.Helper()
	dir := t.TempDir()
	packages(t, dir)
	maker := e2e.NewTPMMaker(t)
	maker.Make(t, t.TempDir()) // its authorities exist from its first TPM on
	c := e2e.StartCollector(t, filepath.Join(dir, "pfoertner-collector"), dir, e2e.VirtualRoots(maker))
	preseed := filepath.Join(dir, "preseed")
	_, port, err := net.SplitHostPort(c.Agents)
	if err != nil {
		t.Fatal(err)
	}
	write(t, preseed, fmt.Sprintf("COLLECTOR=10.0.2.2:%s\nCA_FINGERPRINT=%s\nUNIT=inneres/it\n", port, c.Fingerprint))
	guest := debian.New(t, maker, filepath.Join(dir, deb(older)), filepath.Join(dir, deb(newer)), preseed)
	return &notebook{Guest: guest, Collector: c, dir: dir}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// await waits until the collector has evidence that this version of the agent
// made since this boot.
func (n *notebook) await(t *testing.T, version string) *fleetv1.Device {
	t.Helper()
	device := &fleetv1.Device{}
	boot := strings.TrimSpace(n.BootID)
	arrived := func() bool {
		device.Reset()
		if err := protojson.Unmarshal([]byte(n.Operator(t, "devices", asset, "--json")), device); err != nil {
			t.Fatal(err)
		}
		platform := device.GetEvidence().GetPlatform()
		return platform.GetAgentVersion() == version && platform.GetBootId() == boot && device.GetResult() != nil
	}
	if !e2e.EventuallyEvery(t, often, limit, arrived) {
		log, _ := n.Run(t, "journalctl -u pfoertner-agent --no-pager | tail -n 50")
		t.Fatalf("no evidence of version %s since boot %s, but %v\n%s", version, boot, device, log)
	}
	return device
}

// One notebook's years, each part on what the one before has left.
func TestPackageLivesThroughInstallationRestartUpgradeAndPurge(t *testing.T) {
	n := newNotebook(t)
	n.Must(t, "mkdir /etc/pfoertner && cp /files/preseed /etc/pfoertner")
	n.Must(t, "DEBIAN_FRONTEND=noninteractive dpkg -i /files/"+deb(older))
	n.stage(t)
	n.Must(t, "systemctl restart pfoertner-agent") // it has been refused, and would wait
	first := n.await(t, older)

	t.Run("its key is in the TPM behind the kernel's resource manager", func(t *testing.T) {
		key := first.GetKey()
		if key.GetProtection() != fleetv1.KeyProtection_KEY_PROTECTION_TPM || !strings.Contains(n.Must(t, "pfoertner-agent id"), key.GetFingerprint()) {
			t.Errorf("its key is %v", key)
		}
		if first.GetAttested().GetReading().GetState() != posturev1.ReadingState_READING_STATE_OBSERVED {
			t.Errorf("the TPM vouches for nothing: %v", first.GetAttested())
		}
	})

	t.Run("the encrypted root is seen", func(t *testing.T) {
		var roots []string
		for _, v := range first.GetEvidence().GetVolumes().GetVolumes() {
			if v.GetMountClass() != posturev1.MountClass_MOUNT_CLASS_ROOT {
				continue
			}
			for _, path := range v.GetPaths() {
				layer := path.GetLayers()[0]
				roots = append(roots, fmt.Sprint(layer.GetType(), " ", layer.GetCipher(), " ", layer.GetVerifiedBy()))
			}
		}
		if got, want := strings.Join(roots, ", "), "LAYER_TYPE_LUKS2 aes-xts-plain64 VERIFIED_BY_HEADER"; got != want {
			t.Errorf("the root is %q, want %q", got, want)
		}
	})
	t.Run("the service reads what root reads", func(t *testing.T) {
		seen := &posturev1.Evidence{}
		if err := protojson.Unmarshal([]byte(n.Must(t, "pfoertner-agent evidence --json 2>/dev/null")), seen); err != nil {
			t.Fatal(err)
		}
		// Once more, so that both were made at nearly the same time.
		sent := proto.CloneOf(n.await(t, older).GetEvidence())
		timeless(seen.ProtoReflect())
		timeless(sent.ProtoReflect())
		if !proto.Equal(seen, sent) {
			t.Errorf("the service sent\n%s\nroot sees\n%s", protojson.Format(sent), protojson.Format(seen))
		}
	})

	same := func(t *testing.T, version string) {
		t.Helper()
		now := n.await(t, version)
		if now.GetId() != first.GetId() || !now.GetEnrolledAt().AsTime().Equal(first.GetEnrolledAt().AsTime()) {
			t.Errorf("it is another device: %v, before: %v", now, first)
		}
	}
	n.Reboot(t)
	t.Run("after a restart it is the same device", func(t *testing.T) { same(t, older) })

	settings := n.Must(t, "cat /etc/pfoertner/agent.yaml")
	n.Must(t, "DEBIAN_FRONTEND=noninteractive dpkg -i /files/"+deb(newer))
	t.Run("after an upgrade it is the same device, with the same settings", func(t *testing.T) {
		same(t, newer)
		if got := n.Must(t, "cat /etc/pfoertner/agent.yaml"); got != settings {
			t.Errorf("the settings have become\n%s\nfrom\n%s", got, settings)
		}
	})

	n.Must(t, "DEBIAN_FRONTEND=noninteractive dpkg --purge pfoertner-agent")
	t.Run("after purging nothing is left", func(t *testing.T) {
		// dpkg's own log and journal know that it was there.
		left := n.Must(t, "find / -xdev -name '*pfoertner*' -not -path '/files/*' -not -path '/proc/*' -not -path '/sys/*'; "+
			"systemctl list-units --all --plain --no-legend 'pfoertner*'")
		if left != "" {
			t.Errorf("there is still\n%s", left)
		}
	})
}
