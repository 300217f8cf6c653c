package bootlog_test

import (
	"encoding/hex"
	"os"
	"testing"

	"pfoertner/internal/attest/bootlog"
)

// Logs that OVMF wrote in virtual machines with swtpm, as Linux gave them out,
// and the PCRs that the TPM quoted there.
func TestLogsOfRealFirmware(t *testing.T) {
	for name, tc := range map[string]struct {
		pcrs      map[uint32]string
		on, setup bootlog.Ternary
		loaders   int // qemu hands the kernel over itself; firmware that checks signatures never sees it
	}{
		"ovmf-secure-boot": {map[uint32]string{
			0: "27fcccfa7f522e228d13ff449bd8c39507a97d7d96b808e9608ddff9b6b0719a",
			2: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
			4: "7a94ffe8a7729a566d3d3c577fcb4b6b1e671f31540375f80eae6382ab785e35",
			7: "3218b794a8ef4ab13903f0fc1cd167c9cc247a001201d28540d6c01e90f8fc36",
		}, bootlog.Yes, bootlog.No, 0},
		"ovmf-setup-mode": {map[uint32]string{
			0: "87ed0d849299ff67de70a6da0449c93b8aa52ab1eef86bfa5b7bd471e3613e63",
			2: "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969",
			4: "2ac7b50273a2aa3bfb15165bc2693de9c1c769125131bc0deba80426e80a22ca",
			7: "65caf8dd1e0ea7a6347b635d2b379c93b9a1351edc2afc3ecda700e534eb3068",
		}, bootlog.No, bootlog.Yes, 1},
	} {
		raw, err := os.ReadFile("testdata/" + name + ".bin")
		if err != nil {
			t.Fatal(err)
		}
		log, err := bootlog.Parse(raw)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		quoted := map[uint32][]byte{}
		for pcr, value := range tc.pcrs {
			if quoted[pcr], err = hex.DecodeString(value); err != nil {
				t.Fatal(err)
			}
		}
		f, err := log.Facts(quoted)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if f.SecureBoot != tc.on || f.SetupMode != tc.setup || len(f.Replayed) != 4 || len(f.Separated) != 4 {
			t.Errorf("%s: %+v", name, f)
		}
		if len(f.Loaders) != tc.loaders || f.DB == nil || f.DBX == nil || f.KEK == nil || f.PK == nil {
			t.Errorf("%s: %d loaders, %+v", name, len(f.Loaders), f)
		}
	}
}
