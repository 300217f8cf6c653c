// Package swtpm is the TPM 2.0 of one machine for tests: a real software TPM that
// can be switched off and on, and cleared. Its endorsement key has no
// certificate; makers of TPMs are in internal/e2e. Never shipped.
package swtpm
