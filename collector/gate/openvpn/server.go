package openvpn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pfoertner/collector/gate/session"
)

// Pauses between attempts to reach a server that is away.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 2 * time.Second
)

// maxText is how many bytes of a text reach the client: OpenVPN takes
// parameters of at most 256 bytes (OPTION_PARM_SIZE).
const maxText = 240

// Server is one OpenVPN server, driven through its management socket.
type Server struct {
	name     string
	socket   string
	password string
	log      *slog.Logger

	mu sync.Mutex
	at *management // nil while there is no connection
}

// NewServer returns a driver for the server whose management socket lies at
// path. The password may be empty: the socket has none.
func NewServer(name, path, password string, log *slog.Logger) *Server {
	return &Server{name: name, socket: path, password: password, log: log}
}

// Run implements session.Driver.
func (s *Server) Run(ctx context.Context, told func(session.Event)) error {
	pause := firstPause
	for ctx.Err() == nil {
		attached, err := s.attend(ctx, told)
		if ctx.Err() != nil {
			break
		}
		if attached {
			told(session.Detached{Server: s.name, Cause: err})
			pause = firstPause
		} else {
			s.log.Debug("openvpn not reachable", "server", s.name, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(rand.Int64N(int64(pause)) + 1)):
		}
		pause = min(2*pause, lastPause)
	}
	return ctx.Err()
}

// attend serves one management connection to its end. It says whether the
// connection was complete: only then has Attached been told.
func (s *Server) attend(ctx context.Context, told func(session.Event)) (attached bool, err error) {
	m, err := connect(ctx, s.socket)
	if err != nil {
		return false, err
	}
	g, ctx := errgroup.WithContext(ctx)
	defer context.AfterFunc(ctx, m.close)()
	q := newQueue(told)
	g.Go(func() error { return m.read(s.password, func(msg message) { s.hear(msg, q) }) })
	g.Go(func() error {
		a, err := s.greet(ctx, m)
		if err != nil {
			m.close()
			return err
		}
		s.set(m)
		attached = true
		q.open(a)
		return s.start(ctx, m)
	})
	err = g.Wait()
	s.set(nil)
	return attached, err
}

// greet learns what is up on the server.
func (s *Server) greet(ctx context.Context, m *management) (session.Attached, error) {
	a := session.Attached{Server: s.name}
	if s.password != "" {
		if _, err := m.single(ctx, s.password); err != nil {
			return a, errors.New("the management socket refused the password")
		}
	}
	// Level 0 passes every variable, the certificate's digest among them.
	if _, err := m.single(ctx, "env-filter 0"); err != nil {
		return a, err
	}
	pid, err := m.single(ctx, "pid")
	if err != nil {
		return a, err
	}
	if a.Process, err = strconv.Atoi(strings.TrimPrefix(pid, "pid=")); err != nil {
		return a, fmt.Errorf("management command pid: %w", err)
	}
	var waiting []session.Live
	a.Live, waiting, err = s.status(ctx, m)
	if _, refused := errors.AsType[*refusedError](err); refused {
		return a, nil // on hold: it has not begun, nothing is up
	}
	// Nobody was there to hear of these handshakes, and they are not told
	// again: without this their clients would wait for a minute.
	for _, l := range waiting {
		_, killErr := m.single(ctx, fmt.Sprintf("client-kill %d", l.CID))
		if _, refused := errors.AsType[*refusedError](killErr); killErr != nil && !refused {
			return a, killErr
		}
	}
	return a, err
}

// start releases a server that waits for us (management-hold).
func (s *Server) start(ctx context.Context, m *management) error {
	_, err := m.single(ctx, "hold release")
	if _, refused := errors.AsType[*refusedError](err); refused {
		return nil // it was not on hold
	}
	return err
}

func (s *Server) hear(msg message, q *queue) {
	switch {
	case msg.client != nil:
		if e := msg.client.meaning(s.name); e != nil {
			q.put(e)
		}
	case msg.source == "FATAL":
		s.log.Error("openvpn ends", "server", s.name, "reason", msg.text)
	}
}

// Allow implements session.Driver.
func (s *Server) Allow(ctx context.Context, a session.Attempt) error {
	return s.command(ctx, fmt.Sprintf("client-auth-nt %d %d", a.CID, a.Handshake))
}

