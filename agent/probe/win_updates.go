package probe

import "strings"

// ServerSelection of the Windows Update Agent (wuapicommon.h).
const (
	selectedDefault       = 0
	selectedManagedServer = 1
	selectedWindowsUpdate = 2
	selectedOther         = 3
)

// serverSelection is the selection that would ask a service by name
// (IUpdateService.ServiceID, IsManaged).
func serverSelection(id string, managed bool) int32 {
	const (
		windowsUpdate = "9482f4b4-e343-43b6-b170-9a65bc822c77"
		serverService = "3da21691-e39d-4da6-8a4b-b43877bcb1b7" // WSUS
	)
	switch {
	case managed, strings.EqualFold(id, serverService):
		return selectedManagedServer
	case strings.EqualFold(id, windowsUpdate):
		return selectedWindowsUpdate
	default:
		return selectedOther
	}
}
