// Package chip is the notebook's side of hardware attestation: its TPM 2.0
// makes keys that cannot leave it, signs with them, and states what it is and
// how the machine was started. How that is judged is package attest.
//
// Rules. Everything goes through a resource manager, so that others can use
// the TPM too: /dev/tpmrm0 on Linux, TBS on Windows. Keys are kept as blobs
// that only this TPM can load; nothing is stored in it. They have no
// authorization value and no part in its lockout, so nobody's wrong PIN can
// lock us out. A Chip holds at most three transient objects at a time: some
// TPMs have room for no more.
package chip

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Why the TPM does not serve.
var (
	// ErrUnavailable is the error when there is no TPM, or it does not answer.
	// The keys may still be good: try again later.
	ErrUnavailable = errors.New("TPM is not available")
	// ErrForeign is the error for a key of another TPM, or of this one before
	// it was cleared: it will never load again.
	ErrForeign = errors.New("key does not belong to this TPM")
)

// Chip is a TPM. Its methods may be called from many goroutines; they take
// turns. A connection that is lost, or a TPM that was reset (after sleep), is
// noticed and repaired once per call.
type Chip struct {
	dial func() (transport.TPMCloser, error)
	log  func() ([]byte, error)

	mu     sync.Mutex
	tpm    transport.TPMCloser // nil: not connected
	loaded []loadedKey         // least recently used first
}

type loadedKey struct {
	key    *Key
	handle tpm2.TPMHandle
}

// maxLoaded leaves one of three slots to parents and endorsement keys, which
// come and go within a call.
const maxLoaded = 2

// New makes a chip that is reached by dial, at the first use. eventLog returns
// what firmware and boot loaders measured (TCG event log); nil: there is none.
func New(dial func() (transport.TPMCloser, error), eventLog func() ([]byte, error)) *Chip {
	return &Chip{dial: dial, log: eventLog}
}

// Close unloads all keys and closes the connection. The chip can be used again
// after it: the next call connects anew.
func (c *Chip) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.disconnect()
}

func (c *Chip) disconnect() error {
	if c.tpm == nil {
		return nil
	}
	for _, l := range c.loaded {
		flush(c.tpm, l.handle)
	}
	err := c.tpm.Close()
	c.tpm, c.loaded = nil, nil
	return err
}

// flush unloads an object. That it was not there is as good.
func flush(tpm transport.TPM, handle tpm2.TPMHandle) {
	_, _ = tpm2.FlushContext{FlushHandle: handle}.Execute(tpm)
}

// do runs op with a connection. What op has loaded when the connection turns
// out to be lost is gone: op runs once more, from its start.
func (c *Chip) do(what string, op func(tpm transport.TPM) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.attempt(op)
	if lost(err) {
		_ = c.disconnect() // it is lost already
		err = c.attempt(op)
	}
	if err == nil {
		return nil
	}
	if unavailable(err) {
		_ = c.disconnect()
		return fmt.Errorf("%s: %w: %w", what, ErrUnavailable, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

func (c *Chip) attempt(op func(tpm transport.TPM) error) error {
	if c.tpm == nil {
		tpm, err := c.dial()
		if err != nil {
			return err
		}
		c.tpm = tpm
	}
	return op(c.tpm)
}

// lost says whether a fresh connection may help: the TPM did not answer, was
// busy, or has forgotten what was loaded.
func lost(err error) bool {
	return unavailable(err) || errors.Is(err, tpm2.TPMRCHandle) && !errors.Is(err, ErrForeign)
}

// unavailable says whether err is no answer to the question.
func unavailable(err error) bool {
	var rc tpm2.TPMRC
	switch {
	case err == nil, errors.Is(err, ErrForeign), errors.Is(err, errRefused):
		return false
	case !errors.As(err, &rc):
		return true
	}
	return rc.IsWarning() || rc.Is(tpm2.TPMRCFailure) || rc.Is(tpm2.TPMRCInitialize)
}

// errRefused marks what we refuse ourselves, whatever the TPM says.
var errRefused = errors.New("refused")

// load returns handles of keys, which stay loaded until others need the room.
func (c *Chip) load(tpm transport.TPM, keys ...*Key) ([]tpm2.AuthHandle, error) {
	handles := make([]tpm2.AuthHandle, len(keys))
	for i, k := range keys {
		handle, err := c.loadOne(tpm, k, keys)
		if err != nil {
			return nil, err
		}
		handles[i] = tpm2.AuthHandle{Handle: handle, Name: tpm2.TPM2BName{Buffer: k.public.Name}, Auth: tpm2.PasswordAuth(nil)}
	}
	return handles, nil
}

func (c *Chip) loadOne(tpm transport.TPM, k *Key, needed []*Key) (tpm2.TPMHandle, error) {
	if i := slices.IndexFunc(c.loaded, func(l loadedKey) bool { return l.key == k }); i >= 0 {
		l := c.loaded[i]
		c.loaded = append(slices.Delete(c.loaded, i, i+1), l)
		return l.handle, nil
	}
	c.makeRoom(tpm, needed)
	handle, err := loadBlob(tpm, &k.blob)
	if err != nil {
		return 0, err
	}
	c.loaded = append(c.loaded, loadedKey{key: k, handle: handle})
	return handle, nil
}

// makeRoom unloads a key, if need be, so that another can be loaded beside its
// parent. It keeps those that are needed.
func (c *Chip) makeRoom(tpm transport.TPM, needed []*Key) {
	if len(c.loaded) < maxLoaded {
		return
	}
	i := slices.IndexFunc(c.loaded, func(l loadedKey) bool { return !slices.Contains(needed, l.key) })
	i = max(i, 0)
	flush(tpm, c.loaded[i].handle)
	c.loaded = slices.Delete(c.loaded, i, i+1)
}