// Deny implements session.Driver.
func (s *Server) Deny(ctx context.Context, a session.Attempt, text string) error {
	return s.command(ctx, fmt.Sprintf("client-deny %d %d \"denied\" %s", a.CID, a.Handshake, quote(text, maxText)))
}

// Dismiss implements session.Driver. The text goes out as the reason of a
// failed authentication: clients of every kind show it and do not come back by
// themselves.
func (s *Server) Dismiss(ctx context.Context, k session.Key, text string) error {
	return s.command(ctx, fmt.Sprintf("client-kill %d %s", k.CID, quote("AUTH_FAILED,"+text, maxText)))
}

// End implements session.Driver. `client-kill` names the session but leaves it
// up for five seconds; `kill` ends sessions at once but names them by outer
// address (IPv4 only) or by common name. So: by address where that can be
// said, else by a common name that no other session has, else slowly. With
// force by common name in any case.
func (s *Server) End(ctx context.Context, keys []session.Key, force bool) error {
	live, err := s.Live(ctx)
	if err != nil {
		return err
	}
	listed := map[session.Key]session.Live{}
	names := map[string]int{}
	for _, l := range live {
		listed[l.Key] = l
		names[l.Name]++
	}
	var errs error
	for _, k := range keys {
		if it, ok := listed[k]; ok {
			errs = errors.Join(errs, s.end(ctx, it, force, names[it.Name] == 1))
		}
	}
	return errs
}

// end ends one session. Alone says that no other session has its common name.
func (s *Server) end(ctx context.Context, it session.Live, force, alone bool) error {
	if target, ok := outerTarget(it.Outer); ok && !force {
		err := s.command(ctx, "kill "+target)
		if _, refused := errors.AsType[*refusedError](err); !refused {
			return err
		}
	}
	if sayable(it.Name) && (force || alone) {
		return s.command(ctx, "kill "+quote(it.Name, maxText))
	}
	return s.command(ctx, fmt.Sprintf("client-kill %d", it.CID))
}

var (
	// 2.6 lists "203.0.113.2:47214" and takes that.
	bareOuter = regexp.MustCompile(`^[0-9.]+:[0-9]+$`)
	// 2.7 lists "udp4:203.0.113.2:47214" and takes "udp:203.0.113.2:47214".
	protoOuter = regexp.MustCompile(`^(udp|tcp)[a-z0-9-]*:([0-9.]+:[0-9]+)$`)
)

// outerTarget is how `kill` names a session by its outer address.
func outerTarget(outer string) (string, bool) {
	target, address := outer, outer
	if m := protoOuter.FindStringSubmatch(outer); m != nil {
		target, address = m[1]+":"+m[2], m[2]
	} else if !bareOuter.MatchString(outer) {
		return "", false
	}
	_, err := netip.ParseAddrPort(address)
	return target, err == nil
}

// sayable says whether `kill` can name this common name and no other: a colon
// would make it an address, and what quote leaves out would make it another.
func sayable(name string) bool {
	return name != "" && name != "UNDEF" && !strings.Contains(name, ":") && quote(name, maxText) == `"`+name+`"`
}

// Live implements session.Driver.
func (s *Server) Live(ctx context.Context) ([]session.Live, error) {
	m, err := s.get()
	if err != nil {
		return nil, err
	}
	live, _, err := s.status(ctx, m)
	return live, err
}

func (s *Server) status(ctx context.Context, m *management) (live, waiting []session.Live, err error) {
	lines, err := m.listing(ctx, "status 3")
	if err != nil {
		return nil, nil, err
	}
	return parseStatus(s.name, lines)
}

func (s *Server) command(ctx context.Context, line string) error {
	m, err := s.get()
	if err != nil {
		return err
	}
	_, err = m.single(ctx, line)
	return err
}

func (s *Server) get() (*management, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		return nil, fmt.Errorf("no connection to openvpn server %s", cmp.Or(s.name, s.socket))
	}
	return s.at, nil
}

func (s *Server) set(m *management) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = m
}

// queue holds events back until the one that must come first is there.
type queue struct {
	mu   sync.Mutex
	told func(session.Event)
	held []session.Event
	flow bool
}

func newQueue(told func(session.Event)) *queue { return &queue{told: told} }

func (q *queue) put(e session.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.flow {
		q.told(e)
		return
	}
	q.held = append(q.held, e)
}

func (q *queue) open(first session.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.told(first)
	for _, e := range q.held {
		q.told(e)
	}
	q.held, q.flow = nil, true
}
