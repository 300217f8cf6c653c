package intake

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/collector/enrolment"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
)

const (
	nonceBytes   = 16
	helloTimeout = 15 * time.Second
)

// errFinished is the end of a stream that the agent has closed properly.
var errFinished = errors.New("finished")

// session is one live stream. Fields of the lower part are the reading
// goroutine's own.
type session struct {
	service  *Service
	stream   connectStream
	deviceID string
	cert     *x509.Certificate
	spki     []byte
	// end ends the stream with a cause; the first one counts. Then done is closed.
	end  context.CancelCauseFunc
	done <-chan struct{}

	// The Service guards these. began is when the stream did; before is the stream that this one is to
	// replace, and meeting the question which of them is live.
	began      time.Time
	before     *session
	meeting    *meeting
	greeted    bool // hello has arrived
	capability uint32

	questions questions

	waiting sync.Mutex
	waiters []*waiter

	sending    sync.Mutex // one goroutine at a time may send
	interval   time.Duration
	resultSent [sha256.Size]byte
	resultAt   time.Time

	ordering   sync.Mutex
	orders     orders
	delivering bool // somebody sees to the orders
	// takesCatalogue says that the agent's hello has arrived, and that it
	// understands VPN catalogues.
	takesCatalogue bool

	limiter      *rate.Limiter
	agentVersion string
	nonce        []byte
	sequence     uint64
	digest       []byte // of the evidence that is stored; nil: full evidence is due
	resyncs      int    // without an acknowledgement between them
	renewal      *renewal
	renewedAt    time.Time
	vpnKeys      *vpnKeys
}

func newSession(s *Service, stream connectStream, id string, cert *x509.Certificate, spki []byte, done <-chan struct{}, end context.CancelCauseFunc) *session {
	return &session{
		service: s, stream: stream, deviceID: id, cert: cert, spki: spki, done: done, end: end,
		limiter:    rate.NewLimiter(s.MessageRate, s.MessageBurst),
		delivering: true, // by welcome
	}
}

// accepted asks the Registry whether this device with this key may be here.
func (st *session) accepted() error {
	if err := st.service.Registry.Accepts(st.deviceID, st.spki); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

// serve reads the stream until it ends and returns why: always an error.
func (st *session) serve(ctx context.Context) error {
	late := time.AfterFunc(helloTimeout, func() { st.end(errNoHello) })
	defer late.Stop()
	m, err := st.receive(ctx)
	if err != nil {
		return err
	}
	late.Stop()
	if m.GetHello() == nil {
		return invalid("the first message is not a hello")
	}
	if err := st.welcome(ctx, m.GetHello()); err != nil {
		return err
	}
	for {
		m, err := st.receive(ctx)
		if err != nil {
			return err
		}
		st.service.seen(st, st.service.Now())
		if err := st.handle(ctx, m); err != nil {
			return err
		}
	}
}

// receive waits for the next message and for the right to read it.
func (st *session) receive(ctx context.Context) (*agentv1.ConnectRequest, error) {
	if err := st.limiter.Wait(ctx); err != nil {
		return nil, err
	}
	m, err := st.stream.Recv()
	switch {
	case errors.Is(err, io.EOF):
		return nil, errFinished
	case err != nil:
		return nil, err
	}
	if err := st.accepted(); err != nil {
		// That the notebook is still there counts, also with a key that the other
		// stream has replaced meanwhile.
		if p := m.GetPresence(); p != nil && errors.Is(st.service.Registry.Accepts(st.deviceID, st.spki), enrolment.ErrStaleKey) {
			st.service.present(st, p)
		}
		return nil, err
	}
	if err := posture.CheckLimits(m); err != nil {
		return nil, invalid("%v", err)
	}
	return m, nil
}

func (st *session) welcome(ctx context.Context, hello *agentv1.ClientHello) error {
	st.agentVersion = hello.GetAgentVersion()
	now := st.service.Now()
	st.service.seen(st, now)
	st.nonce = make([]byte, nonceBytes)
	if _, err := rand.Read(st.nonce); err != nil {
		return err
	}
	renew := st.service.Issuer.RenewAfter(st.cert).Sub(now)
	st.interval = st.service.ReportInterval()
	err := st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Welcome{Welcome: &agentv1.Welcome{
		Capability: posture.Capability, Nonce: st.nonce, CollectorVersion: st.service.Version,
		ReportInterval: durationpb.New(st.interval),
		RenewAfter:     durationpb.New(max(renew, 0)),
		QuoteNonce:     st.firstQuestion(ctx, hello.GetCapability()),
	}}})
	st.service.greeted(st, hello.GetCapability())
	st.ordering.Lock()
	st.takesCatalogue = hello.GetCapability() >= catalogueCapability
	st.orderCatalogue(&st.orders)
	st.ordering.Unlock()
	st.deliver()
	if err != nil {
		return err
	}
	return st.wantVPNKey(hello.GetCapability())
}

func (st *session) handle(ctx context.Context, m *agentv1.ConnectRequest) error {
	switch body := m.GetMessage().(type) {
	case *agentv1.ConnectRequest_Report:
		return st.report(ctx, body.Report)
	case *agentv1.ConnectRequest_Quote:
		return st.quote(ctx, body.Quote)
	case *agentv1.ConnectRequest_Presence:
		st.service.present(st, body.Presence)
		return nil
	case *agentv1.ConnectRequest_Renewal:
		return st.requestRenewal(ctx, body.Renewal)
	case *agentv1.ConnectRequest_RenewalProof:
		return st.proveRenewal(ctx, body.RenewalProof)
	case *agentv1.ConnectRequest_VpnKey:
		return st.requestVPNKey(body.VpnKey)
	case *agentv1.ConnectRequest_VpnKeyProof:
		return st.proveVPNKey(ctx, body.VpnKeyProof)
	case *agentv1.ConnectRequest_Hello:
		return invalid("a second hello")
	}
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return nil // of a kind that only a newer agent knows
	}
	return invalid("an empty message")
}

func (st *session) send(m *agentv1.ConnectResponse) error {
	st.sending.Lock()
	defer st.sending.Unlock()
	return st.stream.Send(m)
}

func invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}

// same compares what an agent echoes; empty is never the same.
func same(a, b []byte) bool { return len(a) > 0 && bytes.Equal(a, b) }
