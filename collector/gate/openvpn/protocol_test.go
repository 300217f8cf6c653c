package openvpn

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pfoertner/collector/gate/session"
)

const digest = "20:c2:bb:bd:dd:28:99:36:1d:8e:01:9c:d2:71:cf:b5:d3:f5:9d:b0:c6:f1:d5:79:57:f6:69:8b:f2:d7:44:68"

func lines(t *testing.T, p *parser, text string) []message {
	t.Helper()
	var out []message
	for l := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		m, err := p.line(strings.TrimSpace(l))
		if err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		if m != (message{}) {
			out = append(out, m)
		}
	}
	return out
}

func TestNotificationsAreEvents(t *testing.T) {
	key := session.Key{Server: "s", CID: 12}
	peer := session.Peer{Fingerprint: fingerprint(digest), Name: "n, with=signs", Outer: "203.0.113.2", Protocol: 1}
	for _, c := range []struct {
		name, text string
		want       session.Event
	}{
		{"connect", ">CLIENT:CONNECT,12,3\n>CLIENT:ENV,common_name=n, with=signs\n>CLIENT:ENV,untrusted_ip=203.0.113.2\n>CLIENT:ENV,tls_digest_sha256_0=" + digest + "\n>CLIENT:ENV,END",
			session.Tried{Attempt: session.Attempt{Key: key, Handshake: 3}, Peer: peer}},
		{"renegotiation", ">CLIENT:REAUTH,12,4\n>CLIENT:ENV,common_name=n, with=signs\n>CLIENT:ENV,untrusted_ip=203.0.113.2\n>CLIENT:ENV,tls_digest_sha256_0=" + digest + "\n>CLIENT:ENV,END",
			session.Tried{Attempt: session.Attempt{Key: key, Handshake: 4}, Peer: peer, Again: true}},
		{"established", ">CLIENT:ESTABLISHED,12\n>CLIENT:ENV,ifconfig_pool_remote_ip6=fd00:8::1000\n>CLIENT:ENV,ifconfig_pool_remote_ip=10.8.0.2\n>CLIENT:ENV,time_unix=1795286683\n>CLIENT:ENV,daemon_pid=4711\n>CLIENT:ENV,END",
			session.Established{Key: key, Peer: session.Peer{Protocol: 1}, Process: 4711, Since: time.Unix(1795286683, 0),
				Addresses: []netip.Addr{netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("fd00:8::1000")}}},
		{"disconnect", ">CLIENT:DISCONNECT,12\n>CLIENT:ENV,END", session.Ended{Key: key}},
		{"address", ">CLIENT:ADDRESS,12,10.8.0.2,1", nil},
		{"challenge response", ">CLIENT:CR_RESPONSE,12,3,c2VjcmV0\n>CLIENT:ENV,END", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := lines(t, &parser{}, c.text)
			if len(got) != 1 || got[0].client == nil {
				t.Fatalf("messages %+v", got)
			}
			if e := got[0].client.meaning("s"); !equal(e, c.want) {
				t.Errorf("%+v, want %+v", e, c.want)
			}
		})
	}
}

func TestFingerprintsAreWholeOrMissing(t *testing.T) {
	if len(fingerprint(digest)) != 32 {
		t.Error("a digest was not read")
	}
	for _, bad := range []string{"", "20", digest + ":00", digest[:len(digest)-3], strings.Repeat("zz:", 32), "sha256"} {
		if got := fingerprint(bad); got != nil {
			t.Errorf("%q became %x", bad, got)
		}
	}
}

func TestWhatIsNotTheProtocolEndsTheConnection(t *testing.T) {
	for _, text := range []string{
		">CLIENT:CONNECT,12",
		">CLIENT:CONNECT,twelve,3",
		">CLIENT:CONNECT,-1,3",
		">CLIENT:ESTABLISHED,99999999999999999999",
		">CLIENT:ENV,common_name=x",
		">CLIENT:CONNECT,1,2\n>CLIENT:CONNECT,3,4",
		">CLIENT:CONNECT,1,2\nSUCCESS: x",
		">CLIENT:CONNECT,1,2\n>CLIENT:ENV,no sign",
		">CLIENT:CONNECT,1,2\n>CLIENT:ENV,tls_digest_sha256_0=aa\n>CLIENT:ENV,tls_digest_sha256_0=bb",
		">nothing",
		">CLIENT:CONNECT,1,2" + manyVariables(maxVariables+1),
	} {
		var p parser
		var err error
		for l := range strings.SplitSeq(text, "\n") {
			if _, err = p.line(l); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%q was taken", shorten(text))
		}
	}
}

func manyVariables(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("\n>CLIENT:ENV,v")
		b.WriteString(strings.Repeat("x", i+1))
		b.WriteString("=1")
	}
	return b.String()
}

// A notification of a later version is passed over with its variables.
func TestUnknownNotificationsArePassedOver(t *testing.T) {
	got := lines(t, &parser{}, ">CLIENT:MOOD,12,good\n>CLIENT:ENV,a=b\n>CLIENT:ENV,END\n>CLIENT:DISCONNECT,1\n>CLIENT:ENV,END")
	if len(got) != 2 || got[0].source != "CLIENT" || got[1].client == nil {
		t.Errorf("%+v", got)
	}
}

