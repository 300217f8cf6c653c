package main

import (
	"os"
	"strings"

	"pfoertner/agent/probe"
)

// The keys of the registry under HKEY_LOCAL_MACHINE. The first one is written by
// group policy only, the second one by the installer.
const (
	policyKey = `SOFTWARE\Policies\Pfoertner\Agent`
	presetKey = `SOFTWARE\Pfoertner\Agent`
)

// layers are the settings of one machine beside the configuration file.
type layers struct {
	// policy lies over the file, preset under it.
	policy, preset layer
}

// layer returns a setting by the name that the registry has for it; empty when
// it has none. Nil has none at all.
type layer func(name string) string

// config reads all settings of a layer.
func (l layer) config() config {
	if l == nil {
		return config{}
	}
	return config{
		Collector: l("Collector"), ServerName: l("ServerName"), CAFile: l("CAFile"),
		CAFingerprint: l("CAFingerprint"), TokenFile: l("TokenFile"), Unit: l("Unit"), DeviceKey: l("DeviceKey"),
		StateDir: l("StateDir"), StatusFile: l("StatusFile"), LogLevel: l("LogLevel"),
	}
}

// ownLayers are those of the machine this program runs on.
func ownLayers() layers {
	h := probe.NewHost()
	if h.Windows != nil && h.Windows.Registry != nil {
		return layers{policy: registryLayer(h.Windows.Registry, policyKey), preset: registryLayer(h.Windows.Registry, presetKey)}
	}
	return layers{preset: environment(os.Getenv)}
}

// registryLayer reads texts below a key. What is not there, or is no text, sets
// nothing.
func registryLayer(r probe.Registry, key string) layer {
	return func(name string) string {
		v, err := r.Value(key, name)
		if err != nil || v.Type != "SZ" && v.Type != "EXPAND_SZ" {
			return ""
		}
		return strings.TrimSpace(v.Text)
	}
}

// environment reads variables: "CAFile" is PFOERTNER_CA_FILE.
func environment(get func(string) string) layer {
	return func(name string) string {
		return strings.TrimSpace(get("PFOERTNER_" + shouted(name)))
	}
}

// shouted turns "CAFingerprint" into "CA_FINGERPRINT": an underscore stands
// before each capital letter that begins a word.
func shouted(name string) string {
	var b strings.Builder
	for i, r := range name {
		begins := r < 'a' && i > 0 && i+1 < len(name) && name[i+1] >= 'a'
		if begins {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}
