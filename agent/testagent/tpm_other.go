//go:build !linux

package main

import "pfoertner/agent/identity"

// keys are in a file: swtpm is a program of Linux.
func (o options) keys() identity.Keys { return identity.Software{} }
