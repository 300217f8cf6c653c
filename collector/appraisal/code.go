package appraisal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

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

// ErrCode is the error of ParseCode.
var ErrCode = errors.New(`a refusal code has six letters and digits, none of them 0, 1, I, L or O: "7K4-QX2"`)

// ParseCode is a refusal code as Code made it, from what somebody typed or read
// out on the telephone: case, hyphens and blanks do not matter, and U and S are
// taken for what they look like.
func ParseCode(said string) (string, error) {
	var b strings.Builder
	for _, r := range said {
		switch r = unicode.ToUpper(r); {
		case unicode.IsSpace(r), unicode.Is(unicode.Dash, r), r == '.':
			continue
		case r == 'U':
			r = 'V'
		case r == 'S':
			r = '5'
		}
		if !strings.ContainsRune(codeAlphabet, r) {
			return "", ErrCode
		}
		b.WriteRune(r)
	}
	code := b.String()
	if len(code) != codeLength {
		return "", ErrCode
	}
	return code[:codeLength/2] + "-" + code[codeLength/2:], nil
}
