package openvpn

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"pfoertner/collector/gate/session"
	"pfoertner/internal/e2e"
)

// The conversations in testdata were recorded with a real OpenVPN:
//
//	go test -run Recorded -record
//
// Without the flag a server plays them back: it says what OpenVPN said, and
// expects word for word what the driver said.
var recording = flag.Bool("record", false, "record the conversations in testdata anew (needs root and openvpn)")

// conversation is one scenario. Act drives the driver and looks at what it
// tells.
type conversation struct {
	name   string
	server []string // lines for the server's configuration
	client bool
	act    func(t *testing.T, s *Server, next func() session.Event)
}

var conversations = []conversation{
	{"admitted and ended", nil, true, func(t *testing.T, s *Server, next func() session.Event) {
		if a := expect[session.Attached](t, next); a.Process <= 0 || len(a.Live) != 0 {
			t.Errorf("%+v", a)
		}
		tried := expect[session.Tried](t, next)
		if len(tried.Fingerprint) != 32 || tried.Name != "notebook-4711" || tried.Outer != "203.0.113.2" || tried.Again {
			t.Errorf("%+v", tried)
		}
		do(t, s.Allow(t.Context(), tried.Attempt))
		up := expect[session.Established](t, next)
		if up.Key != tried.Key || len(up.Addresses) != 2 || up.Process <= 0 || !equal(up.Fingerprint, tried.Fingerprint) {
			t.Errorf("%+v", up)
		}
		live, err := s.Live(t.Context())
		do(t, err)
		if len(live) != 1 || live[0].Key != up.Key || !live[0].Since.Equal(up.Since) || !equal(live[0].Addresses, up.Addresses) {
			t.Errorf("listed %+v, established %+v", live, up)
		}
		do(t, s.Dismiss(t.Context(), up.Key, "Kein Zugang: \"Übergangsfrist\" abgelaufen."))
		do(t, s.End(t.Context(), []session.Key{up.Key}, false))
		if ended := expect[session.Ended](t, next); ended.Key != up.Key {
			t.Errorf("%+v", ended)
		}
		if live, err := s.Live(t.Context()); err != nil || len(live) != 0 {
			t.Errorf("after the end: %+v, %v", live, err)
		}
	}},
	{"denied", nil, true, func(t *testing.T, s *Server, next func() session.Event) {
		expect[session.Attached](t, next)
		do(t, s.Deny(t.Context(), expect[session.Tried](t, next).Attempt, "Kein Zugang.\nclient-auth-nt 0 1"))
		if live, err := s.Live(t.Context()); err != nil || len(live) != 0 {
			t.Errorf("after the refusal: %+v, %v", live, err)
		}
	}},
	{"renegotiated", []string{"reneg-sec 2"}, true, func(t *testing.T, s *Server, next func() session.Event) {
		expect[session.Attached](t, next)
		first := expect[session.Tried](t, next)
		do(t, s.Allow(t.Context(), first.Attempt))
		expect[session.Established](t, next)
		again := expect[session.Tried](t, next)
		if !again.Again || again.Key != first.Key || again.Handshake == first.Handshake || !equal(again.Fingerprint, first.Fingerprint) {
			t.Errorf("first %+v\nagain %+v", first, again)
		}
		do(t, s.Deny(t.Context(), again.Attempt, "Kein Zugang."))
		do(t, s.End(t.Context(), []session.Key{first.Key}, true))
		expect[session.Ended](t, next)
	}},
	{"on hold", []string{"management-hold"}, false, func(t *testing.T, s *Server, next func() session.Event) {
		if a := expect[session.Attached](t, next); len(a.Live) != 0 {
			t.Errorf("%+v", a)
		}
	}},
}

func TestRecordedConversations(t *testing.T) {
	for _, c := range conversations {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join("testdata", strings.ReplaceAll(c.name, " ", "-")+".txt")
			socket := ""
			if *recording {
				socket = record(t, c, file)
			} else {
				socket = play(t, file)
			}
			s := NewServer("s", socket, "", slog.New(slog.DiscardHandler))
			events := make(chan session.Event, 100)
			ctx, cancel := context.WithCancel(t.Context())
			var running sync.WaitGroup
			running.Go(func() { s.Run(ctx, func(e session.Event) { events <- e }) })
			c.act(t, s, func() session.Event {
				select {
				case e := <-events:
					return e
				case <-time.After(20 * time.Second):
					return nil
				}
			})
			cancel()
			running.Wait()
		})
	}
}

func expect[E session.Event](t *testing.T, next func() session.Event) E {
	t.Helper()
	e, ok := next().(E)
	if !ok {
		t.Fatalf("%T was told, want %T", e, *new(E))
	}
	return e
}

func do(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func equal(a, b any) bool { return reflect.DeepEqual(a, b) }

// play answers as the recorded server did.
func play(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return listen(t, func(conn net.Conn) {
		defer conn.Close()
		heard := bufio.NewReader(conn)
		for line := range strings.Lines(string(text)) {
			words := strings.TrimRight(line[2:], "\n")
			if line[0] == 'S' {
				fmt.Fprintf(conn, "%s\r\n", words)
				continue
			}
			if got, err := heard.ReadString('\n'); err != nil || got != words+"\n" {
				t.Errorf("the driver said %q, %v; recorded is %q", got, err, words)
				return
			}
		}
		io.Copy(io.Discard, heard) // until the driver hangs up
	})
}

func listen(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serve(conn)
		}
	})
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	return path
}

// record starts a real server and client, and writes down what is said.
func record(t *testing.T, c conversation, file string) string {
	t.Helper()
	e2e.Require(t, "openvpn")
	gateway, notebook := e2e.NewNamespace(t, "gateway"), e2e.NewNamespace(t, "notebook")
	e2e.Cable(t, e2e.End{In: gateway, Device: "wan0", Addresses: []string{"203.0.113.1/24"}},
		e2e.End{In: notebook, Device: "eth0", Addresses: []string{"203.0.113.2/24"}})
	v := e2e.NewVPN(t, netip.MustParseAddr("203.0.113.1"))
	v.WriteServer(t, c.server...)
	e2e.Start(t, "openvpn", gateway.Command(context.Background(), "openvpn", "--config", v.ServerConfig()))
	var real net.Conn
	if !e2e.Eventually(t, 10*time.Second, func() (ok bool) {
		var err error
		real, err = net.Dial("unix", v.Management())
		return err == nil
	}) {
		t.Fatal("the server has no management socket")
	}
	out, err := os.Create(file)
	do(t, err)
	t.Cleanup(func() { out.Close() })
	var mu sync.Mutex
	copyLines := func(who string, from io.Reader, to io.Writer) {
		r := bufio.NewReader(from)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			mu.Lock()
			fmt.Fprintf(out, "%s %s\n", who, strings.ReplaceAll(strings.TrimRight(line, "\r\n"), v.Dir, "/etc/openvpn/server"))
			mu.Unlock()
			io.WriteString(to, line)
		}
	}
	path := listen(t, func(conn net.Conn) {
		var both sync.WaitGroup
		both.Go(func() { copyLines("C", conn, real); real.Close() })
		both.Go(func() { copyLines("S", real, conn); conn.Close() })
		both.Wait()
	})
	if c.client {
		v.StartClient(t, notebook, v.Authority.Issue(t, e2e.Subject{CommonName: "notebook-4711", Client: true}))
	}
	return path
}
