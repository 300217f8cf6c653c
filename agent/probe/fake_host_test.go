package probe

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"testing"
	"testing/fstest"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// testNow is the notebook's clock in tests: the day the captures were made.
var testNow = time.Date(2026, time.November, 21, 19, 0, 0, 0, time.UTC)

// layTrees lays captured file trees of testdata over one another. All files
// have the same time of change.
func layTrees(t testing.TB, dirs ...string) fstest.MapFS {
	t.Helper()
	tree := fstest.MapFS{}
	for _, dir := range dirs {
		root := os.DirFS(path.Join("testdata", dir))
		err := fs.WalkDir(root, ".", func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			content, err := fs.ReadFile(root, name)
			tree[name] = &fstest.MapFile{Data: content, ModTime: testNow.Add(-time.Hour)}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// file is one file of a prepared tree.
func file(content string) *fstest.MapFile {
	return &fstest.MapFile{Data: []byte(content), ModTime: testNow.Add(-time.Hour)}
}

// with returns a copy of tree with other files laid over it; nil removes one.
func with(tree, files fstest.MapFS) fstest.MapFS {
	tree = maps.Clone(tree)
	for name, f := range files {
		if f == nil {
			delete(tree, name)
			continue
		}
		tree[name] = f
	}
	return tree
}

// observe runs one probe as the agent does.
func observe(t testing.TB, h Host, p Probe) *posturev1.Evidence {
	t.Helper()
	if h.Now == nil {
		h.Now = func() time.Time { return testNow }
	}
	return NewCollector(h, []Probe{p}).Collect(t.Context())
}

func wantState(t testing.TB, got *posturev1.Reading, want posturev1.ReadingState) {
	t.Helper()
	if got.GetState() != want {
		t.Errorf("reading is %s (%s), want %s", got.GetState(), got.GetReason(), want)
	}
}

const (
	observed      = posturev1.ReadingState_READING_STATE_OBSERVED
	failed        = posturev1.ReadingState_READING_STATE_FAILED
	notApplicable = posturev1.ReadingState_READING_STATE_NOT_APPLICABLE
)

// denied is a file tree in which some files may not be read.
type denied struct {
	fs.FS
	names []string
}

func (d denied) Open(name string) (fs.File, error) {
	if slices.Contains(d.names, name) {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return d.FS.Open(name)
}

func (d denied) Stat(name string) (fs.FileInfo, error) {
	if slices.Contains(d.names, name) {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: fs.ErrPermission}
	}
	return fs.Stat(d.FS, name)
}

type fakeSystem SystemInfo

func (s fakeSystem) Info(context.Context) (SystemInfo, error) { return SystemInfo(s), nil }

// fakeNetwork is a recorded network. Routes hold prefixes, the narrowest wins;
// an address outside all of them has no route.
type fakeNetwork struct {
	links        []Link
	routes       map[string]Route
	policies     []IPsecPolicy
	policiesErr  error
	wireguard    []WireGuardLink
	wireguardErr error
}

func (n fakeNetwork) Links(context.Context) ([]Link, error) { return n.links, nil }

func (n fakeNetwork) Route(_ context.Context, addr netip.Addr) (Route, error) {
	best, found := -1, Route{}
	for prefix, route := range n.routes {
		if p := netip.MustParsePrefix(prefix); p.Contains(addr) && p.Bits() > best {
			best, found = p.Bits(), route
		}
	}
	if best < 0 {
		return Route{}, ErrNoRoute
	}
	return found, nil
}

func (n fakeNetwork) IPsecPolicies(context.Context) ([]IPsecPolicy, error) {
	return n.policies, n.policiesErr
}

func (n fakeNetwork) WireGuard(context.Context) ([]WireGuardLink, error) {
	return n.wireguard, n.wireguardErr
}

type fakeProcesses []string

func (p fakeProcesses) Running(_ context.Context, names ...string) ([]string, error) {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !slices.Contains(p, name) }), nil
}

// fakeBus knows units by name and NetworkManager's connections.
type fakeBus struct {
	units       map[string]bool
	connections []BusConnection
}

func (b fakeBus) UnitActive(_ context.Context, unit string) (bool, error) {
	active, ok := b.units[unit]
	if !ok {
		return false, ErrNotFound
	}
	return active, nil
}

func (b fakeBus) VPNConnections(context.Context) ([]BusConnection, error) {
	return b.connections, nil
}

type fakeFirewall struct {
	chains []FilterChain
	err    error
}

func (f fakeFirewall) InputChains(context.Context) ([]FilterChain, error) { return f.chains, f.err }

var errNoRights = errors.New("operation not permitted")
