package probe

import (
	"context"
	"errors"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

func volumesProbe() Probe {
	return Probe{Section: "volumes", Collect: collectVolumes}
}

func collectVolumes(context.Context, Host, *posturev1.Evidence) error {
	return errors.New("not built yet")
}
