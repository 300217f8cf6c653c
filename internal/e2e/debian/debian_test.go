//go:build linux

package debian_test

import (
	"strings"
	"testing"

	"pfoertner/internal/e2e/debian"
)

func TestDebianRunsOnAnEncryptedRootAndSurvivesARestart(t *testing.T) {
	g := debian.New(t, nil)
	if got := g.Must(t, "findmnt -no SOURCE /"); !strings.Contains(got, "/dev/mapper/root") {
		t.Errorf("the root lies on %s", got)
	}
	if _, status := g.Run(t, "exit 7"); status != 7 {
		t.Errorf("exit 7 ended with %d", status)
	}
	if got, _ := g.Run(t, "systemctl is-system-running --wait; systemctl --failed"); !strings.HasPrefix(got, "running\n") {
		t.Errorf("the system is %s", got)
	}
	t.Log(g.Must(t, "systemd-analyze"))
	before := g.BootID
	g.Must(t, "echo kept >/root/kept")
	g.Reboot(t)
	if g.BootID == before {
		t.Error("it has not restarted")
	}
	if got := g.Must(t, "cat /root/kept"); got != "kept\n" {
		t.Errorf("after the restart the file holds %q", got)
	}
}
