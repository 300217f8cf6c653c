package session

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/testcollector"
	"pfoertner/internal/signed"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// usedCatalogue is the real catalogue, and remembers what it was told.
type usedCatalogue struct {
	probe.VPNCatalogue

	mu   sync.Mutex
	last string
}

func (u *usedCatalogue) Extend(content []byte) error {
	err := u.VPNCatalogue.Extend(content)
	if err == nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.last = string(content)
	}
	return err
}

func (u *usedCatalogue) inUse() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.last
}

func catalogueText(sequence int, product string) string {
	return fmt.Sprintf(`{"format": 1, "sequence": %d, "clients": [{"product": %q, "windows": {"services": ["examplevpn"]}}]}`+"\n", sequence, product)
}

// signedBy signs a catalogue as a reference signer of the authority.
func signedBy(t *testing.T, a *testcollector.Authority, kind, content string, life time.Duration) []byte {
	t.Helper()
	signer := a.Issue(t, testcollector.Subject{URI: "urn:pfoertner:reference-signer:test", Signer: true, Life: life})
	signer.Certificate = signer.Certificate[:1]
	file, err := signed.Sign(kind, []byte(content), *signer)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// keeping is a keeper with its log, as after a start.
func keeping(t *testing.T, state *identity.State) (*catalogueKeeper, *usedCatalogue, *bytes.Buffer) {
	t.Helper()
	log := &bytes.Buffer{}
	use := &usedCatalogue{}
	return newCatalogueKeeper(state, use, slog.New(slog.NewTextHandler(log, nil))), use, log
}

func TestCatalogueOfTheCollector(t *testing.T) {
	c := testcollector.New(t)
	roots, now := c.Servers.Pool(), time.Now()
	sign := func(content string) []byte {
		return signedBy(t, c.Servers, signed.VPNCatalogue, content, time.Hour)
	}
	second, third := catalogueText(2, "second"), catalogueText(3, "third")
	stranger := testcollector.NewAuthority(t, "stranger")
	role := c.Servers.Issue(t, testcollector.Subject{URI: "urn:pfoertner:collector:test"})
	tampered := bytes.Replace(sign(second), []byte("second"), []byte("secund"), 1)

	for _, s := range []struct {
		name  string
		files [][]byte
		want  string // in use at the end
		log   string // told of refusals; empty: none
	}{
		{name: "the first one is used", files: [][]byte{sign(second)}, want: second},
		{name: "a newer one replaces it", files: [][]byte{sign(second), sign(third)}, want: third},
		{name: "the same one again changes nothing", files: [][]byte{sign(second), sign(second)}, want: second},
		{name: "withdrawn", files: [][]byte{sign(second), nil}, want: ""},
		{name: "nothing in force, nothing known", files: [][]byte{nil}, want: ""},
		{name: "rollback is refused", files: [][]byte{sign(third), sign(second)}, want: third, log: "sequence 2 is older than 3"},
		{name: "rollback after a withdrawal too", files: [][]byte{sign(third), nil, sign(second)}, want: "", log: "sequence 2 is older than 3"},
		{name: "in force again after a withdrawal", files: [][]byte{sign(third), nil, sign(third)}, want: third},
		{name: "another content with a used sequence", files: [][]byte{sign(second), sign(catalogueText(2, "other"))}, want: second, log: "used for another content"},
		{name: "changed after it was signed", files: [][]byte{sign(third), tampered}, want: third, log: "signature does not fit"},
		{name: "signed under another authority", files: [][]byte{sign(second), signedBy(t, stranger, signed.VPNCatalogue, third, time.Hour)}, want: second, log: "from another authority than the collector"},
		{name: "reference values are no catalogue", files: [][]byte{sign(second), signedBy(t, c.Servers, signed.References, third, time.Hour)}, want: second, log: "references"},
		{name: "a signer whose certificate has ended", files: [][]byte{sign(second), signedBy(t, c.Servers, signed.VPNCatalogue, third, -time.Minute)}, want: second, log: "expired"},
		{name: "not signed", files: [][]byte{sign(second), []byte(third)}, want: second, log: "carries no signature"},
		{name: "signed nonsense", files: [][]byte{sign(second), sign("nonsense")}, want: second, log: "VPN catalogue"},
		{name: "a client that would match everything", files: [][]byte{sign(second),
			sign(`{"format": 1, "sequence": 4, "clients": [{"product": "a", "windows": {"services": ["*"]}}]}`)}, want: second, log: "no name and no beginning of one"},
		{name: "a later format", files: [][]byte{sign(second), sign(`{"format": 2, "sequence": 4}`)}, want: second, log: "format 2"},
	} {
		t.Run(s.name, func(t *testing.T) {
			state := c.Enrolled(t, time.Hour)
			k, use, log := keeping(t, state)
			for _, file := range s.files {
				k.receive(file, roots, now)
				// Every stream brings it again.
				k.receive(file, roots, now)
			}
			if got := use.inUse(); got != s.want {
				t.Errorf("in use %q\nwant %q", got, s.want)
			}
			if refusals := strings.Count(log.String(), "is refused"); (refusals == 1) != (s.log != "") || !strings.Contains(log.String(), s.log) {
				t.Errorf("logged %q\nwant one refusal about %q", log, s.log)
			}
			// The agent starts again.
			again := &usedCatalogue{}
			if err := RestoreVPNCatalogue(state, again, now); err != nil || again.inUse() != s.want {
				t.Errorf("after a restart %q is in use (%v)\nwant %q", again.inUse(), err, s.want)
			}
		})
	}

	t.Run("a certificate of another role", func(t *testing.T) {
		role.Certificate = role.Certificate[:1]
		if _, err := signed.Sign(signed.VPNCatalogue, []byte(second), *role); err == nil {
			t.Error("a collector's certificate signed a catalogue")
		}
	})
}

// What lies on the disk is believed no more than what comes over the network.
func TestKeptCatalogueIsVerifiedAgain(t *testing.T) {
	c := testcollector.New(t)
	roots, now := c.Servers.Pool(), time.Now()
	first := catalogueText(1, "first")
	file := signedBy(t, c.Servers, signed.VPNCatalogue, first, time.Hour)
	for _, s := range []struct {
		name   string
		change func(t *testing.T, path string)
		later  time.Duration
		fails  bool
	}{
		{name: "signer ended meanwhile", later: 2 * time.Hour, fails: true},
		{name: "changed on the disk", change: func(t *testing.T, path string) {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			content = bytes.Replace(content, []byte(`"highest":1`), []byte(`"highest":7`), 1)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}, fails: true},
		{name: "broken: as good as none", change: func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			state := c.Enrolled(t, time.Hour)
			k, _, _ := keeping(t, state)
			if !k.receive(file, roots, now) {
				t.Fatal("not taken")
			}
			if s.change != nil {
				s.change(t, filepath.Join(filepath.Dir(state.Path()), CatalogueFile))
			}
			k, use, _ := keeping(t, state)
			if err := k.restore(roots, now.Add(s.later)); (err != nil) != s.fails || use.inUse() != "" {
				t.Errorf("restored %q, %v", use.inUse(), err)
			}
		})
	}
}

