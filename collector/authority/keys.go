package authority

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"pfoertner/internal/attest"
)

// Source is where the keys of new CAs come from.
type Source interface {
	// New makes or finds the key of the CA called name, and returns it with the
	// text of its key file, from which openKey opens it again.
	New(name string) (crypto.Signer, []byte, error)
}

// Files keeps keys as PKCS#8 in the key file itself.
type Files struct{}

// New implements Source: a new ECDSA P-256 key.
func (Files) New(string) (crypto.Signer, []byte, error) {
	key, err := attest.NewKey()
	if err != nil {
		return nil, nil, err
	}
	text, err := keyText(key)
	return key, text, err
}

// Agent finds keys at an SSH agent, which holds them in a smart card or HSM
// (ssh-add -s, PKCS#11). The key file then only says which key it is and where.
type Agent struct {
	// Socket is the agent's Unix socket.
	Socket string
}

// New implements Source: the agent's ECDSA P-256 key that has name as its
// comment, which is the label it has in the token.
func (a Agent) New(name string) (crypto.Signer, []byte, error) {
	socket, err := filepath.Abs(a.Socket)
	if err != nil {
		return nil, nil, err
	}
	var found *ecdsa.PublicKey
	err = withAgent(socket, func(client agent.ExtendedAgent) error {
		keys, err := client.List()
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.Comment != name {
				continue
			}
			if found != nil {
				return fmt.Errorf("two keys are called %s", name)
			}
			if found, err = publicOf(k); err != nil {
				return fmt.Errorf("key %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if found == nil {
		return nil, nil, fmt.Errorf("the agent at %s has no key called %s", socket, name)
	}
	der, err := x509.MarshalPKIXPublicKey(found)
	if err != nil {
		return nil, nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: agentType, Headers: map[string]string{socketHeader: socket}, Bytes: der})
	return agentKey{socket, found}, text, nil
}

// What key files hold.
const (
	pkcs8Type    = "PRIVATE KEY"
	agentType    = "PFOERTNER SSH AGENT KEY"
	socketHeader = "Socket"
	// agentTimeout is far above what a smart card takes for a signature.
	agentTimeout = 30 * time.Second
)

func keyText(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("marshalling key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pkcs8Type, Bytes: der}), nil
}

// openKey opens the key that a key file holds or names. A key at an agent is
// asked for with every signature, so that the agent may come later.
func openKey(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return key, nil
}

func parseKey(text []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("not one PEM block")
	}
	switch block.Type {
	case pkcs8Type:
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", key)
		}
		return signer, nil
	case agentType:
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		public, ok := key.(*ecdsa.PublicKey)
		if !ok || public.Curve.Params().Name != "P-256" || block.Headers[socketHeader] == "" {
			return nil, errors.New("not a P-256 key at an agent's socket")
		}
		return agentKey{block.Headers[socketHeader], public}, nil
	}
	return nil, fmt.Errorf("PEM block %q is no key", block.Type)
}

// agentKey signs by asking an SSH agent. It is a crypto.MessageSigner, because
// agents hash for themselves: what crypto/x509 signs is a message.
type agentKey struct {
	socket string
	public *ecdsa.PublicKey
}

// Public implements crypto.Signer.
func (k agentKey) Public() crypto.PublicKey { return k.public }

// Sign implements crypto.Signer, and always refuses: there is no way to sign
// what was hashed already.
func (k agentKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("a key at an SSH agent signs messages, not digests")
}

// SignMessage implements crypto.MessageSigner: ECDSA with SHA-256, as
// ecdsa-sha2-nistp256 prescribes for this curve (RFC 5656, section 6.2.1).
func (k agentKey) SignMessage(_ io.Reader, message []byte, o crypto.SignerOpts) ([]byte, error) {
	if o.HashFunc() != crypto.SHA256 {
		return nil, fmt.Errorf("a key at an SSH agent signs with SHA-256, not %s", o.HashFunc())
	}
	public, err := ssh.NewPublicKey(k.public)
	if err != nil {
		return nil, err
	}
	var signature []byte
	err = withAgent(k.socket, func(client agent.ExtendedAgent) error {
		s, err := client.Sign(public, message)
		if err != nil {
			return err
		}
		signature, err = fromSSH(s)
		return err
	})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(k.public, sum[:], signature) {
		return nil, fmt.Errorf("the agent at %s has signed something else", k.socket)
	}
	return signature, nil
}

// fromSSH turns a signature from SSH's form into X.509's.
func fromSSH(s *ssh.Signature) ([]byte, error) {
	var parts struct{ R, S *big.Int }
	if s.Format != ssh.KeyAlgoECDSA256 {
		return nil, fmt.Errorf("the agent has signed as %q", s.Format)
	}
	if err := ssh.Unmarshal(s.Blob, &parts); err != nil {
		return nil, fmt.Errorf("the agent's signature: %w", err)
	}
	return asn1.Marshal(parts)
}

func publicOf(k *agent.Key) (*ecdsa.PublicKey, error) {
	parsed, err := ssh.ParsePublicKey(k.Blob)
	if err != nil {
		return nil, err
	}
	if carrier, ok := parsed.(ssh.CryptoPublicKey); ok {
		if public, ok := carrier.CryptoPublicKey().(*ecdsa.PublicKey); ok && parsed.Type() == ssh.KeyAlgoECDSA256 {
			return public, nil
		}
	}
	return nil, fmt.Errorf("%s is not ECDSA P-256", k.Format)
}

// withAgent speaks to an agent on a connection of its own: agents and tokens
// come and go.
func withAgent(socket string, speak func(agent.ExtendedAgent) error) error {
	conn, err := net.DialTimeout("unix", socket, agentTimeout)
	if err != nil {
		return fmt.Errorf("SSH agent: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(agentTimeout)); err != nil {
		return err
	}
	if err := speak(agent.NewClient(conn)); err != nil {
		return fmt.Errorf("SSH agent at %s: %w", socket, err)
	}
	return nil
}
