//go:build linux

package packages

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const (
	state = "var/lib/pfoertner-agent"
	yaml  = "etc/pfoertner/agent.yaml"
)

// newer builds the packages of a program as the next version, and returns where.
// The program in them only says that it is the next one.
func newer(t *testing.T, work, program string) string {
	t.Helper()
	dir := t.TempDir()
	next := filepath.Join(dir, "next")
	if err := os.WriteFile(next, []byte("#!/bin/sh\necho next\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	must(t, work, []string{"SOURCE_DATE_EPOCH=" + epoch}, "installer/linux/build", filepath.Join(work, ".tools/dist/nfpm"),
		program, next, "amd64", "1.3.0", dir)
	return dir
}

// isNext says that a root has the newer program.
func isNext(t *testing.T, root, program string) {
	t.Helper()
	inside(t, root, nil, "test $(pfoertner-"+program+") = next")
}

// put copies a package into a root.
func put(t *testing.T, root, name string) {
	t.Helper()
	must(t, "/", nil, "cp", name, filepath.Join(root, "tmp/package"))
}

// identity stands for what an enrolled agent has.
func identity(t *testing.T, root string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, state, "identity.json"), []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func line(t *testing.T, root, name, want string) {
	t.Helper()
	if text := "\n" + content(t, root, name) + "\n"; !strings.Contains(text, "\n"+want+"\n") {
		t.Errorf("%s has no line %q:%s", name, want, text)
	}
}

// deb installs as an unattended roll-out does: no terminal, no systemd.
func deb(t *testing.T, dist, work string) {
	agent := glob(t, dist, "pfoertner-agent_*_amd64.deb")
	t.Run("the environment presets the agent, upgrade keeps what is there, purge leaves nothing", func(t *testing.T) {
		r := root(t)
		put(t, r, agent)
		inside(t, r, []string{"PFOERTNER_COLLECTOR=posture.example:7601", `PFOERTNER_TOKEN_FILE=/run/a "token"`}, "dpkg -i /tmp/package </dev/null")
		line(t, r, yaml, `collector: "posture.example:7601"`)
		line(t, r, yaml, `token_file: "/run/a \"token\""`)
		line(t, r, yaml, `ca_file: ""`)
		inside(t, r, nil, "pfoertner-agent version; test $(stat -c %a:%U /"+state+") = 700:root")
		if !exists(r, "etc/systemd/system/multi-user.target.wants/pfoertner-agent.service") {
			t.Error("the service does not start at the next boot")
		}

		identity(t, r)
		inside(t, r, nil, "echo '# by hand' >>/"+yaml)
		put(t, r, glob(t, newer(t, work, "agent"), "*.deb"))
		inside(t, r, []string{"PFOERTNER_COLLECTOR=another.example:7601"}, "dpkg -i /tmp/package </dev/null")
		isNext(t, r, "agent")
		line(t, r, yaml, "# by hand")
		line(t, r, yaml, `collector: "posture.example:7601"`)
		if content(t, r, state+"/identity.json") != "key" {
			t.Error("the upgrade lost the identity")
		}

		inside(t, r, nil, "dpkg --remove pfoertner-agent </dev/null")
		if exists(r, "usr/bin/pfoertner-agent") || !exists(r, state+"/identity.json") || !exists(r, yaml) {
			t.Error("removal takes the program, and keeps identity and settings")
		}
		inside(t, r, nil, "dpkg --purge pfoertner-agent </dev/null")
		for _, name := range []string{state, "var/cache/pfoertner-agent", "etc/pfoertner", "etc/systemd/system/multi-user.target.wants/pfoertner-agent.service", "usr/share/pfoertner-agent"} {
			if exists(r, name) {
				t.Errorf("purge left /%s", name)
			}
		}
	})
	t.Run("a file presets the agent, and settings that are there already are kept", func(t *testing.T) {
		r := root(t)
		put(t, r, agent)
		inside(t, r, nil, `mkdir /etc/pfoertner; printf 'COLLECTOR=a.example:7601 \n# no setting\nCA_FINGERPRINT=0A0B\nUNKNOWN=$(touch /tmp/run)\n' >/etc/pfoertner/preseed; dpkg -i /tmp/package </dev/null`)
		line(t, r, yaml, `collector: "a.example:7601"`)
		line(t, r, yaml, `ca_fingerprint: "0A0B"`)
		if exists(r, "tmp/run") {
			t.Error("the file was run")
		}
		r = root(t)
		put(t, r, agent)
		inside(t, r, nil, "mkdir /etc/pfoertner; echo 'collector: mine:7601' >/"+yaml+"; dpkg -i /tmp/package </dev/null")
		if got := content(t, r, yaml); got != "collector: mine:7601" {
			t.Errorf("the settings became %s", got)
		}
	})
	t.Run("nothing in it fails an installation", func(t *testing.T) {
		r := root(t)
		put(t, r, agent)
		// A directory where the settings belong: they cannot be written.
		inside(t, r, nil, "mkdir -p /etc/pfoertner/agent.yaml.new; dpkg -i /tmp/package </dev/null; dpkg --audit; pfoertner-agent version")
	})
	t.Run("collector and gate", func(t *testing.T) {
		r := root(t)
		for _, program := range []string{"collector", "gate"} {
			put(t, r, glob(t, dist, "pfoertner-"+program+"_*_amd64.deb"))
			inside(t, r, nil, "dpkg -i /tmp/package </dev/null; pfoertner-"+program+" version")
			if program == "collector" {
				// As docs/deployment.md says; the unit waits for what comes of it.
				inside(t, r, nil, "runuser -u pfoertner-collector -- pfoertner-collector init --config /etc/pfoertner-collector/collector.yaml"+
					" --name localhost --operator-name anna --operator-out /var/lib/pfoertner-collector/operator; test -d /var/lib/pfoertner-collector/pki")
			}
			settings := "etc/pfoertner-" + program + "/" + program + ".yaml"
			inside(t, r, nil, "echo '# by hand' >>/"+settings)
			put(t, r, glob(t, newer(t, work, program), "*.deb"))
			inside(t, r, nil, "echo state >/var/lib/pfoertner-"+program+"/state; dpkg -i /tmp/package </dev/null")
			isNext(t, r, program)
			line(t, r, settings, "# by hand")
			line(t, r, "var/lib/pfoertner-"+program+"/state", "state")
		}
		inside(t, r, nil, "touch /etc/pfoertner-gate/gate.key; test $(stat -c %a:%U:%G /var/lib/pfoertner-collector) = 700:pfoertner-collector:pfoertner-collector")
		inside(t, r, nil, "dpkg --purge pfoertner-collector pfoertner-gate </dev/null; ! getent passwd pfoertner-collector")
		for _, name := range []string{"var/lib/pfoertner-collector", "var/lib/pfoertner-gate", "etc/pfoertner-collector", "etc/pfoertner-gate"} {
			if exists(r, name) {
				t.Errorf("purge left /%s", name)
			}
		}
	})
}

// rpm installs into a root that has no dpkg's helpers. Its base is a Debian all
// the same: only programs that every distribution has are used of it.
func rpm(t *testing.T, dist, work string) {
	r := root(t)
	inside(t, r, nil, "rm /usr/bin/deb-systemd-helper /usr/bin/deb-systemd-invoke")
	do := func(environment []string, arguments ...string) {
		t.Helper()
		must(t, "/", environment, "rpm", append([]string{"--root", r, "--dbpath", "/var/lib/rpm"}, arguments...)...)
	}
	do(nil, "--initdb")
	do([]string{"PFOERTNER_COLLECTOR=posture.example:7601"}, "-i", glob(t, dist, "pfoertner-agent-*.x86_64.rpm"))
	line(t, r, yaml, `collector: "posture.example:7601"`)
	inside(t, r, nil, "pfoertner-agent version")
	identity(t, r)
	do(nil, "-U", glob(t, newer(t, work, "agent"), "*.rpm"))
	do(nil, "-V", "pfoertner-agent")
	isNext(t, r, "agent")
	if content(t, r, state+"/identity.json") != "key" {
		t.Error("the upgrade lost the identity")
	}
	line(t, r, yaml, `collector: "posture.example:7601"`)
	do(nil, "-e", "pfoertner-agent")
	if exists(r, "usr/bin/pfoertner-agent") || !exists(r, state+"/identity.json") {
		t.Error("removal takes the program and keeps the identity")
	}
	for _, program := range []string{"collector", "gate"} {
		do(nil, "-i", glob(t, dist, "pfoertner-"+program+"-*.x86_64.rpm"))
		inside(t, r, nil, "pfoertner-"+program+" version; echo '# by hand' >>/etc/pfoertner-"+program+"/"+program+".yaml")
		do(nil, "-U", glob(t, newer(t, work, program), "*.rpm"))
		line(t, r, "etc/pfoertner-"+program+"/"+program+".yaml", "# by hand")
		do(nil, "-e", "pfoertner-"+program)
	}
}
