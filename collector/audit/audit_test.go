package audit

import (
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// chain makes a log of n records.
func chain(n int) []Sealed {
	head, log := Genesis(), []Sealed(nil)
	for i := range n {
		s := head.Seal(Record{
			At: noon.Add(time.Duration(i) * time.Second), Kind: "token.created", Actor: "operator:anna",
			AssetNumber: fmt.Sprintf("HB-%04d", i), Details: map[string]string{"lifetime": "72h", "asset": fmt.Sprint(i)},
		})
		log, head = append(log, s), s.Head()
	}
	return log
}

func headOf(log []Sealed) Head {
	if len(log) == 0 {
		return Genesis()
	}
	return log[len(log)-1].Head()
}

func verify(log []Sealed, head Head, noted ...[]byte) []string {
	v := NewVerifier()
	for _, hash := range noted {
		v.Note(hash)
	}
	for _, s := range log {
		v.Next(s)
	}
	var said []string
	for _, f := range v.Finish(head) {
		said = append(said, fmt.Sprintf("%s %d: %s", f.Kind, f.Sequence, f.Message))
	}
	return said
}

func TestAWholeChainHasNoFaults(t *testing.T) {
	for _, n := range []int{0, 1, 2, 1000} {
		log := chain(n)
		if said := verify(log, headOf(log), headOf(log[:n/2]).Hash, headOf(log).Hash); said != nil {
			t.Errorf("%d records: %q", n, said)
		}
	}
}

// resealed is the log with record i changed by someone who knows the method and
// made its hash right again.
func resealed(log []Sealed, i int) []Sealed {
	head := Genesis()
	if i > 0 {
		head = log[i-1].Head()
	}
	r := log[i].Record
	r.Actor = "operator:nobody"
	log[i] = head.Seal(r)
	return log
}

func TestWhatWasDoneToTheLogIsFound(t *testing.T) {
	tests := []struct {
		name string
		do   func(log []Sealed) []Sealed
		want []string
	}{
		{"first record removed", func(l []Sealed) []Sealed { return l[1:] },
			[]string{"missing 1: record 1 is missing"}},
		{"records removed", func(l []Sealed) []Sealed { return slices.Delete(l, 3, 6) },
			[]string{"missing 4: records 4 to 6 are missing"}},
		{"end cut off", func(l []Sealed) []Sealed { return l[:7] },
			[]string{"missing 8: records 8 to 10 are missing"}},
		{"all removed", func([]Sealed) []Sealed { return nil },
			[]string{"missing 1: records 1 to 10 are missing"}},
		{"time changed", func(l []Sealed) []Sealed { l[4].At = l[4].At.Add(time.Nanosecond); return l },
			[]string{"changed 5: record 5 does not match its hash"}},
		{"detail changed", func(l []Sealed) []Sealed { l[4].Details["lifetime"] = "73h"; return l },
			[]string{"changed 5: record 5 does not match its hash"}},
		{"detail moved to its neighbour", func(l []Sealed) []Sealed {
			l[4].Details = map[string]string{"asset": "472h", "lifetime": ""}
			return l
		}, []string{"changed 5: record 5 does not match its hash"}},
		{"field moved to its neighbour", func(l []Sealed) []Sealed {
			l[4].Kind, l[4].Actor = l[4].Kind+"o", l[4].Actor[1:]
			return l
		}, []string{"changed 5: record 5 does not match its hash"}},
		{"changed and hashed anew", func(l []Sealed) []Sealed { return resealed(l, 4) },
			[]string{"changed 5: record 5 is not the one that record 6 was written after"}},
		{"newest changed and hashed anew", func(l []Sealed) []Sealed { return resealed(l, 9) },
			[]string{"changed 10: record 10 is not the one that the head names"}},
		{"first one of another log", func(l []Sealed) []Sealed {
			l[0] = Head{Hash: []byte("elsewhere")}.Seal(l[0].Record)
			return l
		}, []string{
			"changed 1: record 1 does not follow the beginning of the log",
			"changed 1: record 1 is not the one that record 2 was written after"}},
		{"two exchanged", func(l []Sealed) []Sealed {
			l[4], l[5] = l[5], l[4]
			l[4].Sequence, l[5].Sequence = 5, 6
			return l
		}, []string{
			"reordered 5: record 6 stands in the place of record 5",
			"reordered 6: record 5 stands in the place of record 6"}},
		{"one read twice", func(l []Sealed) []Sealed { return slices.Insert(l, 6, l[3]) },
			[]string{"reordered 4: record 4 stands behind record 6"}},
		{"one added at the end", func(l []Sealed) []Sealed {
			return append(l, l[9].Head().Seal(Record{At: noon, Kind: "token.created"}))
		}, []string{"changed 11: records go on to 11, behind the head at 10"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			head := headOf(chain(10))
			if got := verify(tt.do(chain(10)), head); !slices.Equal(got, tt.want) {
				t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(tt.want, "\n  "))
			}
		})
	}
}

