package uplink

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"google.golang.org/grpc/peer"
)

// Path is the pair of addresses that a live connection runs between.
type Path struct {
	Local, Remote netip.Addr
	port          uint16
}

// PathOf returns the path of a gRPC stream after its first message.
func PathOf(ctx context.Context) (Path, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Path{}, errors.New("stream has no peer")
	}
	local, okLocal := p.LocalAddr.(*net.TCPAddr)
	remote, okRemote := p.Addr.(*net.TCPAddr)
	if !okLocal || !okRemote {
		return Path{}, errors.New("stream does not run over TCP")
	}
	to := remote.AddrPort()
	return Path{Local: local.AddrPort().Addr().Unmap(), Remote: to.Addr().Unmap(), port: to.Port()}, nil
}

// Moved says whether packets to the collector would leave from another address
// now, or not at all: then the connection is dead, though nothing says so yet.
// It asks the routing table by connecting a datagram socket; nothing is sent.
func (p Path) Moved() bool {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.Remote, p.port)))
	if err != nil {
		return true
	}
	defer conn.Close()
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	return !ok || local.AddrPort().Addr().Unmap() != p.Local
}
