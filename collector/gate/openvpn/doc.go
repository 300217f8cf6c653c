// Package openvpn drives an OpenVPN server (2.5 and later) through its
// management interface, and finds in the server's configuration what would let
// sessions or packets pass the gate by.
//
// Rules. What the server says is parsed strictly: a line that does not belong
// there ends the connection, and the driver begins anew with a full listing.
// What is said to the server is one line, whatever a collector or a certificate
// put into it. A command that succeeded is no proof that a session is gone.
package openvpn
