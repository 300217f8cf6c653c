package session

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"pfoertner/internal/lease"
	gatev1 "pfoertner/proto/pfoertner/gate/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// adoptFor is how long the book believes that what the last gate granted a
// session is still in the packet filter. The kernel knows better and acts by
// itself; this only says when the book follows.
const adoptFor = 15 * time.Second

// journalVersion is that of the file's form. Another one is not read: its
// sessions are then unknown, and cut.
const journalVersion = 1

// journal is the file that lets the next gate recognise live sessions.
type journal struct {
	Version  int        `json:"version"`
	Sessions []recorded `json:"sessions"`
}

// recorded is one session: what names it (the server's process, number, begin,
// name, addresses) and whose it is (the fingerprint).
type recorded struct {
	ID          string          `json:"id"`
	Server      string          `json:"server"`
	Process     int             `json:"process"`
	CID         uint64          `json:"cid"`
	Since       time.Time       `json:"since"`
	Name        string          `json:"name"`
	Addresses   []netip.Addr    `json:"addresses"`
	Outer       string          `json:"outer"`
	Protocol    gatev1.Protocol `json:"protocol"`
	Fingerprint string          `json:"fingerprint"`
	Verdict     int32           `json:"verdict"`
	Epoch       uint64          `json:"epoch"`
	Sequence    uint64          `json:"sequence"`
}

// record writes the sessions of the book to path, all or nothing. It is not
// forced to disk: when the machine dies, the sessions die with it.
func (b *Book) record(path string) error {
	j := journal{Version: journalVersion, Sessions: []recorded{}}
	for _, e := range b.ordered() {
		if e.state != up && e.state != cutting {
			continue
		}
		j.Sessions = append(j.Sessions, recorded{
			ID: e.id, Server: e.Server, Process: e.process, CID: e.CID, Since: e.since, Name: e.name,
			Addresses: e.addresses, Outer: e.outer, Protocol: e.protocol, Fingerprint: hex.EncodeToString(e.fingerprint[:]),
			Verdict: int32(e.verdict), Epoch: e.at.Epoch, Sequence: e.at.Sequence,
		})
	}
	text, err := json.MarshalIndent(j, "", " ")
	if err != nil {
		return fmt.Errorf("writing journal: %w", err)
	}
	next := path + ".next"
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return fmt.Errorf("writing journal: %w", err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("writing journal: %w", err)
	}
	return nil
}

// restore reads what the last gate recorded. A journal that is not there is
// none; one that can't be read is an error, and the sessions in it are unknown.
func (b *Book) restore(path string, now time.Time) error {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err != nil {
		return fmt.Errorf("reading journal: %w", err)
	}
	entries, err := parseJournal(text, now)
	if err != nil {
		return fmt.Errorf("reading journal %s: %w", path, err)
	}
	for _, e := range entries {
		b.sessions[e.Key] = e
	}
	return nil
}

func parseJournal(text []byte, now time.Time) ([]*entry, error) {
	var j journal
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, err
	}
	if j.Version != journalVersion {
		return nil, fmt.Errorf("version %d is not known", j.Version)
	}
	var out []*entry
	for i, r := range j.Sessions {
		sum, err := hex.DecodeString(r.Fingerprint)
		if err != nil || len(sum) != len(fingerprint{}) || r.ID == "" {
			return nil, fmt.Errorf("session %d is not complete", i+1)
		}
		e := &entry{
			Key: Key{r.Server, r.CID}, id: r.ID, process: r.Process, since: r.Since, name: r.Name,
			addresses: r.Addresses, outer: r.Outer, protocol: r.Protocol, fingerprint: fingerprint(sum),
			verdict: understood(posturev1.Verdict(r.Verdict)), at: lease.Position{Epoch: r.Epoch, Sequence: r.Sequence},
			state: up, noted: now, adopted: true,
		}
		if e.verdict == deny {
			e.state = cutting
		}
		out = append(out, e)
	}
	return out, nil
}
