//go:build windows && winetest

package service

import (
	_ "unsafe" // for go:linkname

	_ "github.com/kardianos/service" // its init runs first
)

// Wine starts services like Windows does, but the library tells them from
// programs in a terminal by session ids, which Wine does not have. This file is
// for trials of the service under Wine; the released program is built without
// it, and a test sees to that.
//
//go:linkname interactive github.com/kardianos/service.interactive
var interactive bool

func init() { interactive = false }
