package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"time"
)

// NewHost returns the machine this program runs on.
func NewHost() Host {
	return Host{
		Files:     os.DirFS("/"),
		System:    runningSystem{},
		Network:   kernelNetwork{},
		Firewall:  kernelFirewall{},
		Processes: processes{os.DirFS("/proc")},
		Bus:       systemBus{},
		Mappings:  kernelMappings{},
		Commands:  commands{},
		Now:       time.Now,
	}
}

// processes reads program names from a proc file system.
type processes struct{ proc fs.FS }

// maxComm is how many bytes of a program's name the kernel keeps
// (TASK_COMM_LEN, less the closing zero).
const maxComm = 15

func (p processes) Running(ctx context.Context, names ...string) ([]string, error) {
	entries, err := fs.ReadDir(p.proc, ".")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	var running []string
	for _, e := range entries {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !digits(e.Name()) {
			continue
		}
		comm, err := fs.ReadFile(p.proc, path.Join(e.Name(), "comm"))
		if err != nil { // it has ended meanwhile
			continue
		}
		running = append(running, strings.TrimSuffix(string(comm), "\n"))
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return !slices.Contains(running, name[:min(len(name), maxComm)])
	}), nil
}

// commands runs the few programs whose answer is in no file.
type commands struct{}

// ZFSEncryption takes zfs from the places where distributions install it, and
// never by PATH.
func (commands) ZFSEncryption(ctx context.Context, dataset string) (string, error) {
	if dataset == "" || strings.HasPrefix(dataset, "-") {
		return "", errors.New("no name of a dataset")
	}
	for _, zfs := range []string{"/usr/sbin/zfs", "/sbin/zfs"} {
		if _, err := os.Stat(zfs); err != nil {
			continue
		}
		answer, err := run(ctx, zfs, "get", "-H", "-o", "name,value", "encryption", dataset)
		if err != nil {
			return "", err
		}
		return zfsValue(answer, dataset)
	}
	return "", fmt.Errorf("zfs: %w", ErrNotFound)
}

// zfsValue takes the value out of "name<TAB>value", only for the dataset that
// was asked for.
func zfsValue(answer, dataset string) (string, error) {
	name, value, ok := strings.Cut(strings.TrimSuffix(answer, "\n"), "\t")
	if !ok || name != dataset || strings.ContainsAny(value, "\t\n") {
		return "", errors.New("zfs answered something else")
	}
	return value, nil
}

// run starts a program without shell or environment and returns what it
// prints. Its complaints are dropped: they may name datasets after persons.
func run(ctx context.Context, program string, arguments ...string) (string, error) {
	const maxAnswer = 64 << 10
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, program, arguments...)
	cmd.Env = []string{"LC_ALL=C"}
	cmd.Stdout = limitedWriter{&out, maxAnswer}
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w", path.Base(program), err)
	}
	return out.String(), nil
}

// limitedWriter refuses to hold more than limit bytes.
type limitedWriter struct {
	buffer *bytes.Buffer
	limit  int
}

func (w limitedWriter) Write(p []byte) (int, error) {
	if w.buffer.Len()+len(p) > w.limit {
		return 0, io.ErrShortBuffer
	}
	return w.buffer.Write(p)
}
