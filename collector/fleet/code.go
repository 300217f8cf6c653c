package fleet

import (
	"errors"
	"strings"
	"unicode"
)

// codeLength is the number of letters and digits in a refusal code, without
// its hyphen: "7K4-QX2".
const codeLength = 6

var errCode = errors.New(`a refusal code has six letters and digits: "7K4-QX2"`)

// normalCode is a refusal code as it is stored, from what somebody read out on
// the telephone: case, hyphens and blanks do not matter, and letters that no
// code contains are taken for what they look like.
func normalCode(said string) (string, error) {
	var b strings.Builder
	for _, r := range said {
		switch r = unicode.ToUpper(r); {
		case unicode.IsSpace(r), unicode.Is(unicode.Dash, r), r == '.':
			continue
		case r == 'O':
			r = '0'
		case r == 'I', r == 'L':
			r = '1'
		case r == 'U':
			r = 'V'
		case r < '0' || r > '9' && r < 'A' || r > 'Z':
			return "", errCode
		}
		b.WriteRune(r)
	}
	code := b.String()
	if len(code) != codeLength {
		return "", errCode
	}
	return code[:codeLength/2] + "-" + code[codeLength/2:], nil
}
