package enrolment

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

const (
	// MaxTokenLifetime is how long a token is valid at most, and by default.
	MaxTokenLifetime = 72 * time.Hour

	tokenPrefix = "PFT"
	tokenBytes  = 20 // 160 bits
)

// CreateToken makes a token with which the asset's notebook enrols, once. Zero
// lifetime is MaxTokenLifetime. The token is shown this once: the store keeps
// a hash. The error wraps fs.ErrNotExist for an unknown asset, ErrTransition
// for one that is suspended or retired, fs.ErrInvalid for a lifetime that is
// negative or too long.
func (r *Registry) CreateToken(ctx context.Context, actor, assetNumber string, lifetime time.Duration) (token string, expires time.Time, err error) {
	if lifetime == 0 {
		lifetime = MaxTokenLifetime
	}
	if lifetime < 0 || lifetime > MaxTokenLifetime {
		return "", time.Time{}, fmt.Errorf("lifetime %s: more than 0 and at most %s: %w", lifetime, MaxTokenLifetime, fs.ErrInvalid)
	}
	d, ok := r.lookup(r.byAsset, assetNumber)
	if !ok {
		return "", time.Time{}, fmt.Errorf("asset %q: %w", assetNumber, fs.ErrNotExist)
	}
	if why := notEnrollable(d); why != "" {
		return "", time.Time{}, fmt.Errorf("a token for asset %s, which is %s: %w", assetNumber, stateName(d.GetAsset().GetState()), ErrTransition)
	}
	secret := make([]byte, tokenBytes)
	if _, err := rand.Read(secret); err != nil {
		return "", time.Time{}, fmt.Errorf("making token: %w", err)
	}
	token = formatToken(secret)
	expires = r.now().Add(lifetime)
	record := r.record("token.created", actor, d, map[string]string{"expires": expires.UTC().Format(time.RFC3339)})
	if err := r.store.SaveToken(ctx, hashToken(token), assetNumber, expires, record); err != nil {
		return "", time.Time{}, fmt.Errorf("making token: %w", err)
	}
	return token, expires, nil
}

// formatToken writes a token as people see it: "PFT-" and eight groups of four
// characters of RFC 4648's base32 alphabet.
func formatToken(secret []byte) string {
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)
	var b strings.Builder
	b.WriteString(tokenPrefix)
	for i := 0; i < len(text); i += 4 {
		b.WriteString("-" + text[i:i+4])
	}
	return b.String()
}

// hashToken is the SHA-256 of a token. Case, hyphens and blanks do not matter:
// tokens are copied by hand, too.
func hashToken(token string) []byte {
	plain := strings.Map(func(c rune) rune {
		if c == '-' || c == ' ' || c == '\t' || c == '\r' || c == '\n' {
			return -1
		}
		return c
	}, strings.ToUpper(token))
	sum := sha256.Sum256([]byte(plain))
	return sum[:]
}
