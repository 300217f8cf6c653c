package gateway_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"pfoertner/collector/admission"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// echo is the floor that Admit is measured against: the barest gRPC service.
// It answers with as many bytes as an AdmitResponse has.
type echo struct{ answer []byte }

const echoMethod = "/pfoertner.bench.Echo/Echo"

func (e *echo) register(s *grpc.Server) {
	handler := func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		in := new(wrapperspb.BytesValue)
		if err := decode(in); err != nil {
			return nil, err
		}
		return &wrapperspb.BytesValue{Value: e.answer}, nil
	}
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "pfoertner.bench.Echo",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: handler}},
	}, e)
}

const (
	fleet    = 10_000 // notebooks that are known
	strange  = 100    // identities that are not
	gateways = 4      // connections, each with its own certificate
	// frame is what a BytesValue of more than 127 bytes adds to its content.
	frame = 3
	// perRound is how many calls each of the two makes before the other one's
	// turn.
	perRound = 4_000
)

// BenchmarkAdmit measures Admit over gRPC with mutual TLS beside a bare gRPC
// echo of the same message sizes on the same listener, in turns. The bars, where
// the machine is saturated (clients=256): throughput-ratio ≥ 0.8, p99-ratio ≤
// 1.3. A lone client shows what a signature costs that nobody shares.
func BenchmarkAdmit(b *testing.B) {
	e := &echo{}
	h := newHouse(b, admission.Options{}, e.register)
	for n := range fleet {
		h.admit(n)
	}
	h.desk.Ready()

	var conns []*grpc.ClientConn
	for n := range gateways {
		conns = append(conns, h.connect(fmt.Sprintf("vpn%d", n)))
	}
	// Both are asked with as many different, prepared requests.
	requests := make([][]byte, fleet+strange)
	questions := make([][]byte, len(requests))
	for n := range requests {
		requests[n] = encode(b, &gatev1.AdmitRequest{Session: session(n)})
		questions[n] = encode(b, &wrapperspb.BytesValue{Value: make([]byte, len(requests[n])-frame)})
	}
	admit := func(ctx context.Context, conn *grpc.ClientConn, answer *[]byte) error {
		return conn.Invoke(ctx, gatev1.GateService_Admit_FullMethodName, &requests[rand.IntN(len(requests))], answer, grpc.ForceCodecV2(raw{}))
	}
	ask := func(ctx context.Context, conn *grpc.ClientConn, answer *[]byte) error {
		return conn.Invoke(ctx, echoMethod, &questions[rand.IntN(len(questions))], answer, grpc.ForceCodecV2(raw{}))
	}

	for _, clients := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			var admits, echoes measure
			admits.round(b, conns, clients, perRound/2, admit)
			e.answer = make([]byte, admits.bytes/len(admits.latencies)-frame)
			echoes.round(b, conns, clients, perRound/2, ask)
			admits, echoes = measure{}, measure{}
			for b.Loop() {
				echoes.round(b, conns, clients, perRound, ask)
				admits.round(b, conns, clients, perRound, admit)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(admits.throughput(), "admit/s")
			b.ReportMetric(echoes.throughput(), "echo/s")
			b.ReportMetric(admits.against(echoes), "throughput-ratio")
			b.ReportMetric(float64(admits.cpu)/float64(echoes.cpu), "cpu-ratio")
			for _, p := range []int{50, 99} {
				a, e := admits.percentile(p), echoes.percentile(p)
				b.ReportMetric(float64(a.Microseconds()), fmt.Sprintf("admit-p%d-µs", p))
				b.ReportMetric(float64(a)/float64(e), fmt.Sprintf("p%d-ratio", p))
			}
		})
	}
}

// BenchmarkFlip is the collector's part of a revocation, over the wire: from
// the new result until the gateway has read the signed change, with 1,000 live
// sessions on it. One operation is one flip.
func BenchmarkFlip(b *testing.B) {
	const sessions = 1000
	h := newHouse(b, admission.Options{})
	up := &gatev1.ReportRequest{Full: true}
	for n := range sessions {
		h.admit(n)
		up.Events = append(up.Events, &gatev1.SessionEvent{Event: &gatev1.SessionEvent_Up{
			Up: &gatev1.SessionUp{Session: session(n), Verdict: posturev1.Verdict_VERDICT_ADMIT},
		}})
	}
	h.desk.Ready()
	gate := gatev1.NewGateServiceClient(h.connect("vpn1"))
	stream, err := gate.Watch(b.Context(), &gatev1.WatchRequest{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := gate.Report(b.Context(), up); err != nil {
		b.Fatal(err)
	}
	m := measure{}
	v := posturev1.Verdict_VERDICT_ADMIT
	for n := 0; b.Loop(); n++ {
		if n%sessions == 0 {
			v = posturev1.Verdict_VERDICT_ADMIT + posturev1.Verdict_VERDICT_QUARANTINE - v
		}
		start := time.Now()
		h.result(n%sessions, v)
		for change := (*gatev1.SignedStandings)(nil); change == nil; {
			m, err := stream.Recv()
			if err != nil {
				b.Fatal(err)
			}
			change = m.GetChange()
		}
		m.latencies = append(m.latencies, time.Since(start))
	}
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(m.percentile(p).Microseconds()), fmt.Sprintf("p%d-µs", p))
	}
}

// raw is the load's codec: requests are prepared bytes and answers stay as they
// are, so that the load costs the same for both.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	answer := v.(*[]byte)
	*answer = slices.Grow((*answer)[:0], data.Len())[:data.Len()]
	data.CopyTo(*answer)
	return nil
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// measure gathers rounds of calls.
type measure struct {
	took      time.Duration
	rounds    []time.Duration
	latencies []time.Duration
	bytes     int
	cpu       time.Duration
}

// cpu is the processor time of the process so far, load and server together.
func cpu() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// round makes n calls by so many clients at a time.
func (m *measure) round(b *testing.B, conns []*grpc.ClientConn, clients, n int, call func(context.Context, *grpc.ClientConn, *[]byte) error) {
	b.Helper()
	runtime.GC()
	per := n / clients
	latencies := make([][]time.Duration, clients)
	var size atomic.Int64
	var all sync.WaitGroup
	begin, used := time.Now(), cpu()
	for c := range clients {
		latencies[c] = make([]time.Duration, 0, per)
		all.Go(func() {
			var answer []byte
			for range per {
				start := time.Now()
				if err := call(b.Context(), conns[c%len(conns)], &answer); err != nil {
					b.Error(err)
					return
				}
				latencies[c] = append(latencies[c], time.Since(start))
				size.Add(int64(len(answer)))
			}
		})
	}
	all.Wait()
	took := time.Since(begin)
	m.took += took
	m.rounds = append(m.rounds, took)
	m.cpu += cpu() - used
	m.bytes += int(size.Load())
	m.latencies = append(m.latencies, slices.Concat(latencies...)...)
}

func (m *measure) throughput() float64 { return float64(len(m.latencies)) / m.took.Seconds() }

// against is the median over the rounds of one's throughput by the other's:
// other work on the machine falls out.
func (m *measure) against(floor measure) float64 {
	ratios := make([]float64, len(m.rounds))
	for i := range ratios {
		ratios[i] = float64(floor.rounds[i]) / float64(m.rounds[i])
	}
	slices.Sort(ratios)
	return ratios[len(ratios)/2]
}

func (m *measure) percentile(p int) time.Duration {
	slices.Sort(m.latencies)
	return m.latencies[(len(m.latencies)-1)*p/100]
}
