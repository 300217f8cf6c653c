package notice

import (
	"context"
	"testing"
)

// What this session is told stays on its screen until somebody closes it: only
// finding sessions and their language is tried.
func TestSessionsOfThisMachineAreFound(t *testing.T) {
	active, err := activeSessions()
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range active {
		t.Logf("session %d speaks %q", id, sessionLanguage(id))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := NewScreens().Show(ctx, func(string) Text { return Text{} }); n != 0 || len(active) > 0 && err == nil {
		t.Errorf("after the end %d screens are shown something, %v", n, err)
	}
}
