package attest

import (
	"bytes"
	"fmt"
)

// VerifyCertify checks that the TPM of ak certifies key for this question
// (Qualify). The error is ErrStatement, ErrReplay or ErrOtherKey.
func VerifyCertify(ak, key *Key, qualifying, message, signature []byte) error {
	_, err := VerifyCertified(ak, key, qualifying, message, signature)
	return err
}

// VerifyCertified is VerifyCertify, and returns the TPM's time in the
// statement.
func VerifyCertified(ak, key *Key, qualifying, message, signature []byte) (Clock, error) {
	s, err := openStatement(ak, typeCertify, qualifying, message, signature)
	if err != nil {
		return Clock{}, err
	}
	name := s.attested.sized()
	s.attested.sized() // the qualified name says nothing more
	if !s.attested.done() {
		return Clock{}, fmt.Errorf("%w: malformed certification", ErrStatement)
	}
	if !bytes.Equal(name, key.Name) {
		return Clock{}, ErrOtherKey
	}
	return s.clock, nil
}
