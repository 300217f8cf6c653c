package intake

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// orders are what a device is to be told when it can be: the newest of each
// kind, so nothing piles up.
type orders struct {
	presence  *agentv1.PresenceCheck
	collect   *collection
	result    *posturev1.Result
	catalogue *agentv1.VpnCatalogue
	// tunnelProof: a tunnel proof is wanted.
	tunnelProof bool
}

// catalogueCapability is from which capability on agents understand VPN
// catalogues.
const catalogueCapability = 2

// orderCatalogue orders the catalogue in force for an agent that takes any. It
// is called with the orders held.
func (st *session) orderCatalogue(o *orders) {
	if st.takesCatalogue {
		o.catalogue = st.service.catalogue.Load()
	}
}

// tell replaces the result by a newer one.
func (o *orders) tell(r *posturev1.Result) {
	if o.result == nil || !r.GetAppraisedAt().AsTime().Before(o.result.GetAppraisedAt().AsTime()) {
		o.result = r
	}
}

// order adds an order and sees to its delivery. At most one goroutine of a
// stream delivers, from the welcome on and only while there is something to
// deliver, and it ends with the stream.
func (st *session) order(add func(*orders)) {
	st.ordering.Lock()
	defer st.ordering.Unlock()
	add(&st.orders)
	if !st.delivering {
		st.delivering = true
		go st.deliver()
	}
}

// hold makes the caller the one who delivers, if nobody does: what is ordered
// while it works on a report goes out behind the acknowledgement. The caller
// calls deliver in the end.
func (st *session) hold() (held bool) {
	st.ordering.Lock()
	defer st.ordering.Unlock()
	held = !st.delivering
	st.delivering = true
	return held
}

// deliver sends orders until there are none. On a stream that has ended it
// drops them.
func (st *session) deliver() {
	for {
		st.ordering.Lock()
		o := st.orders
		st.orders = orders{}
		if o == (orders{}) {
			st.delivering = false
			st.ordering.Unlock()
			return
		}
		st.ordering.Unlock()
		if err := st.carryOut(o); err != nil {
			st.end(err)
		}
	}
}

func (st *session) carryOut(o orders) error {
	if o.presence != nil {
		if err := st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_PresenceCheck{PresenceCheck: o.presence}}); err != nil {
			return err
		}
	}
	if err := st.keepPace(); err != nil {
		return err
	}
	if o.result != nil {
		if err := st.sendResult(o.result); err != nil {
			return err
		}
	}
	if o.catalogue != nil {
		if err := st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_VpnCatalogue{VpnCatalogue: o.catalogue}}); err != nil {
			return err
		}
	}
	if o.tunnelProof {
		if err := st.send(tunnelProofWanted()); err != nil {
			return err
		}
	}
	if o.collect == nil {
		return nil
	}
	collect := &agentv1.Collect{Reason: o.collect.reason}
	if o.collect.quote {
		collect.QuoteNonce = st.question(st.stream.Context(), quoteTimeout)
	}
	return st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Collect{Collect: collect}})
}

// keepPace tells the agent the report interval if it is another than it was
// told. A new policy comes with a result for every device, so it is asked for
// before each.
func (st *session) keepPace() error {
	st.sending.Lock()
	defer st.sending.Unlock()
	interval := st.service.ReportInterval()
	if interval == st.interval {
		return nil
	}
	st.interval = interval
	return st.stream.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Pace{
		Pace: &agentv1.Pace{ReportInterval: durationpb.New(interval)},
	}})
}

// sendResult sends a result if it says anything new, times apart, and is not
// older than what was sent.
func (st *session) sendResult(r *posturev1.Result) error {
	print, err := resultPrint(r)
	if err != nil {
		return err
	}
	st.sending.Lock()
	defer st.sending.Unlock()
	at := r.GetAppraisedAt().AsTime()
	if at.Before(st.resultAt) {
		return nil
	}
	st.resultAt = at
	if print == st.resultSent {
		return nil
	}
	st.resultSent = print
	return st.stream.Send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Result{Result: r}})
}

// resultPrint is the SHA-256 of a result without the times of its making and
// the digest of what it judged.
func resultPrint(r *posturev1.Result) ([sha256.Size]byte, error) {
	stable := &posturev1.Result{} // shares everything with r, which is never changed
	r.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		stable.ProtoReflect().Set(f, v)
		return true
	})
	stable.CollectedAt, stable.AppraisedAt, stable.FreshUntil, stable.ExpiresAt = nil, nil, nil, nil
	stable.EvidenceDigest = nil
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(stable)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("marshalling result: %w", err)
	}
	return sha256.Sum256(b), nil
}
