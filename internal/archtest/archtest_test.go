// Package archtest holds the house rules that the compiler does not: who may
// import whom, where the operating system may be touched, which code is pure,
// and that every package says what it is for.
//
// It reads source files without regard to build constraints, so the rules hold
// for Linux and Windows alike. Run it with -count=1: the go tool does not know
// that it reads the whole tree.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "pfoertner"

// source is one parsed Go file of the module.
type source struct {
	path    string // slash-separated, from the module's root
	dir     string
	test    bool
	imports []string
	syntax  *ast.File
}

func tree(t *testing.T) []source {
	t.Helper()
	root := filepath.Join("..", "..")
	var files []source
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || rel == "dist" || rel == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, ".pb.go") {
			return nil
		}
		src, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), rel, src, parser.ParseComments)
		if err != nil {
			return err
		}
		s := source{path: rel, dir: path.Dir(rel), test: strings.HasSuffix(rel, "_test.go"), syntax: f}
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, name)
		}
		files = append(files, s)
		return nil
	})
	if err != nil {
		t.Fatalf("reading the module: %v", err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d Go files found: the rules would hold for nothing", len(files))
	}
	return files
}

func under(dir, room string) bool {
	return dir == room || strings.HasPrefix(dir, room+"/")
}

func imports(importPath, room string) bool {
	return under(strings.TrimPrefix(importPath, module+"/"), room) && strings.HasPrefix(importPath, module+"/")
}

// forbidden says why a file in dir must not import importPath; empty when it
// may. name is the file's base name.
func forbidden(dir, name, importPath string, test bool) string {
	switch {
	case under(dir, "agent") && imports(importPath, "collector"):
		return "the agent never imports the collector"
	case under(dir, "collector") && imports(importPath, "agent"):
		return "the collector never imports the agent"
	case under(dir, "internal") && (imports(importPath, "agent") || imports(importPath, "collector")):
		return "internal imports neither agent nor collector"
	case under(dir, "proto") && strings.HasPrefix(importPath, module+"/") && !imports(importPath, "proto"):
		return "proto imports only proto"
	}
	if test {
		return ""
	}
	siblings := []string{"collector/intake", "collector/gateway", "collector/fleet", "collector/console", "collector/store"}
	for _, room := range siblings {
		for _, other := range siblings {
			if room != other && under(dir, room) && imports(importPath, other) {
				return fmt.Sprintf("%s and %s know each other only through collector/main.go", room, other)
			}
		}
	}
	pure := dir == "collector/appraisal" || dir == "collector/audit" || dir == "collector/endorsement" || dir == "collector/admission" && name == "decide.go"
	if pure && slices.ContainsFunc([]string{"os", "net", "net/http", "database/sql", "os/exec"}, func(p string) bool { return p == importPath }) {
		return "this code is pure: it gets everything as arguments"
	}
	if (importPath == "database/sql" || strings.HasPrefix(importPath, "modernc.org/sqlite")) && !under(dir, "collector/store") {
		return "only collector/store knows SQL"
	}
	return operatingSystem(dir, name, importPath)
}

// operatingSystem keeps what touches the operating system in the files made
// for it. The programs that try the product out are not part of it.
func operatingSystem(dir, name, importPath string) string {
	if under(dir, "internal/trial") || under(dir, "internal/e2e") {
		return ""
	}
	touches := importPath == "os/exec" ||
		strings.HasPrefix(importPath, "golang.org/x/sys") ||
		strings.HasPrefix(importPath, "golang.zx2c4.com/wireguard/windows") ||
		strings.HasPrefix(importPath, "github.com/go-ole/go-ole") ||
		strings.HasPrefix(importPath, "github.com/shirou/gopsutil")
	rooms := []string{"agent/probe", "agent/service", "agent/notice"}
	host := slices.Contains(rooms, dir) && strings.HasPrefix(name, "host")
	if touches && !host {
		return "the operating system is touched only in host*.go of " + strings.Join(rooms, ", ")
	}
	return ""
}

func TestImportsStayInsideTheirRooms(t *testing.T) {
	for _, f := range tree(t) {
		for _, i := range f.imports {
			if why := forbidden(f.dir, path.Base(f.path), i, f.test); why != "" {
				t.Errorf("%s imports %s: %s", f.path, i, why)
			}
		}
	}
}

func TestImportRulesCatchWhatTheyAreFor(t *testing.T) {
	for _, c := range []struct{ dir, name, importPath string }{
		{"agent/session", "session.go", "pfoertner/collector/store"},
		{"collector/intake", "intake.go", "pfoertner/agent/probe"},
		{"internal/mtls", "mtls.go", "pfoertner/agent/identity"},
		{"collector/intake", "intake.go", "pfoertner/collector/store"},
		{"collector/appraisal", "appraise.go", "os"},
		{"collector/admission", "decide.go", "net"},
		{"collector/fleet", "list.go", "database/sql"},
		{"agent/probe", "volumes.go", "golang.org/x/sys/unix"},
		{"agent/session", "session.go", "os/exec"},
		{"agent/notice", "notice.go", "golang.org/x/sys/windows"},
		{"agent", "service.go", "github.com/go-ole/go-ole"},
		{"agent", "main.go", "github.com/shirou/gopsutil/v3/host"},
	} {
		if forbidden(c.dir, c.name, c.importPath, false) == "" {
			t.Errorf("%s/%s may import %s: the rule is gone", c.dir, c.name, c.importPath)
		}
	}
	if why := forbidden("agent/probe", "host_linux.go", "golang.org/x/sys/unix", false); why != "" {
		t.Errorf("the host files may not touch the system any more: %s", why)
	}
}

func TestPureCodeNeverAsksTheClock(t *testing.T) {
	for _, f := range tree(t) {
		pure := f.dir == "collector/appraisal" || f.dir == "collector/audit" || f.dir == "collector/endorsement" || f.path == "collector/admission/decide.go"
		if f.test || !pure {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := sel.X.(*ast.Ident)
			if ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "Sleep"}, sel.Sel.Name) {
				t.Errorf("%s calls time.%s: now is an argument", f.path, sel.Sel.Name)
			}
			return true
		})
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range tree(t) {
		if f.syntax.Doc != nil && len(f.syntax.Doc.Text()) > 40 {
			documented[f.dir] = true
		} else if !documented[f.dir] {
			documented[f.dir] = false
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// Who looks for a place finds it on the map.
func TestEveryRoomIsOnTheMap(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join("..", "..", "docs", "architecture.md"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, s := range tree(t) {
		if seen[s.dir] || under(s.dir, "installer") {
			continue
		}
		seen[s.dir] = true
		if !strings.Contains(string(doc), "\n| `"+s.dir+"` | ") {
			t.Errorf("docs/architecture.md does not list %s", s.dir)
		}
	}
}

func TestNoPackageIsADrawer(t *testing.T) {
	drawers := []string{"util", "utils", "common", "helpers", "types", "manager", "misc"}
	for _, f := range tree(t) {
		if slices.Contains(drawers, path.Base(f.dir)) {
			t.Errorf("%s: a name that says what is inside, please", f.dir)
		}
	}
}
