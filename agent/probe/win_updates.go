package probe

import "strings"

// What is asked of the Windows Update Agent, as data.

// updateCriteria are those of IUpdateSearcher.Search: what is offered, not
// installed and not hidden by an administrator.
const updateCriteria = "IsInstalled=0 and IsHidden=0"

// Services that updates come from (IUpdateService.ServiceID).
const (
	windowsUpdateService   = "9482f4b4-e343-43b6-b170-9a65bc822c77"
	microsoftUpdateService = "7971f918-a847-4430-9279-4a52d1efe18d"
	wsusService            = "3da21691-e39d-4da6-8a4b-b43877bcb1b7"
)

// ServerSelection of the Windows Update Agent (wuapicommon.h).
const (
	selectedDefault       = 0
	selectedManagedServer = 1
	selectedWindowsUpdate = 2
	selectedOther         = 3
)

// serverSelection is the selection that would ask a service by name.
func serverSelection(id string, managed bool) int32 {
	switch {
	case managed, strings.EqualFold(id, wsusService):
		return selectedManagedServer
	case strings.EqualFold(id, windowsUpdateService):
		return selectedWindowsUpdate
	default:
		return selectedOther
	}
}
