package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"pfoertner/agent/identity"
	"pfoertner/agent/probe"
	"pfoertner/agent/service"
	"pfoertner/agent/session"
	"pfoertner/agent/status"
	"pfoertner/agent/testcollector"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

// kept is the service at work in a place.
type kept struct {
	place
	ended chan error
	stop  context.CancelFunc
}

func keep(t *testing.T, p place) *kept {
	t.Helper()
	return guarded(t, p, func(service.Directories) ([]string, error) { return nil, nil })
}

// guarded is keep with something in the place of service.Protect.
func guarded(t *testing.T, p place, guard func(service.Directories) ([]string, error)) *kept {
	t.Helper()
	return started(t, p, guard, identity.KindSoftware)
}

// started is guarded with the device key where it is said.
func started(t *testing.T, p place, guard func(service.Directories) ([]string, error), deviceKey string) *kept {
	t.Helper()
	s := &settings{file: p.path("agent.yaml"), flags: config{DeviceKey: deviceKey, StateDir: p.path("state"), StatusFile: p.path("status.json"), TokenFile: p.path("token")}}
	ctx, cancel := context.WithCancel(context.Background())
	k := &keeper{settings: s, level: new(slog.LevelVar), log: slog.New(slog.NewTextHandler(t.Output(), nil)), guard: guard}
	r := &kept{place: p, ended: make(chan error, 1), stop: cancel}
	var running sync.WaitGroup
	running.Go(func() { r.ended <- k.keep(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return r
}

// shows waits until the public file is as wanted.
func (k *kept) shows(want func(status.Summary) bool) {
	k.t.Helper()
	patience := testcollector.Within(k.t)
	for {
		s, err := status.Read(k.path("status.json"))
		if err == nil && want(s) {
			return
		}
		select {
		case err := <-k.ended:
			k.t.Fatalf("the service has ended: %v", err)
		case <-patience.Done():
			k.t.Fatalf("the status stays %+v, %v", s, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stops says how the service ends when it is stopped.
func (k *kept) stops() {
	k.t.Helper()
	k.stop()
	select {
	case err := <-k.ended:
		if err != nil {
			k.t.Errorf("stopped with %v", err)
		}
	case <-testcollector.Within(k.t).Done():
		k.t.Error("the service does not stop")
	}
}

// emptyPlace has no configuration yet.
func emptyPlace(t *testing.T) place { return place{t, t.TempDir()} }

// breeze#411: an enrolment that failed rolled the installation back. Here
// nothing that can be missing or wrong ends the service, and all of it is said.
func TestBreeze411NothingThatIsMissingOrWrongEndsTheService(t *testing.T) {
	c := issuing(t)
	good := "collector: " + c.Target().Address + "\nca_fingerprint: " + hex.EncodeToString(c.Servers.Fingerprint()) + "\n"
	for name, test := range map[string]struct {
		prepare    func(p place)
		connection status.Connection
		obstacle   status.Obstacle
	}{
		"no configuration":         {func(place) {}, status.NotConfigured, ""},
		"configuration without it": {func(p place) { p.write("agent.yaml", "log_level: info") }, status.NotConfigured, ""},
		"configuration is no YAML": {func(p place) { p.write("agent.yaml", "\t{") }, status.NotConfigured, ""},
		"no CA named":              {func(p place) { p.write("agent.yaml", "collector: "+c.Target().Address); p.write("token", "t-1") }, status.NotEnrolled, ""},
		"no token":                 {func(p place) { p.write("agent.yaml", good) }, status.NotEnrolled, status.NoToken},
		"empty token":              {func(p place) { p.write("agent.yaml", good); p.write("token", "\n") }, status.NotEnrolled, status.NoToken},
		"token of another device":  {func(p place) { p.write("agent.yaml", good); p.write("token", "t-2") }, status.NotEnrolled, status.TokenRefused},
		"wrong fingerprint": {func(p place) {
			p.write("agent.yaml", "collector: "+c.Target().Address+"\nca_fingerprint: "+hex.EncodeToString(make([]byte, 32)))
			p.write("token", "t-1")
		}, status.NotEnrolled, status.WrongAuthority},
		"certificate of another CA": {func(p place) {
			p.write("agent.yaml", "collector: "+c.Target().Address+"\nca_file: "+testcollector.NewAuthority(t, "other").File(t))
			p.write("token", "t-1")
		}, status.NotEnrolled, status.WrongAuthority},
		"CA file is not there": {func(p place) {
			p.write("agent.yaml", "collector: "+c.Target().Address+"\nca_file: "+p.path("none"))
			p.write("token", "t-1")
		}, status.NotEnrolled, ""},
		"nobody listens": {func(p place) {
			p.write("agent.yaml", "collector: 127.0.0.1:1\nca_fingerprint: "+hex.EncodeToString(make([]byte, 32)))
			p.write("token", "t-1")
		}, status.NotEnrolled, status.NotReached},
		"name is not known": {func(p place) {
			p.write("agent.yaml", "collector: nowhere.invalid:443\nca_fingerprint: "+hex.EncodeToString(make([]byte, 32)))
			p.write("token", "t-1")
		}, status.NotEnrolled, status.NotReached},
		"identity is broken": {func(p place) {
			p.write("agent.yaml", good)
			if err := os.Mkdir(p.path("state"), 0o700); err != nil {
				t.Fatal(err)
			}
			p.write("state/identity.json", "{")
		}, status.Broken, ""},
		"state is no directory": {func(p place) { p.write("agent.yaml", good); p.write("state", "") }, status.Broken, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := emptyPlace(t)
			test.prepare(p)
			k := keep(t, p)
			k.shows(func(s status.Summary) bool { return s.Connection == test.connection && s.Obstacle == test.obstacle })
			k.stops()
		})
	}
}

// A software distribution may start the service before it has written the
// configuration.
func TestConfigurationThatComesLaterIsFound(t *testing.T) {
	c := issuing(t)
	k := keep(t, emptyPlace(t))
	k.shows(func(s status.Summary) bool { return s.Connection == status.NotConfigured })
	k.write("token", "t-1")
	k.write("agent.yaml", "collector: "+c.Target().Address+"\nca_file: "+c.Servers.File(t))
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	s.Acknowledge(t, s.Report(t))
	k.shows(func(s status.Summary) bool { return s.Connection == status.Online })
	k.stops()
}

// Somebody tries the agent in a terminal while the service runs. Two streams of
// one device are an alarm, and the notebook would be suspended.
func TestASecondAgentBesideTheServiceEndsAtOnce(t *testing.T) {
	c := issuing(t)
	p := emptyPlace(t)
	p.write("token", "t-1")
	p.write("agent.yaml", "collector: "+c.Target().Address+"\nca_file: "+c.Servers.File(t))
	k := keep(t, p)
	c.Next(t).Welcome(t, time.Hour)
	k.shows(func(s status.Summary) bool { return s.Connection == status.Online })
	terminal := &keeper{
		settings: &settings{file: p.path("agent.yaml"), flags: config{
			DeviceKey: identity.KindSoftware, StateDir: p.path("state"), StatusFile: p.path("status.json"), TokenFile: p.path("token"),
		}},
		level: new(slog.LevelVar), log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		guard: func(service.Directories) ([]string, error) { return nil, nil },
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := terminal.untilError(ctx); !errors.Is(err, identity.ErrInUse) {
		t.Errorf("the second agent ends with %v", err)
	}
	k.shows(func(s status.Summary) bool { return s.Connection == status.Online })
	k.stops()
}

// Everybody may put an agent.yaml where Windows keeps the agent's files, before
// it is installed. It would name another collector, who would get the token.
func TestPlantedConfigurationIsNeverRead(t *testing.T) {
	rogue := testcollector.New(t)
	asked := make(chan struct{}, 1)
	rogue.OnEnrol = func(agentv1.EnrolmentService_EnrolServer) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		return errors.New("never asked")
	}
	rogue.Listen()
	p := emptyPlace(t)
	p.write("agent.yaml", "collector: "+rogue.Target().Address+"\nca_file: "+rogue.Servers.File(t))
	p.write("token", "t-1")
	k := guarded(t, p, func(service.Directories) ([]string, error) {
		if err := os.Rename(p.path("agent.yaml"), p.path("agent.yaml.untrusted-1")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return []string{"agent.yaml"}, nil
	})
	k.shows(func(s status.Summary) bool { return s.Connection == status.NotConfigured })
	k.stops()
	select {
	case <-asked:
		t.Error("the collector of the planted configuration was asked")
	default:
	}
}

// While somebody else decides about a directory, not even a status is written.
func TestNothingIsWrittenWhereFilesCannotBeProtected(t *testing.T) {
	p := enrolledPlace(t, issuing(t))
	refused := make(chan struct{}, 100)
	k := guarded(t, p, func(service.Directories) ([]string, error) {
		refused <- struct{}{}
		return nil, errors.New("in use")
	})
	<-refused
	<-refused // it tries again
	k.stops()
	if _, err := os.Stat(p.path("status.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a status was written (%v)", err)
	}
}

// enrolledPlace is a notebook that is a device of the collector.
func enrolledPlace(t *testing.T, c *testcollector.Collector) place {
	t.Helper()
	p := newPlace(t, "collector: "+c.Target().Address+"\nca_file: "+c.Servers.File(t))
	p.write("token", "t-1")
	if _, err := p.run("enrol"); err != nil {
		t.Fatal(err)
	}
	return p
}

// goldenImage makes the place one whose state was copied from another machine.
func goldenImage(p place) {
	p.t.Helper()
	state, err := identity.Open(p.path("state"), identity.Software{})
	if err != nil {
		p.t.Fatal(err)
	}
	id, err := state.Load()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.Remove(p.path("state/machine.json")); err != nil {
		p.t.Fatal(err)
	}
	elsewhere := identity.Traits{Model: "another machine", Serial: "another one", Install: "another one"}
	if err := errors.Join(state.Bind(elsewhere), state.Save(id)); err != nil {
		p.t.Fatal(err)
	}
}

func TestKeyFromAGoldenImageIsNotUsed(t *testing.T) {
	if m := traits(probe.NewHost()); m == (identity.Traits{}) {
		t.Skip("NOT RUN: this machine states neither model, serial number nor installation")
	}
	c := issuing(t)
	p := enrolledPlace(t, c)
	goldenImage(p)
	p.write("state/updates.json", "of another machine")
	before, err := os.ReadFile(p.path("state/identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(p.path("token")); err != nil {
		t.Fatal(err)
	}
	k := keep(t, p)
	k.shows(func(s status.Summary) bool {
		return s.Copied && s.Connection == status.NotEnrolled && s.Obstacle == status.NoToken
	})
	k.stops()
	if aside, err := filepath.Glob(p.path("state/identity.json.other-machine-*")); err != nil || len(aside) != 1 {
		t.Errorf("set aside are %v, %v", aside, err)
	}

	if _, err := os.Stat(p.path("state/updates.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is known of the other machine is still there (%v)", err)
	}

	// With a token of its own the notebook becomes a device of its own.
	p.write("token", "t-1")
	k = keep(t, p)
	s := c.Next(t)
	s.Welcome(t, time.Hour)
	s.Acknowledge(t, s.Report(t))
	k.shows(func(s status.Summary) bool { return !s.Copied && s.Connection == status.Online })
	k.stops()
	after, err := os.ReadFile(p.path("state/identity.json"))
	if err != nil || string(after) == string(before) {
		t.Errorf("the identity is that of the image (%v)", err)
	}
}

func TestImageWithAKeyIsRefused(t *testing.T) {
	p := enrolledPlace(t, issuing(t))
	if out, err := p.run("prepare-image"); err == nil {
		t.Errorf("a machine with a key is called ready: %s", out)
	}
	if err := os.Remove(p.path("token")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.run("prepare-image"); err == nil || !strings.Contains(err.Error(), "key") {
		t.Errorf("a machine with a key alone: %v", err)
	}
	for _, name := range []string{"state/update-search.json", "state/" + session.CatalogueFile} {
		p.write(name, "{}")
	}
	if out, err := p.run("prepare-image", "--remove"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	if out, err := p.run("prepare-image"); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	left, err := os.ReadDir(p.path("state"))
	if err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
	if _, err := os.Stat(p.path("agent.yaml")); err != nil {
		t.Errorf("the configuration of the image is gone: %v", err)
	}
}

// A person compares what id shows with what the collector was shown.
func TestKeyOfAnotherMachineIsNotShownAsThisOnes(t *testing.T) {
	if m := traits(probe.NewHost()); m == (identity.Traits{}) {
		t.Skip("NOT RUN: this machine states neither model, serial number nor installation")
	}
	p := enrolledPlace(t, issuing(t))
	goldenImage(p)
	out, err := p.run("id", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var card idCard
	if err := json.Unmarshal([]byte(out), &card); err != nil {
		t.Fatal(err)
	}
	if card.Fingerprint != "" || card.DeviceID != "" || card.Asset != "" || !strings.Contains(card.Problem, "another machine") {
		t.Errorf("shown is %+v", card)
	}

	// Enrolling takes a key of its own at the first attempt.
	out, err = p.run("enrol")
	if err != nil || !strings.Contains(out, "set aside") || !strings.Contains(out, "Enrolled") {
		t.Errorf("%q, %v", out, err)
	}
}

func TestImageWithATokenIsRefused(t *testing.T) {
	p := newPlace(t, "")
	p.write("token", "t-1")
	if _, err := p.run("prepare-image"); err == nil || !strings.Contains(err.Error(), "token") || strings.Contains(err.Error(), "t-1") {
		t.Errorf("%v", err)
	}
	if _, err := p.run("prepare-image", "--remove"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p.path("token")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the token is still there (%v)", err)
	}
}

func TestImageIsReadyBeforeTheFirstStart(t *testing.T) {
	p := newPlace(t, "")
	if out, err := p.run("prepare-image"); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := os.Stat(p.path("state")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has made a state directory (%v)", err)
	}
}

func TestPurgeLeavesNothing(t *testing.T) {
	p := enrolledPlace(t, issuing(t))
	for _, name := range []string{
		"status.json", ".status.json.12345", "state/notices.json", "state/updates.json", "state/update-search.json",
		"state/" + session.CatalogueFile, "state/.updates.json.12345", "state/identity.next.json",
	} {
		p.write(name, "{}")
	}
	if out, err := p.run("purge"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	// The place was the directory of configuration and status, too.
	if _, err := os.Stat(p.dir); !errors.Is(err, fs.ErrNotExist) {
		left, _ := filepath.Glob(p.path("*"))
		t.Errorf("left are %q (%v)", left, err)
	}
}

func TestPurgeKeepsTheIdentityWhenAsked(t *testing.T) {
	p := enrolledPlace(t, issuing(t))
	p.write("state/updates.json", "{}")
	before, err := os.ReadFile(p.path("state/identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := p.run("purge", "--keep-identity"); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	after, err := os.ReadFile(p.path("state/identity.json"))
	if err != nil || string(after) != string(before) {
		t.Errorf("the identity has changed: %v", err)
	}
	for _, name := range []string{"state/updates.json", "token", "agent.yaml"} {
		if _, err := os.Stat(p.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", name, err)
		}
	}
}

// Whatever directory somebody has set: other files in it are nobody's business.
func TestPurgeTouchesOnlyTheAgentsFiles(t *testing.T) {
	p := enrolledPlace(t, issuing(t))
	p.write("state/somebody.txt", "mine")
	if _, err := p.run("purge"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(p.path("state/somebody.txt")); err != nil || string(b) != "mine" {
		t.Errorf("%q, %v", b, err)
	}
}

// A refusal at enrolment must not tell a token.
func TestTokenIsNeverLogged(t *testing.T) {
	c := testcollector.New(t)
	c.OnEnrol = func(s agentv1.EnrolmentService_EnrolServer) error {
		if _, err := s.Recv(); err != nil {
			return err
		}
		return grpcstatus.Error(codes.PermissionDenied, "enrolment refused")
	}
	c.Listen()
	p := newPlace(t, "collector: "+c.Target().Address+"\nca_file: "+c.Servers.File(t))
	p.write("token", "very-secret-token")
	out, err := p.run("enrol")
	if err == nil {
		t.Fatal("enrolled")
	}
	for _, text := range []string{out, err.Error()} {
		if strings.Contains(text, "very-secret-token") {
			t.Errorf("the token stands in %q", text)
		}
	}
}

// Group policy, an installer or an administrator changes what holds: the service
// notices by itself. A mistake takes nothing away.
func TestChangesOfTheConfigurationAreNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(place)
		noticed bool
	}{
		"another collector":     {func(p place) { p.write("agent.yaml", "collector: b:2") }, true},
		"nothing":               {func(place) {}, false},
		"the same, written new": {func(p place) { p.write("agent.yaml", "collector: a:1\n\n") }, false},
		"a mistake":             {func(p place) { p.write("agent.yaml", "colour: red") }, false},
		"no collector any more": {func(p place) { p.write("agent.yaml", "") }, false},
		"a token":               {func(p place) { p.write("token", "t-2") }, true},
	} {
		t.Run(name, func(t *testing.T) {
			p := emptyPlace(t)
			p.write("agent.yaml", "collector: a:1")
			s := &settings{file: p.path("agent.yaml"), flags: config{TokenFile: p.path("token")}}
			held, err := s.load()
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				k := &keeper{settings: s, level: new(slog.LevelVar), log: slog.New(slog.DiscardHandler)}
				ctx, cancel := context.WithCancelCause(t.Context())
				var watching sync.WaitGroup
				watching.Go(func() { k.watch(ctx, held, cancel) })
				synctest.Wait()
				c.change(p)
				time.Sleep(3 * rereadEvery)
				synctest.Wait()
				if noticed := errors.Is(context.Cause(ctx), errChanged); noticed != c.noticed {
					t.Errorf("noticed: %v", noticed)
				}
				cancel(nil)
				watching.Wait()
			})
		})
	}
}

// Without a TPM, and with a good token at hand, there is still no software key.
func TestMachineWithoutATPMWaitsForOne(t *testing.T) {
	if _, err := os.Stat("/dev/tpmrm0"); err == nil {
		t.Skip("NOT RUN: this machine has a TPM")
	}
	c := issuing(t)
	p := newPlace(t, "collector: "+c.Target().Address+"\nca_fingerprint: "+hex.EncodeToString(c.Servers.Fingerprint()))
	p.write("token", "t-1")
	k := started(t, p, func(service.Directories) ([]string, error) { return nil, nil }, identity.KindTPM)
	k.shows(func(s status.Summary) bool { return s.Connection == status.NoTPM })
	k.stops()
	if _, err := os.Stat(p.path("state/identity.json")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is an identity: %v", err)
	}
}

func TestSoftwareKeyUnderATPMSettingIsNotUsedAndSaysSo(t *testing.T) {
	c := issuing(t)
	p := enrolledPlace(t, c)
	before, err := os.ReadFile(p.path("state/identity.json"))
	if err != nil {
		t.Fatal(err)
	}
	k := started(t, p, func(service.Directories) ([]string, error) { return nil, nil }, identity.KindTPM)
	k.shows(func(s status.Summary) bool { return s.Connection == status.OtherProtection })
	if !c.Quiet(100 * time.Millisecond) {
		t.Error("a stream was opened with the software key")
	}
	k.stops()
	if after, err := os.ReadFile(p.path("state/identity.json")); err != nil || string(after) != string(before) {
		t.Errorf("the identity was touched: %v", err)
	}
}
