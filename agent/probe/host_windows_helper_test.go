//go:build windows

package probe

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// inJobs asks real processes of the test binary, each in a job of its own as
// the service starts them.
func inJobs(t *testing.T, name string, timeout time.Duration) *aside {
	t.Helper()
	a := realAside(t, name, timeout)
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a.launch = asideProcess{program: program, arguments: []string{asideRole}, prepare: quietly, confine: inJob}.launch
	return a
}

func TestWindowsReadingAsideAnswersFromItsJob(t *testing.T) {
	var answer Program
	if err := inJobs(t, "echoes", time.Minute).ask(t.Context(), `C:\x y.exe`, &answer); err != nil || answer.ProductName != `C:\x y.exe` {
		t.Errorf("%+v, %v", answer, err)
	}
}

func TestWindowsReadingAsideThatHangsIsEndedAndLeftInPeace(t *testing.T) {
	a := inJobs(t, "hangs", time.Second)
	started := time.Now()
	for range 2 {
		err := a.ask(t.Context(), "", new(SecurityAnswer))
		if err == nil || !strings.Contains(err.Error(), "no answer within 1s") {
			t.Errorf("error is %v", err)
		}
	}
	if took := time.Since(started); took > windowsPatience {
		t.Errorf("it took %v", took)
	}
}

func TestWindowsReadingAsideLeavesNoHandles(t *testing.T) {
	ask := func() {
		if err := inJobs(t, "fine", time.Minute).ask(context.Background(), "", new(SecurityAnswer)); err != nil {
			t.Error(err)
		}
	}
	leavesNoHandles(t, ask)
}
