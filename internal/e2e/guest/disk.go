//go:build linux

package guest

import (
	"encoding/binary"
	"os"
	"testing"
)

const (
	sector      = 512
	firstSector = 2048
	// rootSize holds the programs, partitionSize a LUKS2 header of 16 MiB with
	// something behind it; in bytes.
	rootSize      = 96 << 20
	partitionSize = 40 << 20
)

// writeDisk makes a disk with up to four partitions of the given sizes (an MBR:
// entries of 16 bytes from 446, each with type, first sector and length). It
// takes no room until it is written to.
func writeDisk(t testing.TB, name string, partitions ...int) {
	t.Helper()
	record := make([]byte, sector)
	record[510], record[511] = 0x55, 0xaa
	next := firstSector
	for i, size := range partitions {
		entry := record[446+16*i:]
		entry[4] = 0x83 // Linux
		binary.LittleEndian.PutUint32(entry[8:], uint32(next))
		binary.LittleEndian.PutUint32(entry[12:], uint32(size/sector))
		next += size / sector
	}
	if err := os.WriteFile(name, record, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, int64(next)*sector); err != nil {
		t.Fatal(err)
	}
}
