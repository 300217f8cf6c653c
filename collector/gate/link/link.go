// Package link is the gate's end of gate.v1: a stream from every collector,
// questions to the best of them, reports to all.
//
// Rules. Nothing reaches the keeper that was not signed by a key whose
// certificate the servers' CA issued for signing leases, for this gateway. A
// collector from which three heartbeats were missed is gone, whatever its
// connection says. After every reconnect both sides say first how things
// stand; nothing depends on a message that was lost.
package link

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"pfoertner/collector/gate/session"
	"pfoertner/internal/lease"
	"pfoertner/internal/mtls"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

const (
	// missed heartbeats make a collector gone.
	missed = 3
	// greetWithin is how long the first message may take.
	greetWithin = 5 * time.Second
	// Heartbeat intervals that a collector may ask for.
	leastInterval, mostInterval = 50 * time.Millisecond, 30 * time.Second
	// Pauses between attempts to reach a collector.
	firstPause, lastPause = 100 * time.Millisecond, 2 * time.Second
)

// Keeper is who the collectors' words are for.
type Keeper interface {
	Tell(session.News)
	Holds(ctx context.Context) (lease.Position, []*gatev1.SessionEvent, error)
}

// Options of the links to all collectors.
type Options struct {
	// Addresses of the collectors: "collector.example:7602".
	Addresses []string
	// TLS says who we are and whom we accept.
	TLS mtls.ClientOptions
	// Gateway is our own name, as in our certificate.
	Gateway string
	// Servers is the CA that issues collectors' and lease signers' certificates.
	Servers *x509.CertPool
	Log     *slog.Logger
}

// link is the connection to one collector.
type link struct {
	o       Options
	address string
	client  gatev1.GateServiceClient
	conn    *grpc.ClientConn
	out     *outbox
	// changed is called when the link comes up.
	changed func()

	mu sync.Mutex
	// signer is the key of the leases; nil while the link is down.
	signer ed25519.PublicKey
	at     lease.Position
}

// maxMessage is the largest message in either direction, in bytes: room for
// 65,536 sessions.
const maxMessage = 32 << 20

func dial(o Options, address string, changed func()) (*link, error) {
	conn, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(credentials.NewTLS(mtls.ClientConfig(o.TLS))),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 1.6, Jitter: 0.5, MaxDelay: lastPause},
			MinConnectTimeout: greetWithin,
		}),
		// All leases of a large gateway are renewed in one message.
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return nil, fmt.Errorf("collector %s: %w", address, err)
	}
	return &link{
		o: o, address: address, conn: conn, client: gatev1.NewGateServiceClient(conn),
		out: newOutbox(), changed: changed,
	}, nil
}

// run keeps a Watch open until ctx ends.
func (l *link) run(ctx context.Context, k Keeper) error {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := l.watch(ctx, k)
		wasUp := l.down()
		if ctx.Err() != nil {
			break
		}
		if wasUp {
			l.o.Log.Warn("collector lost", "collector", l.address, "error", err)
			pause = firstPause
		} else {
			l.o.Log.Info("collector not reachable", "collector", l.address, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(pause) + time.Millisecond):
		}
		if time.Since(began) < lastPause {
			pause = min(2*pause, lastPause)
		}
	}
	return ctx.Err()
}

// watch serves one Watch to its end.
func (l *link) watch(ctx context.Context, k Keeper) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	held, _, err := k.Holds(ctx)
	if err != nil {
		return err
	}
	silence := time.AfterFunc(greetWithin, func() { cancel(errors.New("no sign of life")) })
	defer silence.Stop()
	stream, err := l.client.Watch(ctx, &gatev1.WatchRequest{Epoch: held.Epoch, Sequence: held.Sequence})
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return cause(ctx, err)
	}
	w, err := l.begin(first.GetStart(), time.Now())
	if err != nil {
		return err
	}
	l.o.Log.Info("collector found", "collector", l.address, "epoch", w.start.GetEpoch(), "resumed", w.start.GetResumed())
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer cancel(nil)
	reporting.Go(func() { l.report(ctx, k) })
	for {
		silence.Reset(missed * w.interval)
		m, err := stream.Recv()
		if err != nil {
			return cause(ctx, err)
		}
		news, err := w.read(m, time.Now())
		if err != nil {
			return err
		}
		if news != nil {
			l.advance(news.At)
			k.Tell(*news)
		}
	}
}

// cause is why a stream ended: our own reason, if we ended it.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil {
		return c
	}
	return err
}

// begin reads a Watch's first message: from then on the link is up.
func (l *link) begin(start *gatev1.Start, now time.Time) (*watched, error) {
	if start == nil {
		return nil, errors.New("the first message is not a start")
	}
	key, err := mtls.VerifyLeaseSigner(start.GetSignerChain(), l.o.Servers, now)
	if err != nil {
		return nil, err
	}
	w := &watched{gateway: l.o.Gateway, signer: key, start: start, interval: start.GetHeartbeatInterval().AsDuration()}
	if w.interval < leastInterval || w.interval > mostInterval {
		return nil, fmt.Errorf("heartbeat interval %s: %s to %s are taken", w.interval, leastInterval, mostInterval)
	}
	l.mu.Lock()
	l.signer, l.at = key, lease.At(start)
	l.mu.Unlock()
	l.out.restate()
	l.changed()
	return w, nil
}

func (l *link) down() (wasUp bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	wasUp = l.signer != nil
	l.signer = nil
	return wasUp
}

func (l *link) advance(at lease.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at.After(l.at) {
		l.at = at
	}
}

// state is the signer's key and the position; no key while the link is down.
func (l *link) state() (ed25519.PublicKey, lease.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.signer, l.at
}

// admit asks this collector.
func (l *link) admit(ctx context.Context, facts *gatev1.SessionFacts) (session.Answer, error) {
	key, _ := l.state()
	if key == nil {
		return session.Answer{}, errDown
	}
	res, err := l.client.Admit(ctx, &gatev1.AdmitRequest{Session: facts})
	if err != nil {
		return session.Answer{}, err
	}
	signed, err := lease.VerifyLease(key, res.GetLease())
	if err != nil {
		return session.Answer{}, fmt.Errorf("lease of %s: %w", l.address, err)
	}
	return session.Answer{Lease: signed, Message: res.GetMessage()}, nil
}

var errDown = errors.New("the collector is not reachable")
