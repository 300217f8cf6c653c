package appraisal

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"time"

	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// codeAlphabet has no two characters that look or sound alike on the telephone:
// neither 0 nor O, neither 1 nor I nor L, no U beside V, no S beside 5.
const codeAlphabet = "23456789ABCDEFGHJKMNPQRTVWXYZ"

const codeLength = 6

// refusalCode is the short code of a refusal, empty when nothing is refused. It
// depends on the device, on the rules that keep it out and on the days since
// which they do, so that it stays the same as long as the cause does.
func refusalCode(deviceID string, res *posturev1.Result) string {
	if res.GetVerdict() == posturev1.Verdict_VERDICT_ADMIT {
		return ""
	}
	var causes []string
	for _, f := range res.GetFindings() {
		if verdictOf(f.GetEffect()) != posturev1.Verdict_VERDICT_ADMIT {
			causes = append(causes, f.GetRule()+" "+f.GetFailingSince().AsTime().UTC().Format(time.DateOnly))
		}
	}
	slices.Sort(causes)
	return Code(append(causes, deviceID)...)
}

// Code makes the short code, "7K4-QX2", that stands for what the parts name.
func Code(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		// A length before each part keeps ("ab", "c") and ("a", "bc") apart.
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		io.WriteString(h, p)
	}
	n := binary.BigEndian.Uint64(h.Sum(nil))
	code := make([]byte, 0, codeLength+1)
	for i := range codeLength {
		if i == codeLength/2 {
			code = append(code, '-')
		}
		code = append(code, codeAlphabet[n%uint64(len(codeAlphabet))])
		n /= uint64(len(codeAlphabet))
	}
	return string(code)
}

// NormalizeCode brings a refusal code as somebody read it out or typed it
// ("7k4 qx2") into the form in which it is stored ("7K4-QX2"). What cannot be a
// code comes back without its separators.
func NormalizeCode(code string) string {
	var b strings.Builder
	for _, r := range strings.ToUpper(code) {
		switch r {
		case ' ', '-', '–', '.', '_', '\t', '\n':
			continue
		}
		b.WriteRune(r)
	}
	s := b.String()
	if len(s) != codeLength {
		return s
	}
	return s[:codeLength/2] + "-" + s[codeLength/2:]
}
