package openvpn

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"pfoertner/collector/gate/session"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
)

// Limits of what the server may say. A notification of a real client has about
// 60 variables.
const (
	maxLine      = 64 << 10
	maxVariables = 1024
)

// message is what one line completes: a notification, a line that answers a
// command, or (the zero message) nothing yet.
type message struct {
	// reply is set for a line that answers a command; text is that line.
	reply bool
	// source of a real-time message that is no CLIENT notification: "HOLD",
	// "FATAL", "INFO"; text is the rest of the line.
	source string
	text   string
	// client is a complete CLIENT notification.
	client *notification
}

// notification is a ">CLIENT:" message with its variables.
type notification struct {
	event     string // CONNECT, REAUTH, ESTABLISHED, DISCONNECT, ADDRESS, CR_RESPONSE
	cid       uint64
	handshake uint64 // KID
	variables map[string]string
}

// parser puts lines of the management interface together.
type parser struct {
	open *notification // waits for its variables
	// skip passes over the variables of a notification that this version does
	// not know.
	skip bool
}

// line takes one line without its end. An error says that the other end does
// not speak the protocol: nothing it says later can be trusted.
func (p *parser) line(line string) (message, error) {
	switch {
	case strings.HasPrefix(line, ">CLIENT:ENV,") && p.skip:
		return message{}, nil
	case strings.HasPrefix(line, ">CLIENT:ENV,"):
		return p.variable(strings.TrimPrefix(line, ">CLIENT:ENV,"))
	case p.open != nil:
		return message{}, fmt.Errorf("%q inside a CLIENT:%s notification", shorten(line), p.open.event)
	case strings.HasPrefix(line, ">CLIENT:"):
		return p.notify(strings.TrimPrefix(line, ">CLIENT:"))
	case strings.HasPrefix(line, ">"):
		source, text, ok := strings.Cut(line[1:], ":")
		if !ok {
			return message{}, fmt.Errorf("real-time message without a source: %q", shorten(line))
		}
		return message{source: source, text: text}, nil
	}
	return message{reply: true, text: line}, nil
}

func (p *parser) notify(rest string) (message, error) {
	fields := strings.Split(rest, ",")
	n := &notification{event: fields[0], variables: map[string]string{}}
	numbers := map[string]int{"CONNECT": 2, "REAUTH": 2, "CR_RESPONSE": 2, "ESTABLISHED": 1, "DISCONNECT": 1, "ADDRESS": 1}
	want, known := numbers[n.event]
	p.skip = !known
	if !known {
		return message{source: "CLIENT", text: rest}, nil
	}
	if len(fields) <= want {
		return message{}, fmt.Errorf("notification %q: fields missing", shorten(rest))
	}
	for i, into := range []*uint64{&n.cid, &n.handshake}[:want] {
		v, err := strconv.ParseUint(fields[1+i], 10, 64)
		if err != nil {
			return message{}, fmt.Errorf("notification %q: %w", shorten(rest), err)
		}
		*into = v
	}
	if n.event == "ADDRESS" {
		return message{client: n}, nil // the only one without variables
	}
	p.open = n
	return message{}, nil
}

func (p *parser) variable(text string) (message, error) {
	if p.open == nil {
		return message{}, errors.New("variable outside a notification")
	}
	if text == "END" {
		n := p.open
		p.open = nil
		return message{client: n}, nil
	}
	name, value, ok := strings.Cut(text, "=")
	if !ok {
		return message{}, fmt.Errorf("variable without a value: %q", shorten(text))
	}
	if len(p.open.variables) >= maxVariables {
		return message{}, fmt.Errorf("notification with more than %d variables", maxVariables)
	}
	if before, twice := p.open.variables[name]; twice && before != value {
		return message{}, fmt.Errorf("variable %q comes twice, with different values", shorten(name))
	}
	p.open.variables[name] = value
	return message{}, nil
}

