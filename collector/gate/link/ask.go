package link

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"pfoertner/collector/gate/session"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Ask puts one question to the first collector that answers, and says which
// that was. It is for people: it opens no Watch, so it does not disturb a gate
// that runs under the same name, and it does not verify the lease's signature,
// so no session may be let in on its word.
func Ask(ctx context.Context, o Options, facts *gatev1.SessionFacts) (answer session.Answer, collector string, err error) {
	var failed error
	for _, address := range o.Addresses {
		answer, err := askOne(ctx, o, address, facts)
		if err == nil {
			return answer, address, nil
		}
		failed = errors.Join(failed, fmt.Errorf("collector %s: %w", address, err))
	}
	return session.Answer{}, "", failed
}

func askOne(ctx context.Context, o Options, address string, facts *gatev1.SessionFacts) (session.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, greetWithin)
	defer cancel()
	l, err := dial(o, address, func() {})
	if err != nil {
		return session.Answer{}, err
	}
	defer l.conn.Close()
	res, err := l.client.Admit(ctx, &gatev1.AdmitRequest{Session: facts})
	if err != nil {
		return session.Answer{}, err
	}
	granted := &gatev1.Lease{}
	if err := proto.Unmarshal(res.GetLease().GetLease(), granted); err != nil {
		return session.Answer{}, fmt.Errorf("parsing lease: %w", err)
	}
	return session.Answer{Lease: granted, Message: res.GetMessage()}, nil
}
