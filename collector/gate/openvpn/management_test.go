package openvpn

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pfoertner/collector/gate/session"
)

// pair is a management connection whose other end the test plays.
func pair(t *testing.T) (*management, net.Conn) {
	ours, theirs := net.Pipe()
	m := newManagement(ours)
	t.Cleanup(func() { m.close(); theirs.Close() })
	return m, theirs
}

func TestServerThatDoesNotAnswerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, theirs := pair(t)
		var reading sync.WaitGroup
		reading.Go(func() { m.read("", func(message) {}) })
		go io.Copy(io.Discard, theirs)
		begin := time.Now()
		if _, err := m.single(t.Context(), "pid"); err == nil || time.Since(begin) != answerWithin {
			t.Errorf("%v after %s", err, time.Since(begin))
		}
		// Answers and commands no longer match: nothing more is said.
		if _, err := m.single(t.Context(), "pid"); err == nil {
			t.Error("the connection was used again")
		}
		reading.Wait()
	})
}

func TestAnswersAreNotMistakenForNotifications(t *testing.T) {
	m, theirs := pair(t)
	told := make(chan message, 10)
	go m.read("", func(msg message) { told <- msg })
	go func() {
		r := bufio.NewReader(theirs)
		r.ReadString('\n')
		fmt.Fprint(theirs, "TITLE\tx\r\n>CLIENT:DISCONNECT,7\r\n>CLIENT:ENV,END\r\n>INFO:later\r\nEND\r\n")
		r.ReadString('\n')
		fmt.Fprint(theirs, "ERROR: unknown command\r\n")
		r.ReadString('\n')
		theirs.Close()
	}()
	got, err := m.listing(t.Context(), "status 3")
	if err != nil || len(got) != 1 || got[0] != "TITLE\tx" {
		t.Errorf("%q, %v", got, err)
	}
	if msg := <-told; msg.client == nil || msg.client.cid != 7 {
		t.Errorf("%+v", msg)
	}
	if _, err := m.single(t.Context(), "frobnicate"); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("%v", err)
	}
	if _, err := m.single(t.Context(), "pid"); err == nil || !strings.Contains(err.Error(), "closed the management connection") {
		t.Errorf("%v", err)
	}
}

func TestCommandsAreOneLine(t *testing.T) {
	m, _ := pair(t)
	for _, c := range []string{"kill a\nclient-auth-nt 0 1", "kill a\r", "kill \x00"} {
		if _, err := m.single(t.Context(), c); err == nil {
			t.Errorf("%q was sent", c)
		}
	}
}

func TestLineWithoutEndIsNotCollected(t *testing.T) {
	m, theirs := pair(t)
	go func() {
		long := strings.Repeat("x", 4096)
		for {
			if _, err := io.WriteString(theirs, long); err != nil {
				return
			}
		}
	}()
	if err := m.read("", func(message) {}); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("%v", err)
	}
}

// The driver comes back by itself, says that the server was lost, and lists
// anew what is up.
func TestDriverReconnects(t *testing.T) {
	visits := make(chan net.Conn)
	path := listen(t, func(conn net.Conn) {
		visits <- conn
		greet(conn, "secret")
	})
	s := NewServer("s", path, "secret", slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan session.Event, 10)
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx, func(e session.Event) { events <- e }) })
	defer running.Wait()
	defer cancel()
	for range 3 {
		conn := <-visits
		if a, ok := (<-events).(session.Attached); !ok || a.Process != 4711 || len(a.Live) != 1 {
			t.Fatalf("%+v", a)
		}
		conn.Close()
		if d, ok := (<-events).(session.Detached); !ok || d.Cause == nil {
			t.Fatalf("%+v", d)
		}
		if _, err := s.Live(ctx); err == nil {
			t.Fatal("a server that is away was listed")
		}
	}
}

// greet plays a server with one session, and a password.
func greet(conn net.Conn, password string) {
	r := bufio.NewReader(conn)
	fmt.Fprint(conn, "ENTER PASSWORD:")
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch strings.TrimSpace(line) {
		case password:
			fmt.Fprint(conn, "SUCCESS: password is correct\r\n>INFO:OpenVPN Management Interface Version 5\r\n")
		case "pid":
			fmt.Fprint(conn, "SUCCESS: pid=4711\r\n")
		case "status 3":
			fmt.Fprint(conn, "HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tClient ID\r\nCLIENT_LIST\tn\t1.2.3.4:5\t10.8.0.2\t1\r\nEND\r\n")
		default:
			fmt.Fprint(conn, "SUCCESS: done\r\n")
		}
	}
}

// End names exactly one session where that can be said.
func TestEndHitsOneSessionWhereItCan(t *testing.T) {
	list := []string{
		"HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tClient ID",
		"CLIENT_LIST\ttwin\t203.0.113.2:1000\t10.8.0.2\t1",
		"CLIENT_LIST\ttwin\t2001:db8::2\t10.8.0.3\t2",
		"CLIENT_LIST\talone\t2001:db8::3\t10.8.0.4\t3",
		"CLIENT_LIST\todd:name\t2001:db8::4\t10.8.0.5\t4",
		"CLIENT_LIST\tmoved\t203.0.113.9:1000\t10.8.0.6\t5",
	}
	for _, c := range []struct {
		name  string
		cid   uint64
		force bool
		want  []string
	}{
		{"by address", 1, false, []string{"kill 203.0.113.2:1000"}},
		{"a name that two have is not said", 2, false, []string{"client-kill 2"}},
		{"but by force it is", 2, true, []string{`kill "twin"`}},
		{"a name of its own", 3, false, []string{`kill "alone"`}},
		{"a name that would be an address", 4, true, []string{"client-kill 4"}},
		{"an address that the server refuses", 5, false, []string{"kill 203.0.113.9:1000", `kill "moved"`}},
		{"one that is gone", 77, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, theirs := pair(t)
			go m.read("", func(message) {})
			var said []string
			var playing sync.WaitGroup
			playing.Go(func() {
				r := bufio.NewReader(theirs)
				for {
					line, err := r.ReadString('\n')
					switch line = strings.TrimSpace(line); {
					case err != nil:
						return
					case line == "status 3":
						fmt.Fprint(theirs, strings.Join(list, "\r\n")+"\r\nEND\r\n")
						continue
					case strings.Contains(line, "203.0.113.9"):
						fmt.Fprint(theirs, "ERROR: client not found\r\n")
					default:
						fmt.Fprint(theirs, "SUCCESS: done\r\n")
					}
					said = append(said, line)
				}
			})
			s := &Server{name: "s", at: m, log: slog.New(slog.DiscardHandler)}
			do(t, s.End(t.Context(), []session.Key{{Server: "s", CID: c.cid}}, c.force))
			m.close()
			playing.Wait()
			if !equal(said, c.want) {
				t.Errorf("%q, want %q", said, c.want)
			}
		})
	}
}
