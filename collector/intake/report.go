package intake

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

const (
	// maxAge is how old evidence may be when it arrives.
	maxAge = 24 * time.Hour
	// maxResyncs is how often an agent may miss the digest in a row.
	maxResyncs = 3
)

// report takes one report: check that it belongs here and now, make the whole
// evidence of it, hand it to the Verifier, acknowledge, tell the result.
func (st *session) report(ctx context.Context, r *agentv1.Report) error {
	arrived := st.service.Now()
	if !same(r.GetNonce(), st.nonce) {
		return invalid("the nonce is not that of this stream")
	}
	if r.GetSequence() <= st.sequence {
		return invalid("sequence %d follows %d: it must rise", r.GetSequence(), st.sequence)
	}
	st.sequence = r.GetSequence()
	collectedAt, err := collected(r, arrived)
	if err != nil {
		return err
	}
	ev, mismatch, err := st.evidence(ctx, r)
	if err != nil {
		return err
	}
	if mismatch != "" {
		return st.resync(r, mismatch)
	}
	if st.hold() {
		defer st.deliver()
	}
	result, err := st.submit(ctx, ev, r.GetDigest(), collectedAt)
	if err != nil {
		return st.notStored(ctx, r, err)
	}
	if !same(r.GetDigest(), result.GetEvidenceDigest()) {
		return st.resync(r, "other evidence was stored meanwhile")
	}
	st.digest, st.resyncs = r.GetDigest(), 0
	err = st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Acknowledgement{
		Acknowledgement: &agentv1.Acknowledgement{Sequence: r.GetSequence(), Digest: r.GetDigest()},
	}})
	if err != nil {
		return err
	}
	st.service.Metrics.reported(kindOf(r), "stored", st.service.Now().Sub(arrived))
	st.reported(collectedAt)
	st.order(func(o *orders) { o.tell(result) })
	return nil
}

// collected is when the evidence was collected, by our clock: never later than
// now.
func collected(r *agentv1.Report, arrived time.Time) (time.Time, error) {
	ago := r.GetCollectedAgo()
	if err := ago.CheckValid(); err != nil {
		return time.Time{}, invalid("collected_ago: %v", err)
	}
	if d := ago.AsDuration(); d < 0 || d > maxAge {
		return time.Time{}, invalid("collected_ago is %s: from 0 to %s are taken", d, maxAge)
	}
	return arrived.Add(-ago.AsDuration()), nil
}

// evidence is the whole evidence after this report, nil when it is unchanged.
// mismatch says why full evidence is needed first.
func (st *session) evidence(ctx context.Context, r *agentv1.Report) (ev *posturev1.Evidence, mismatch string, err error) {
	switch body := r.GetBody().(type) {
	case *agentv1.Report_Full:
		ev = body.Full
	case *agentv1.Report_Delta:
		if st.digest == nil {
			return nil, "full evidence comes first", nil
		}
		base, _, err := st.service.Reports.Report(ctx, st.deviceID)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, "nothing to apply the change to", nil
		}
		if err != nil {
			return nil, "", st.notStored(ctx, r, err)
		}
		ev = posture.Merge(base, body.Delta)
		if err := posture.CheckLimits(ev); err != nil {
			return nil, "", invalid("with this change: %v", err)
		}
	case *agentv1.Report_Heartbeat:
		if !same(r.GetDigest(), st.digest) {
			return nil, "the digest is not that of the evidence held", nil
		}
		return nil, "", nil
	default:
		return nil, "", invalid("a report without evidence or heartbeat")
	}
	digest, err := posture.Digest(ev)
	if err != nil {
		return nil, "", invalid("%v", err)
	}
	if !same(r.GetDigest(), digest) && !posture.FromNewer(ev) {
		return nil, "the digest is not that of the evidence", nil
	}
	return ev, "", nil
}

// submit hands a report to the Verifier when it is its turn.
func (st *session) submit(ctx context.Context, ev *posturev1.Evidence, digest []byte, collectedAt time.Time) (*posturev1.Result, error) {
	release, err := st.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if ev == nil {
		return st.service.Verifier.Confirm(ctx, st.deviceID, collectedAt)
	}
	return st.service.Verifier.Submit(ctx, st.deviceID, ev, digest, collectedAt)
}

// turn waits until a report or quote of this stream may be worked on.
func (st *session) turn(ctx context.Context) (release func(), err error) {
	select {
	case st.service.turns <- struct{}{}:
		return func() { <-st.service.turns }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// resync asks for full evidence. Who misses it again and again is sent away:
// coming back costs more than asking.
func (st *session) resync(r *agentv1.Report, reason string) error {
	st.digest = nil
	st.resyncs++
	st.service.Metrics.reported(kindOf(r), "resync", 0)
	if st.resyncs > maxResyncs {
		return invalid("%s, %d times in a row", reason, st.resyncs)
	}
	return st.send(&agentv1.ConnectResponse{Message: &agentv1.ConnectResponse_Resync{Resync: &agentv1.Resync{Reason: reason}}})
}

// notStored ends the stream without an acknowledgement: the agent sends its
// newest evidence again when it comes back.
func (st *session) notStored(ctx context.Context, r *agentv1.Report, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	st.service.Metrics.reported(kindOf(r), "failed", 0)
	if status.Code(err) == codes.InvalidArgument {
		return err
	}
	st.service.Log.ErrorContext(ctx, "report not stored", "device_id", st.deviceID, "error", err)
	return errNotStored
}

func kindOf(r *agentv1.Report) string {
	switch r.GetBody().(type) {
	case *agentv1.Report_Full:
		return "full"
	case *agentv1.Report_Delta:
		return "delta"
	}
	return "heartbeat"
}
