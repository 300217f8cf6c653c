//go:build windows

package probe

import (
	"context"
	"errors"
)

// readUpdates runs in a process of its own.
func readUpdates(context.Context) (answer UpdateSearch, err error) {
	return answer, errors.New("this version of the agent cannot ask Windows for it")
}
