package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	"pfoertner/internal/mtls"
	"pfoertner/internal/posture"
	agentv1 "pfoertner/proto/pfoertner/agent/v1"
	posturev1 "pfoertner/proto/pfoertner/posture/v1"
)

// A crowd is many notebooks in a process of their own, so that the collector's
// memory and theirs are told apart. The test binary, started once more, takes a
// plan and then one step after the other from its standard input and answers
// each on its standard output.

// crowdSwitch makes the test binary a crowd.
const crowdSwitch = "PFOERTNER_TEST_CROWD"

func TestMain(m *testing.M) {
	if os.Getenv(crowdSwitch) != "" {
		if err := runCrowd(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "crowd:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// plan is where the crowd goes and who it is. The device certificates follow,
// one by one.
type plan struct {
	Address string
	Servers []byte // the server CA, DER
	Key     []byte // PKCS #8, the same for all
	Count   int
}

// step is what the crowd does next, all at once.
type step string

const (
	stepConnect   step = "connect"   // until each stream is welcomed
	stepReport    step = "report"    // full evidence, until each is acknowledged
	stepDenied    step = "denied"    // until each was told that it is denied
	stepHeartbeat step = "heartbeat" // until each is acknowledged
	stepEnd       step = "end"       // until one more stream has ended
)

// stepDone is the crowd's answer.
type stepDone struct {
	Err      string
	Resident int64 // bytes of memory that the crowd occupies
}

// crowdProcess is a crowd as the collector's side sees it.
type crowdProcess struct {
	steps   *gob.Encoder
	answers *gob.Decoder
}

func startCrowd(t testing.TB, p plan, chain func(i int) [][]byte) *crowdProcess {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(program)
	child.Env = append(os.Environ(), crowdSwitch+"=1")
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close() // ends it
		if err := child.Wait(); err != nil {
			t.Errorf("the crowd ended with: %v", err)
		}
	})
	c := &crowdProcess{gob.NewEncoder(in), gob.NewDecoder(out)}
	if err := c.steps.Encode(p); err != nil {
		t.Fatal(err)
	}
	for i := range p.Count {
		if err := c.steps.Encode(chain(i)); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// begin lets the crowd take a step; done waits for its end.
func (c *crowdProcess) begin(t testing.TB, s step) {
	t.Helper()
	if err := c.steps.Encode(s); err != nil {
		t.Fatal(err)
	}
}

func (c *crowdProcess) done(t testing.TB) (resident int64) {
	t.Helper()
	var answer stepDone
	if err := c.answers.Decode(&answer); err != nil {
		t.Fatalf("the crowd has ended: %v", err)
	}
	if answer.Err != "" {
		t.Fatalf("the crowd: %s", answer.Err)
	}
	return answer.Resident
}

func (c *crowdProcess) do(t testing.TB, s step) (resident int64) {
	t.Helper()
	c.begin(t, s)
	return c.done(t)
}

// crowd is the notebooks, in their own process.
type crowd struct {
	address      string
	key          *ecdsa.PrivateKey
	chains       [][][]byte
	servers      *x509.CertPool
	evidence     prepared
	members      []*member
	acknowledged sync.WaitGroup
	denied       sync.WaitGroup
	ended        chan error
}

// member is one notebook.
type member struct {
	*reporter
	denied bool
}

func runCrowd(in io.Reader, out io.Writer) error {
	steps, answers := gob.NewDecoder(in), gob.NewEncoder(out)
	c, err := newCrowd(steps)
	if err != nil {
		return err
	}
	for {
		var s step
		if err := steps.Decode(&s); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var answer stepDone
		if err := c.take(s); err != nil {
			answer.Err = fmt.Sprintf("%s: %v", s, err)
		}
		var err error
		if answer.Resident, err = residentMemory(); err != nil {
			return err
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}

func newCrowd(steps *gob.Decoder) (*crowd, error) {
	var p plan
	if err := steps.Decode(&p); err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(p.Key)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(p.Servers)
	if err != nil {
		return nil, err
	}
	c := &crowd{
		address: p.Address, key: key.(*ecdsa.PrivateKey), servers: x509.NewCertPool(),
		chains: make([][][]byte, p.Count), members: make([]*member, p.Count), ended: make(chan error, p.Count),
	}
	c.servers.AddCert(ca)
	c.denied.Add(p.Count)
	for i := range c.chains {
		if err := steps.Decode(&c.chains[i]); err != nil {
			return nil, err
		}
	}
	c.evidence.evidence = compliant(time.Now())
	c.evidence.digest, err = posture.Digest(c.evidence.evidence)
	return c, err
}

func (c *crowd) take(s step) error {
	switch s {
	case stepConnect:
		return c.connect()
	case stepReport:
		return c.report(&agentv1.Report{Digest: c.evidence.digest, Body: &agentv1.Report_Full{Full: c.evidence.evidence}})
	case stepDenied:
		return c.until(&c.denied)
	case stepHeartbeat:
		return c.report(&agentv1.Report{Digest: c.evidence.digest, Body: &agentv1.Report_Heartbeat{Heartbeat: &agentv1.Heartbeat{}}})
	case stepEnd:
		<-c.ended
		return nil
	}
	return errors.New("an unknown step")
}

// connect opens all streams, 64 at a time.
func (c *crowd) connect() error {
	var all errgroup.Group
	all.SetLimit(64)
	for i, chain := range c.chains {
		all.Go(func() error {
			certificate := &tls.Certificate{Certificate: chain, PrivateKey: c.key}
			config := mtls.ClientConfig(mtls.ClientOptions{
				Certificate: func() (*tls.Certificate, error) { return certificate, nil },
				Servers:     c.servers, ServerName: "127.0.0.1",
			})
			conn, err := grpc.NewClient(c.address, grpc.WithTransportCredentials(credentials.NewTLS(config)),
				grpc.WithReadBufferSize(4<<10), grpc.WithWriteBufferSize(4<<10))
			if err != nil {
				return err
			}
			stream, err := (&notebook{conn: conn}).tryToConnect(context.Background())
			if err != nil {
				return err
			}
			c.members[i] = &member{reporter: stream}
			go c.listen(c.members[i])
			return nil
		})
	}
	return all.Wait()
}

// listen takes what a member is told, until its stream ends.
func (c *crowd) listen(m *member) {
	for {
		answer, err := m.stream.Recv()
		if err != nil {
			c.ended <- err
			return
		}
		if answer.GetAcknowledgement() != nil {
			c.acknowledged.Done()
		}
		if r := answer.GetResult(); r != nil && r.GetVerdict() == posturev1.Verdict_VERDICT_DENY && !m.denied {
			m.denied = true
			c.denied.Done()
		}
	}
}

// report sends the same report for every member.
func (c *crowd) report(same *agentv1.Report) error {
	c.acknowledged.Add(len(c.members))
	var sending errgroup.Group
	for _, m := range c.members {
		sending.Go(func() error {
			m.sequence++
			return m.stream.Send(&agentv1.ConnectRequest{Message: &agentv1.ConnectRequest_Report{Report: &agentv1.Report{
				Sequence: m.sequence, Nonce: m.nonce, CollectedAgo: durationpb.New(0), Digest: same.Digest, Body: same.Body,
			}}})
		})
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	return c.until(&c.acknowledged)
}

// until waits for all members; one whose stream ends instead is an error.
func (c *crowd) until(all *sync.WaitGroup) error {
	finished := make(chan struct{})
	go func() {
		all.Wait()
		close(finished)
	}()
	select {
	case <-finished:
		return nil
	case err := <-c.ended:
		return fmt.Errorf("a stream has ended: %w", err)
	}
}

// residentMemory is what this process occupies, in bytes.
func residentMemory() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kilobytes int64
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		return 0, fmt.Errorf("VmRSS: %w", err)
	}
	return kilobytes << 10, nil
}
