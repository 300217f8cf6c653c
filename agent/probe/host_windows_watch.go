//go:build windows

package probe

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"pfoertner/internal/posture"
)

// NewWatcher returns a Watcher of the machine this program runs on. What it has
// no source for is found by the periodic collection.
func NewWatcher() *Watcher {
	return &Watcher{sources: []source{
		{name: "links and routes", watch: watchLinks, covers: []string{"vpn"}},
		{name: "BitLocker events", watch: watchBitLocker, covers: []string{"volumes"}},
		{name: "volumes", watch: watchVolumes, covers: []string{"volumes"}},
		{name: "registry", watch: watchedKeys.watch, covers: watchedKeys.sections()},
		{name: "security center", watch: watchSecurityCenter, covers: []string{"antivirus"}},
		{name: "resume", watch: watchResume, covers: posture.Sections()},
	}}
}

// unheard waits for the end: this system has no such signal, and to ask again
// every minute would not change that. The periodic collection covers for it.
func unheard(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// watchLinks hears of interfaces, addresses and routes.
func watchLinks(ctx context.Context, changed func(...string)) error {
	b := newBell()
	defer b.remove()
	library := windows.NewLazySystemDLL("iphlpapi.dll")
	for _, name := range []string{"NotifyIpInterfaceChange", "NotifyUnicastIpAddressChange", "NotifyRouteChange2"} {
		notify := library.NewProc(name)
		if notify.Find() != nil {
			return unheard(ctx)
		}
		var registration windows.Handle
		result, _, _ := notify.Call(windows.AF_UNSPEC, onChange(), b.number, 0, uintptr(unsafe.Pointer(&registration)))
		if result != 0 {
			return fmt.Errorf("asking to be told of the network: %s: error %d", name, result)
		}
		defer windows.CancelMibChangeNotify2(registration) // waits for callbacks that run
	}
	return b.hear(ctx, changed, "vpn")
}

// BitLocker says in the event log when protection is suspended or resumed, when
// a protector comes or goes (its own channel), and when a conversion starts,
// pauses or ends (its driver, in System). Of all its signals this one needs
// neither COM nor polling.
var bitLockerEvents = []struct{ channel, query string }{
	{"Microsoft-Windows-BitLocker/BitLocker Management", "*"},
	{"System", "*[System[Provider[@Name='Microsoft-Windows-BitLocker-Driver']]]"},
}

// watchBitLocker subscribes to the event log. A system without BitLocker has no
// channel for it.
func watchBitLocker(ctx context.Context, changed func(...string)) error {
	log := eventLog{windows.NewLazySystemDLL("wevtapi.dll")}
	e, err := newEvents(ctx, len(bitLockerEvents))
	if err != nil {
		return err
	}
	defer e.close()
	subscriptions := make([]uintptr, len(bitLockerEvents))
	for i, source := range bitLockerEvents {
		release, err := registered(ctx, func() (func(), error) {
			var err error
			subscriptions[i], err = log.subscribe(e.handles[i], source.channel, source.query)
			return func() { log.close(subscriptions[i]) }, err
		})
		if errors.Is(err, windows.ERROR_EVT_CHANNEL_NOT_FOUND) || errors.Is(err, windows.ERROR_CALL_NOT_IMPLEMENTED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("subscribing to events: %w", err)
		}
		defer release()
		// The event is set when there is something to take again: what is there
		// already has to be taken first.
		if err := log.drain(subscriptions[i]); err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
	}
	for {
		i, err := e.wait(ctx)
		if err != nil {
			return err
		}
		if err := log.drain(subscriptions[i]); err != nil {
			return fmt.Errorf("reading events: %w", err)
		}
		changed("volumes")
	}
}

// eventLog is the Windows event log (wevtapi.dll).
type eventLog struct{ library *windows.LazyDLL }

// subscribe has an event set when the log gets more of what is asked for.
func (l eventLog) subscribe(event windows.Handle, channel, query string) (uintptr, error) {
	subscribe := l.library.NewProc("EvtSubscribe")
	if subscribe.Find() != nil {
		return 0, windows.ERROR_CALL_NOT_IMPLEMENTED
	}
	channel16, err := windows.UTF16PtrFromString(channel)
	if err != nil {
		return 0, err
	}
	query16, err := windows.UTF16PtrFromString(query)
	if err != nil {
		return 0, err
	}
	const toFutureEvents = 1 // EvtSubscribeToFutureEvents
	subscription, _, err := subscribe.Call(0, uintptr(event), uintptr(unsafe.Pointer(channel16)), uintptr(unsafe.Pointer(query16)),
		0, 0, 0, toFutureEvents)
	switch {
	case subscription != 0:
		return subscription, nil
	case errors.Is(err, windows.ERROR_SUCCESS): // Wine only has the name of the function
		return 0, windows.ERROR_CALL_NOT_IMPLEMENTED
	}
	return 0, err
}

// drain takes what has come: until that is done the event is not set again.
// Nothing of it is looked at.
func (l eventLog) drain(subscription uintptr) error {
	next := l.library.NewProc("EvtNext")
	if err := next.Find(); err != nil {
		return err
	}
	var taken [16]uintptr
	for {
		var n uint32
		ok, _, err := next.Call(subscription, uintptr(len(taken)), uintptr(unsafe.Pointer(&taken[0])), 0, 0, uintptr(unsafe.Pointer(&n)))
		if ok == 0 {
			if errors.Is(err, windows.ERROR_NO_MORE_ITEMS) || errors.Is(err, windows.ERROR_TIMEOUT) {
				return nil
			}
			return err
		}
		for _, event := range taken[:min(int(n), len(taken))] {
			l.close(event)
		}
	}
}

func (l eventLog) close(handle uintptr) {
	if proc := l.library.NewProc("EvtClose"); proc.Find() == nil {
		proc.Call(handle)
	}
}

// cmNotifyFilter is CM_NOTIFY_FILTER (cfgmgr32.h) for device interfaces.
type cmNotifyFilter struct {
	size       uint32
	flags      uint32
	filterType uint32 // 0: device interface
	reserved   uint32
	class      windows.GUID
	_          [384]byte // the largest of the filters has 200 characters
}

// watchVolumes hears of volumes that come and go.
func watchVolumes(ctx context.Context, changed func(...string)) error {
	library := windows.NewLazySystemDLL("cfgmgr32.dll")
	register, unregister := library.NewProc("CM_Register_Notification"), library.NewProc("CM_Unregister_Notification")
	if register.Find() != nil || unregister.Find() != nil {
		return unheard(ctx)
	}
	b := newBell()
	defer b.remove()
	filter := cmNotifyFilter{class: windows.GUID{ // GUID_DEVINTERFACE_VOLUME
		Data1: 0x53f5630d, Data2: 0xb6bf, Data3: 0x11d0, Data4: [8]byte{0x94, 0xf2, 0x00, 0xa0, 0xc9, 0x1e, 0xfb, 0x8b},
	}}
	filter.size = uint32(unsafe.Sizeof(filter))
	var registration uintptr
	result, _, _ := register.Call(uintptr(unsafe.Pointer(&filter)), b.number, onDevice(), uintptr(unsafe.Pointer(&registration)))
	if result != 0 {
		return fmt.Errorf("asking to be told of volumes: error %#x", result)
	}
	defer unregister.Call(registration) // waits for callbacks that run
	return b.hear(ctx, changed, "volumes")
}

// watchSecurityCenter hears of antivirus products. Servers have no Security
// Center.
func watchSecurityCenter(ctx context.Context, changed func(...string)) error {
	if there, err := (controlManager{}).Matching(ctx, "wscsvc"); err != nil {
		return err
	} else if len(there) == 0 {
		return unheard(ctx)
	}
	library := windows.NewLazySystemDLL("wscapi.dll")
	register, unregister := library.NewProc("WscRegisterForChanges"), library.NewProc("WscUnRegisterChanges")
	if register.Find() != nil || unregister.Find() != nil {
		return unheard(ctx)
	}
	b := newBell()
	defer b.remove()
	release, err := registered(ctx, func() (func(), error) {
		var registration windows.Handle
		result, _, _ := register.Call(0, uintptr(unsafe.Pointer(&registration)), onChange(), b.number)
		if result != 0 {
			return nil, fmt.Errorf("asking to be told of antivirus products: error 0x%08X", uint32(result))
		}
		return func() { unregister.Call(uintptr(registration)) }, nil
	})
	if err != nil {
		return err
	}
	defer release()
	return b.hear(ctx, changed, "antivirus")
}

// watchResume hears of the machine waking up.
func watchResume(ctx context.Context, changed func(...string)) error {
	library := windows.NewLazySystemDLL("powrprof.dll")
	register, unregister := library.NewProc("PowerRegisterSuspendResumeNotification"), library.NewProc("PowerUnregisterSuspendResumeNotification")
	if register.Find() != nil || unregister.Find() != nil {
		return unheard(ctx)
	}
	b := newBell()
	defer b.remove()
	const callback = 2 // DEVICE_NOTIFY_CALLBACK
	recipient := struct{ callback, context uintptr }{onPower(), b.number}
	var registration uintptr
	result, _, _ := register.Call(callback, uintptr(unsafe.Pointer(&recipient)), uintptr(unsafe.Pointer(&registration)))
	if result != 0 {
		return fmt.Errorf("asking to be told of sleep: error %d", result)
	}
	defer unregister.Call(registration)
	return b.hear(ctx, changed, posture.Sections()...)
}

// registryKeys are keys of HKEY_LOCAL_MACHINE whose changes matter.
type registryKeys []struct {
	section string
	key     string
	// tree hears of what is below, too; otherwise only of the key's own values
	// and the names of its subkeys.
	tree bool
}

// watchedKeys leaves out what changes all the time: the store of components,
// and firewall rules, of which no program asks first.
var watchedKeys = registryKeys{
	{section: "patch", key: `SOFTWARE\Microsoft\Windows NT\CurrentVersion`}, // a hotpatch raises UBR
	{section: "patch", key: `SOFTWARE\Microsoft\Windows\CurrentVersion\Component Based Servicing`},
	{section: "patch", key: `SOFTWARE\Microsoft\Windows\CurrentVersion\WindowsUpdate\Auto Update`},
	{section: "patch", key: `SOFTWARE\Policies\Microsoft\Windows\WindowsUpdate`, tree: true},
	{section: "patch", key: `SOFTWARE\Microsoft\PolicyManager\current\device\Update`},
	{section: "volumes", key: `SYSTEM\CurrentControlSet\Control\FVEStats`},
	{section: "firewall", key: `SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\DomainProfile`},
	{section: "firewall", key: `SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\StandardProfile`},
	{section: "firewall", key: `SYSTEM\CurrentControlSet\Services\SharedAccess\Parameters\FirewallPolicy\PublicProfile`},
	{section: "firewall", key: `SOFTWARE\Policies\Microsoft\WindowsFirewall`, tree: true},
	{section: "firewall", key: `SOFTWARE\Microsoft\Windows NT\CurrentVersion\NetworkList\Profiles`, tree: true}, // another network
	{section: "antivirus", key: `SOFTWARE\Microsoft\Windows Defender\Real-Time Protection`},
	{section: "antivirus", key: `SOFTWARE\Microsoft\Windows Defender\Signature Updates`},
	{section: "antivirus", key: `SOFTWARE\Policies\Microsoft\Windows Defender`, tree: true},
	{section: "screen_lock", key: `SOFTWARE\Microsoft\Windows\CurrentVersion\Policies\System`},
}

// sections are those that the keys concern.
func (keys registryKeys) sections() []string {
	var list []string
	for _, section := range posture.Sections() {
		for _, k := range keys {
			if k.section == section {
				list = append(list, section)
				break
			}
		}
	}
	return list
}

// watch hears of changes to the keys. Of a key that is not there, it hears when
// something is made on the way to it.
func (keys registryKeys) watch(ctx context.Context, changed func(...string)) error {
	e, err := newEvents(ctx, len(keys))
	if err != nil {
		return err
	}
	defer e.close()
	open := make([]registry.Key, len(keys))
	defer func() {
		for _, k := range open {
			if k != 0 {
				k.Close()
			}
		}
	}()
	for i, k := range keys {
		if open[i], err = notifyOf(k.key, k.tree, e.handles[i]); err != nil {
			return err
		}
	}
	for {
		i, err := e.wait(ctx)
		if err != nil {
			return err
		}
		// Closing a key can set its event; what changed since is told anyway.
		open[i].Close()
		open[i] = 0 // closing twice would close what has its number then
		if err := windows.ResetEvent(e.handles[i]); err != nil {
			return fmt.Errorf("falling back of an event: %w", err)
		}
		if open[i], err = notifyOf(keys[i].key, keys[i].tree, e.handles[i]); err != nil {
			return err
		}
		changed(keys[i].section)
	}
}

// notifyOf has an event set, once, when the key changes or, where it is not
// there, the nearest one above it, for as long as the returned key is open. A
// key that this program may not watch is left to the periodic collection: 0.
func notifyOf(key string, tree bool, event windows.Handle) (registry.Key, error) {
	for name := key; ; {
		k, err := registry.OpenKey(registry.LOCAL_MACHINE, name, registry.NOTIFY|registry.WOW64_64KEY)
		if errors.Is(err, registry.ErrNotExist) && name != "" {
			name = above(name)
			continue
		}
		if errors.Is(err, windows.ERROR_ACCESS_DENIED) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("opening registry key %s: %w", name, err)
		}
		filter := uint32(windows.REG_NOTIFY_CHANGE_NAME | windows.REG_NOTIFY_THREAD_AGNOSTIC)
		if name == key {
			filter |= windows.REG_NOTIFY_CHANGE_LAST_SET
		}
		err = windows.RegNotifyChangeKeyValue(windows.Handle(k), tree && name == key, filter, event, true)
		switch {
		case err == nil && nearest(name, key):
			return k, nil
		case err != nil && !errors.Is(err, windows.ERROR_KEY_DELETED):
			k.Close()
			return 0, fmt.Errorf("asking to be told of registry key %s: %w", name, err)
		}
		k.Close() // keys came or went meanwhile
		name = key
	}
}

// nearest says whether nothing is there between name and the key below it.
func nearest(name, key string) bool {
	below := key
	for below != name && above(below) != name {
		below = above(below)
	}
	there, err := localMachine{}.Exists(below)
	return below == name || err != nil || !there
}

// above is the key that holds a key; "" is the hive.
func above(key string) string {
	return key[:max(strings.LastIndexByte(key, '\\'), 0)]
}
