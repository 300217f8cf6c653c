package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"pfoertner/agent/durable"
)

const (
	// nextName is the key that is to replace that of a certificate: like every
	// key it is stored before it is used, and the certificate stays until the
	// new one is there.
	nextName = "identity.next.json"
	// tokenName is the SHA-256 of the last token that is of no use any more.
	tokenName = "spent-token"
)

// next is the place of the key that is to replace the one in use.
func (s *State) next() *State { return &State{path: s.beside(nextName), keys: s.keys} }

// nextKey returns the key that is to replace the one of id: that of an earlier
// attempt whose end is not known, or a new one. It is in no certificate that
// this notebook has, so a file that is broken is made anew.
func (s *State) nextKey(id *Identity) (*Identity, error) {
	earlier, err := s.next().Load()
	switch {
	case err == nil && !earlier.Enrolled() && !sameKey(earlier.Key, id.Key):
		return earlier, nil
	case err != nil && !errors.Is(err, ErrNotEnrolled) && !errors.Is(err, ErrBroken):
		return nil, err
	}
	return s.next().makeKey(durable.WriteFile)
}

// raisedKey returns the key in the TPM that is to replace a software key: that
// of an earlier attempt, or a new one if there is a token for it. Otherwise it
// returns other, which says that there is a software key.
func (s *State) raisedKey(other error, token string) (*Identity, error) {
	earlier, err := s.next().Load()
	switch {
	case err == nil:
		return earlier, nil
	case token == "":
		return nil, other
	case !errors.Is(err, ErrNotEnrolled) && !errors.Is(err, ErrBroken) && !errors.Is(err, ErrOtherKind):
		return nil, err
	}
	return s.next().makeKey(durable.WriteFile)
}

// unfinished returns the keys in the TPM that were to replace those of id by a
// renewal whose end is not known: the collector may know them instead. Nil:
// there are none.
func (s *State) unfinished(id *Identity) *Identity {
	if !id.InTPM() || !id.Enrolled() {
		return nil
	}
	next, err := s.next().Load()
	if err != nil || next.Enrolled() || sameKey(next.Key, id.Key) && sameKey(next.ak, id.ak) {
		return nil
	}
	return next
}

func sameKey(a, b interface{ Public() crypto.PublicKey }) bool {
	public, ok := a.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(b.Public())
}

// forgetNext removes the key that has become the one in use. Should it stay,
// nextKey knows it.
func (s *State) forgetNext() { _ = os.Remove(s.beside(nextName)) }

// Spend remembers that a token is of no use any more: it has enrolled this
// notebook, or the collector has refused it. Only its hash is kept.
func (s *State) Spend(token string) error {
	sum := sha256.Sum256([]byte(token))
	if err := durable.WriteFile(s.beside(tokenName), sum[:], 0o600); err != nil {
		return fmt.Errorf("remembering the token: %w", err)
	}
	return nil
}

// spendAny is Spend, if there is a token.
func (s *State) spendAny(token string) error {
	if token == "" {
		return nil
	}
	return s.Spend(token)
}

// Spent says whether a token is the one that Spend was told last.
func (s *State) Spent(token string) (bool, error) {
	kept, err := os.ReadFile(s.beside(tokenName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading what is known of tokens: %w", err)
	}
	sum := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(kept, sum[:]) == 1, nil
}