// Who can write the whole database can make a sound chain of anything; a hash
// that was noted elsewhere finds it.
func TestARewrittenChainIsFoundByANotedHash(t *testing.T) {
	noted := chain(10)[6].Hash
	rewritten := chain(10)[:3]
	for i := range 7 {
		rewritten = append(rewritten, headOf(rewritten).Seal(Record{At: noon, Kind: "token.created", AssetNumber: fmt.Sprint(i)}))
	}
	if said := verify(rewritten, headOf(rewritten)); said != nil {
		t.Errorf("without the noted hash: %q", said)
	}
	want := fmt.Sprintf("missing 0: no sound record has the noted hash %x", noted)
	if said := verify(rewritten, headOf(rewritten), noted); !slices.Equal(said, []string{want}) {
		t.Errorf("got %q, want %q", said, want)
	}
}

// A hash that was pasted into a record must not count as the record.
func TestANotedHashCountsOnlyOnASoundRecord(t *testing.T) {
	noted := chain(10)[4].Hash
	log := chain(10)
	log[4].Actor = "operator:nobody"
	if said := verify(log, headOf(log), noted); len(said) != 2 {
		t.Errorf("got %q, want the changed record and the noted hash", said)
	}
}

func TestManyFaultsAreCountedNotListed(t *testing.T) {
	log := chain(500)
	for i := range log {
		log[i].Actor = "operator:nobody"
	}
	said := verify(log, headOf(log))
	if len(said) != MaxFaults+1 || said[MaxFaults] != "changed 0: 400 more faults are not listed" {
		t.Errorf("got %d faults, last %q", len(said), said[len(said)-1])
	}
}

// Logs are verified for years: this hash may never change.
func TestTheEncodingStaysAsItIs(t *testing.T) {
	s := Genesis().Seal(Record{
		At: noon, Kind: "verdict.changed", DeviceID: "d-1", AssetNumber: "HB-0001",
		Details: map[string]string{"from": "ADMIT", "to": "DENY"},
	})
	const want = "8c24ef2c63b34013a0789d49ca804736a63344785738dcde74417835ce8d8e92"
	if got := hex.EncodeToString(s.Hash); got != want {
		t.Errorf("hash of the first record %s, want %s", got, want)
	}
}

func TestSealedTextsSurviveEveryDatabase(t *testing.T) {
	r := Record{
		At: noon.In(time.FixedZone("", 3600)), Kind: "gate.alarm", Actor: "gate\xff\x00",
		Details: map[string]string{"a\x00": "b\xfe"},
	}
	s := Genesis().Seal(r)
	if s.Actor != "gate\uFFFD\uFFFD" || !maps.Equal(s.Details, map[string]string{"a\uFFFD": "b\uFFFD"}) {
		t.Errorf("sealed as %q %q", s.Actor, s.Details)
	}
	if s.At.Location() != time.UTC || !s.At.Equal(noon) {
		t.Errorf("sealed at %v, want %v", s.At, noon)
	}
	if r.Details["a\x00"] != "b\xfe" {
		t.Error("the caller's record was changed")
	}
}

func TestWhatMustNotEnterTheLog(t *testing.T) {
	tests := []struct {
		name string
		r    Record
		ok   bool
	}{
		{"good", Record{At: noon, Kind: "device.key_replaced"}, true},
		{"no time", Record{Kind: "device.enrolled"}, false},
		{"time that does not fit", Record{At: time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), Kind: "device.enrolled"}, false},
		{"no kind", Record{At: noon}, false},
		{"no dot", Record{At: noon, Kind: "enrolled"}, false},
		{"upper case", Record{At: noon, Kind: "Device.enrolled"}, false},
		{"two lines", Record{At: noon, Kind: "device.enrolled\n"}, false},
	}
	for _, tt := range tests {
		if err := tt.r.Validate(); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// Whatever is recorded, no other record has its hash: not with another
// boundary between the texts, not at another place.
func FuzzTwoRecordsNeverShareAHash(f *testing.F) {
	f.Add("a.b", "cd", "e", "f", "k", "v", uint8(1))
	f.Add("", "", "", "", "", "", uint8(0))
	f.Add("a.b", "x\x00y", "\xff", "7", "k\x00", "v", uint8(3))
	f.Fuzz(func(t *testing.T, kind, actor, device, asset, key, value string, cut uint8) {
		r := Record{At: noon, Kind: kind, Actor: actor, DeviceID: device, AssetNumber: asset, Details: map[string]string{key: value}}
		s := Genesis().Seal(r)
		if string(s.sum(1)) != string(s.Hash) || string(s.sum(2)) == string(s.Hash) {
			t.Fatal("the hash is not that of record 1 alone")
		}
		// Move part of one text to its neighbour.
		joined := s.Actor + s.DeviceID
		other := s
		n := min(int(cut), len(joined))
		other.Actor, other.DeviceID = joined[:n], joined[n:]
		if other.Actor != s.Actor && string(other.sum(1)) == string(s.Hash) {
			t.Fatalf("%q|%q and %q|%q share a hash", s.Actor, s.DeviceID, other.Actor, other.DeviceID)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	log := chain(10_000)
	for b.Loop() {
		if said := verify(log, headOf(log)); said != nil {
			b.Fatal(said)
		}
	}
	b.ReportMetric(float64(b.N)*float64(len(log))/b.Elapsed().Seconds(), "records/s")
}
