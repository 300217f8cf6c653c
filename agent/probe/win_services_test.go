package probe

import (
	"slices"
	"testing"
)

func TestAServiceIsFoundByNameOrPrefix(t *testing.T) {
	names := []string{"OpenVPNService", "WireGuardTunnel$*"}
	for service, want := range map[string]bool{
		"OpenVPNService":            true,
		"openvpnservice":            true,
		"OpenVPNServiceInteractive": false,
		"WireGuardTunnel$office":    true,
		"wireguardtunnel$":          true,
		"WireGuardManager":          false,
		"":                          false,
	} {
		if got := serviceNamed(service, names); got != want {
			t.Errorf("%q: %v", service, got)
		}
	}
}

func TestAServicesProgramIsFoundAsWindowsFindsIt(t *testing.T) {
	files := []string{
		`C:\Program Files\OpenVPN\bin\openvpnserv.exe`,
		`C:\Windows\System32\svchost.exe`,
		`C:\Windows\System32\drivers\ncpfilt.sys`,
		`C:\Program.exe`,
	}
	for _, c := range []struct{ name, image, want string }{
		{"quoted", `"C:\Program Files\OpenVPN\bin\openvpnserv.exe" -x "a b"`, `C:\Program Files\OpenVPN\bin\openvpnserv.exe`},
		{"quote without end", `"C:\x.exe`, `C:\x.exe`},
		{"with arguments", `C:\Windows\System32\svchost.exe -k netsvcs`, `C:\Windows\System32\svchost.exe`},
		{"without extension", `C:\Windows\System32\svchost -k netsvcs`, `C:\Windows\System32\svchost.exe`},
		{"planted before an unquoted path", `C:\Program Files\OpenVPN\bin\openvpnserv.exe`, `C:\Program.exe`},
		{"variable", `%SystemRoot%\System32\svchost.exe -k x`, `C:\Windows\System32\svchost.exe`},
		{"driver from the object namespace", `\SystemRoot\System32\drivers\ncpfilt.sys`, `C:\Windows\System32\drivers\ncpfilt.sys`},
		{"driver from the Windows directory", `system32\drivers\ncpfilt.sys`, `C:\Windows\system32\drivers\ncpfilt.sys`},
		{"driver by device path", `\??\C:\Windows\System32\drivers\ncpfilt.sys`, `C:\Windows\System32\drivers\ncpfilt.sys`},
		{"gone", `D:\No Such\client.exe --service`, `D:\No Such\client.exe`},
		{"nothing", ``, ``},
	} {
		t.Run(c.name, func(t *testing.T) {
			expand := func(s string) string {
				if len(s) > 12 && s[:12] == "%SystemRoot%" {
					return `C:\Windows` + s[12:]
				}
				return s
			}
			isFile := func(path string) bool { return slices.Contains(files, path) }
			if got := serviceProgram(c.image, `C:\Windows`, expand, isFile); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}