func TestStatusListsSessions(t *testing.T) {
	text, err := os.ReadFile("testdata/status3.txt")
	if err != nil {
		t.Fatal(err)
	}
	got, waiting, err := parseStatus("s", strings.Split(strings.TrimSpace(string(text)), "\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []session.Live{
		{Key: session.Key{Server: "s", CID: 0}, Name: "Nöte book/4711", Outer: "203.0.113.2:47214", Since: time.Unix(1795286683, 0),
			Addresses: []netip.Addr{netip.MustParseAddr("10.8.0.2"), netip.MustParseAddr("fd00:8::1000")}},
		{Key: session.Key{Server: "s", CID: 7}, Name: "notebook-2", Outer: "2001:db8::2", Since: time.Unix(1795286821, 0),
			Addresses: []netip.Addr{netip.MustParseAddr("10.8.0.3"), netip.MustParseAddr("fd00:8::1001")}},
	}
	if !equal(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if len(waiting) != 1 || waiting[0].CID != 3 {
		t.Errorf("waiting %+v", waiting)
	}
}

func TestBrokenStatusIsAnError(t *testing.T) {
	header := "HEADER\tCLIENT_LIST\tCommon Name\tReal Address\tVirtual Address\tClient ID"
	for _, text := range []string{
		"",
		"TITLE\tOpenVPN",
		"CLIENT_LIST\tx\t1.2.3.4:5\t10.8.0.2\t1",
		header + "\nCLIENT_LIST\tx\t1.2.3.4:5\t10.8.0.2",
		header + "\nCLIENT_LIST\tx\t1.2.3.4:5\t10.8.0.2\tone",
	} {
		if got, _, err := parseStatus("s", strings.Split(text, "\n")); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func TestQuotedTextStaysOneParameter(t *testing.T) {
	for _, c := range []struct {
		text string
		max  int
		want string
	}{
		{"Kein Zugang: Übergangsfrist", 200, `"Kein Zugang: Übergangsfrist"`},
		{"a\" b\\\nclient-auth-nt 0 1\r\x00\x1b[31m", 200, `"a b client-auth-nt 0 1[31m"`},
		{"\xff\xfebroken", 200, `"broken"`},
		{"äöü", 5, `"äö"`},
		{"\u2028\u200bx", 200, `"x"`},
		{"", 200, `""`},
	} {
		if got := quote(c.text, c.max); got != c.want {
			t.Errorf("%q: %s, want %s", c.text, got, c.want)
		}
	}
}

func TestOuterAddressesThatKillUnderstands(t *testing.T) {
	for outer, want := range map[string]string{
		"203.0.113.2:47214":      "203.0.113.2:47214",
		"udp4:203.0.113.2:47214": "udp:203.0.113.2:47214",
		"tcp4-server:1.2.3.4:5":  "tcp:1.2.3.4:5",
		"2001:db8::2":            "",
		"[2001:db8::2]:47214":    "",
		"999.0.113.2:47214":      "",
		"203.0.113.2":            "",
		"203.0.113.2:1 x":        "",
		"":                       "",
	} {
		if got, ok := outerTarget(outer); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %t, want %q", outer, got, ok, want)
		}
	}
}

func TestNamesThatKillCanSay(t *testing.T) {
	for name, want := range map[string]bool{
		"notebook-4711": true, "Nöte book/4711": true, "": false, "UNDEF": false, "a:b": false, `a"b`: false, `a\b`: false, "a\nb": false,
	} {
		if got := sayable(name); got != want {
			t.Errorf("%q: %t", name, got)
		}
	}
}

func FuzzManagement(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no recordings: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var p parser
		var status []string
		for l := range bytes.Lines(text) {
			line := strings.TrimRight(strings.TrimPrefix(string(l), "S "), "\r\n")
			m, err := p.line(line)
			if err != nil {
				break
			}
			if m.reply {
				status = append(status, m.text)
			}
			if m.client == nil {
				continue
			}
			if e, ok := m.client.meaning("s").(session.Tried); ok && e.Fingerprint != nil && len(e.Fingerprint) != 32 {
				t.Fatalf("fingerprint of %d bytes", len(e.Fingerprint))
			}
		}
		if live, _, err := parseStatus("s", status); err == nil {
			for _, l := range live {
				if len(l.Addresses) == 0 {
					t.Fatalf("session without an address: %+v", l)
				}
			}
		}
	})
}

func FuzzQuote(f *testing.F) {
	f.Add("Kein Zugang", 200)
	f.Add("\"\\\n\x00\xff", 3)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		limit = max(0, limit)
		q := quote(text, limit)
		inner := q[1 : len(q)-1]
		if strings.ContainsAny(inner, "\"\\\r\n\x00") || !utf8.ValidString(inner) || len(inner) > limit {
			t.Fatalf("%q quoted as %s", text, q)
		}
		if words, err := splitWords("client-deny 1 2 \"denied\" " + q); err != nil || len(words) != 5 || words[4] != inner {
			t.Fatalf("%s is read as %q, %v", q, words, err)
		}
	})
}
