//go:build linux

package wine_test

import (
	"strings"
	"testing"
	"time"

	"pfoertner/internal/e2e/wine"
)

// limit is far above what any program here takes, also on a busy machine.
const limit = 3 * time.Minute

func TestProgramsTellHowTheyEnded(t *testing.T) {
	m := wine.New(t)
	if e := m.Run(t, limit, "cmd", "/c", "echo said&exit 1603"); e.Code != wine.Code(1603) || strings.TrimSpace(e.Output) != "said" {
		t.Errorf("%+v", e)
	}
}

func TestRegistrySurvivesARestartOfTheMachine(t *testing.T) {
	m := wine.New(t)
	const key = `HKLM\SOFTWARE\Pfoertner\Test`
	if e := m.Run(t, limit, "reg", "add", key, "/v", "Collector", "/d", "localhost:7601", "/f"); e.Code != 0 {
		t.Fatalf("%+v", e)
	}
	m.Stop(t)
	m.Start(t)
	if got := m.Registry(t, key); !strings.Contains(got, `"Collector"="localhost:7601"`) {
		t.Errorf("the key holds %q", got)
	}
	if got := wine.New(t).Registry(t, key); got != "" {
		t.Errorf("another machine has it too: %q", got)
	}
}