// A file that is kept and did not hold up is tried again when it comes again:
// the clock may have been wrong.
func TestCatalogueIsUsedOnceTheClockIsRight(t *testing.T) {
	c := testcollector.New(t)
	roots, now := c.Servers.Pool(), time.Now()
	content := catalogueText(1, "first")
	file := signedBy(t, c.Servers, signed.VPNCatalogue, content, time.Hour)
	state := c.Enrolled(t, time.Hour)
	k, _, _ := keeping(t, state)
	k.receive(file, roots, now)

	k, use, _ := keeping(t, state)
	if err := k.restore(roots, now.Add(48*time.Hour)); err == nil {
		t.Fatal("restored although its signer has ended")
	}
	if !k.receive(file, roots, now) || use.inUse() != content {
		t.Errorf("in use %q", use.inUse())
	}
}

func TestCatalogueComesOverTheStreamAndIsReadWithAtOnce(t *testing.T) {
	c := testcollector.Start(t)
	use := &usedCatalogue{}
	state := c.Enrolled(t, time.Hour)
	a := start(t, c, state, func(a *agent) { a.catalogue = newCatalogueKeeper(state, use, a.Log) })
	s, _ := opened(t, c)
	content := catalogueText(1, "first")
	say := func(file []byte) {
		s.Say(t, &agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnCatalogue{VpnCatalogue: &agentv1.VpnCatalogue{SignedFile: file}}})
	}
	say([]byte("nonsense")) // the stream goes on
	before := a.machine.reads("vpn")
	say(signedBy(t, c.Servers, signed.VPNCatalogue, content, time.Hour))
	patience := testcollector.Within(t)
	for a.machine.reads("vpn") == before {
		if patience.Err() != nil {
			t.Fatal("the VPN section is not read again")
		}
		runtime.Gosched()
	}
	if use.inUse() != content {
		t.Errorf("in use %q", use.inUse())
	}
}

func FuzzCatalogueRecord(f *testing.F) {
	f.Add([]byte(`{"format":1,"highest":3,"content":"AA==","signed_file":"AA=="}`))
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		if r, err := parseCatalogueRecord(content); err == nil && r.Format != catalogueFormat {
			t.Errorf("took format %d", r.Format)
		}
	})
}