// meaning is what a notification says to the gate; nil for those that say
// nothing to it (ADDRESS, CR_RESPONSE).
func (n *notification) meaning(server string) session.Event {
	key := session.Key{Server: server, CID: n.cid}
	switch n.event {
	case "CONNECT", "REAUTH":
		return session.Tried{
			Attempt: session.Attempt{Key: key, Handshake: n.handshake},
			Peer:    n.peer(),
			Again:   n.event == "REAUTH",
		}
	case "ESTABLISHED":
		e := session.Established{Key: key, Peer: n.peer(), Since: unixTime(n.variables["time_unix"])}
		e.Process, _ = strconv.Atoi(n.variables["daemon_pid"]) // zero: matches nothing after a restart
		for _, name := range []string{"ifconfig_pool_remote_ip", "ifconfig_pool_remote_ip6"} {
			if a, err := netip.ParseAddr(n.variables[name]); err == nil {
				e.Addresses = append(e.Addresses, a)
			}
		}
		return e
	case "DISCONNECT":
		return session.Ended{Key: key}
	}
	return nil
}

func (n *notification) peer() session.Peer {
	outer := n.variables["untrusted_ip"]
	if outer == "" {
		outer = n.variables["untrusted_ip6"]
	}
	return session.Peer{
		Fingerprint: fingerprint(n.variables["tls_digest_sha256_0"]),
		Name:        n.variables["common_name"],
		Outer:       outer,
		Protocol:    gatev1.Protocol_PROTOCOL_OPENVPN,
	}
}

// fingerprint reads "20:c2:bb:…"; nil for anything that is not 32 bytes.
func fingerprint(text string) []byte {
	sum, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(sum) != 32 {
		return nil
	}
	return sum
}

// parseStatus reads the lines of `status 3`: the sessions that are up, and the
// clients without a tunnel address, which are in the middle of a handshake or
// already refused. Columns are found by the names in the header: their order
// differs between versions.
func parseStatus(server string, lines []string) (live, waiting []session.Live, err error) {
	var columns []string
	for _, line := range lines {
		fields := strings.Split(line, "\t")
		switch {
		case len(fields) > 2 && fields[0] == "HEADER" && fields[1] == "CLIENT_LIST":
			columns = fields[2:]
		case fields[0] == "CLIENT_LIST":
			if len(fields)-1 != len(columns) {
				return nil, nil, fmt.Errorf("status: client with %d fields, the header names %d", len(fields)-1, len(columns))
			}
			row := map[string]string{}
			for i, name := range columns {
				row[name] = fields[1+i]
			}
			cid, err := strconv.ParseUint(row["Client ID"], 10, 64)
			if err != nil {
				return nil, nil, fmt.Errorf("status: client id: %w", err)
			}
			l := session.Live{
				Key:   session.Key{Server: server, CID: cid},
				Name:  row["Common Name"],
				Outer: row["Real Address"],
				Since: unixTime(row["Connected Since (time_t)"]),
			}
			for _, name := range []string{"Virtual Address", "Virtual IPv6 Address"} {
				if a, err := netip.ParseAddr(row[name]); err == nil {
					l.Addresses = append(l.Addresses, a)
				}
			}
			if len(l.Addresses) > 0 {
				live = append(live, l)
			} else {
				waiting = append(waiting, l)
			}
		}
	}
	if columns == nil {
		return nil, nil, errors.New("status: no client list")
	}
	return live, waiting, nil
}

func unixTime(text string) time.Time {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 {
		return time.Time{}
	}
	return time.Unix(n, 0)
}

// quote makes text one parameter of a management command. What could end the
// parameter or the line (control characters, quotes, backslashes) and what is
// not UTF-8 is left out; more than max bytes are cut off between characters.
func quote(text string, max int) string {
	var b bytes.Buffer
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '\n' || r == '\t':
			r = ' '
		case r == utf8.RuneError || r == '"' || r == '\\' || !unicode.IsPrint(r):
			continue
		}
		if b.Len()-1+utf8.RuneLen(r) > max {
			break
		}
		b.WriteRune(r)
	}
	b.WriteByte('"')
	return b.String()
}

// shorten keeps messages about bad input short.
func shorten(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
