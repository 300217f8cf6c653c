//go:build linux

package packages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pfoertner/internal/e2e"
)

const playbook = `
- hosts: localhost
  connection: local
  vars:
    pfoertner_agent_package: /tmp/pfoertner-agent.deb
    pfoertner_agent_collector: posture.example:7601
    pfoertner_agent_ca_fingerprint: "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"
    pfoertner_agent_unit: 'Amt "Nord"'
    pfoertner_agent_token: one-time
  roles: [pfoertner_agent]
`

// ansible runs the role inside a Debian of its own: fresh, again (nothing may
// change), and on a notebook that comes back after a long absence: enrolled once,
// and given another token.
func ansible(t *testing.T, dist, work string) {
	template := e2e.Cached(t, "debian12-ansible-1", func(dir string) {
		r := root(t)
		out, err := run(t, "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}, "chroot", r, "/bin/sh", "-ec",
			"apt-get update -qq; apt-get install -y -qq --no-install-recommends ansible-core python3-apt")
		if err != nil {
			t.Skipf("SKIPPED: this test needs Debian's ansible-core: %v\n%s", err, out)
		}
		must(t, "/", nil, "cp", "-a", r+"/.", dir)
	})
	r := filepath.Join(t.TempDir(), "root")
	must(t, "/", nil, "cp", "-a", template, r)
	must(t, "/", nil, "cp", glob(t, dist, "pfoertner-agent_*_amd64.deb"), filepath.Join(r, "tmp/pfoertner-agent.deb"))
	must(t, "/", nil, "cp", "-r", filepath.Join(work, "installer/ansible"), filepath.Join(r, "tmp/ansible"))
	if err := os.WriteFile(filepath.Join(r, "tmp/ansible/play.yml"), []byte(playbook), 0o644); err != nil {
		t.Fatal(err)
	}
	play := func(arguments string) string {
		t.Helper()
		return must(t, "/", nil, "unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-ec",
			`mount --make-rprivate /; mount -t proc proc "$0/proc"; mount -t tmpfs tmpfs "$0/dev/shm" || { mkdir -p "$0/dev/shm"; mount -t tmpfs tmpfs "$0/dev/shm"; }
			 exec chroot "$0" env HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 ansible-playbook -i localhost, /tmp/ansible/play.yml `+arguments, r)
	}
	play("")
	line(t, r, yaml, `collector: "posture.example:7601"`)
	line(t, r, yaml, `unit: "Amt \"Nord\""`)
	line(t, r, "etc/pfoertner/token", "one-time")
	inside(t, r, nil, "pfoertner-agent id >/dev/null")
	if out := play(""); !strings.Contains(out, "changed=0") {
		t.Errorf("the second run changes something:\n%s", out)
	}
	identity(t, r)
	play("-e pfoertner_agent_token=another")
	line(t, r, "etc/pfoertner/token", "another")
	if out, err := run(t, "/", nil, "chroot", r, "env", "HOME=/root", "LC_ALL=C.UTF-8", "ansible-playbook", "-i", "localhost,", "/tmp/ansible/play.yml",
		"-e", "pfoertner_agent_collector=noport"); err == nil {
		t.Errorf("a collector without a port was accepted:\n%s", out)
	}
}
