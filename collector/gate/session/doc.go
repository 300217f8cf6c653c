// Package session is the gate's straight line: a VPN server asks, the
// collector answers, the packet filter obeys, the collector is told.
//
// Rules. The Book decides and does nothing; the Keeper does and decides
// nothing. A verdict comes with an end and is never newer than what the Book
// already holds (internal/lease, Position). Packets are cut before anything
// else; a session counts as gone when the VPN server no longer lists it, not
// when it says so. Access ends by the kernel's own clock, without the gate:
// the gate is needed to go on, never to stop. What nobody admitted is cut and
// reported.
package session
