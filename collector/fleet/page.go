package fleet

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
)

// position is a device's place in an order: the key it is ordered by, then its
// asset number, which is unique.
type position struct {
	key, number string
}

func (p position) compare(other position) int {
	return cmp.Or(cmp.Compare(p.key, other.key), cmp.Compare(p.number, other.number))
}

// A page token is the position of the last device of a page behind a checksum
// that also covers the query: it leads on from there in the same query, however
// the fleet has changed, and nowhere in another one.

const checksumSize = 8

var errToken = errors.New("page token is not one of this query: begin again without it")

func encodeToken(query string, last position) string {
	body := binary.AppendUvarint(nil, uint64(len(last.key)))
	body = append(body, last.key...)
	body = append(body, last.number...)
	return base64.RawURLEncoding.EncodeToString(append(tokenSum(query, body), body...))
}

func decodeToken(query, token string) (position, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < checksumSize || !bytes.Equal(b[:checksumSize], tokenSum(query, b[checksumSize:])) {
		return position{}, errToken
	}
	body := b[checksumSize:]
	length, n := binary.Uvarint(body)
	if n <= 0 || length > uint64(len(body)-n) {
		return position{}, errToken
	}
	body = body[n:]
	return position{key: string(body[:length]), number: string(body[length:])}, nil
}

func tokenSum(query string, body []byte) []byte {
	h := sha256.New()
	h.Write(binary.AppendUvarint(nil, uint64(len(query))))
	h.Write([]byte(query))
	h.Write(body)
	return h.Sum(nil)[:checksumSize]
}
