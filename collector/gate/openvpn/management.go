package openvpn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
)

// answerWithin is how long the server may take to answer a command. It answers
// between two packets; a server that does not is stuck.
const answerWithin = 5 * time.Second

// management is one connection to a server's management socket. Commands may
// come from any goroutine; one is under way at a time.
type management struct {
	conn    net.Conn
	replies chan string
	// gone is closed when nothing more is read; why holds the reason.
	gone chan struct{}
	why  error

	turn   sync.Mutex
	hangUp sync.Once
	closed chan struct{}
}

func connect(ctx context.Context, path string) (*management, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return newManagement(conn), nil
}

func newManagement(conn net.Conn) *management {
	return &management{conn: conn, replies: make(chan string), gone: make(chan struct{}), closed: make(chan struct{})}
}

// close ends the connection and with it read.
func (m *management) close() {
	m.hangUp.Do(func() {
		m.conn.Close()
		close(m.closed)
	})
}

// read reads until the connection ends and hands over what is not the answer
// to a command, in order. It must run while commands are given.
func (m *management) read(password string, told func(message)) error {
	m.why = m.readLines(password, told)
	close(m.gone)
	return m.why
}

func (m *management) readLines(password string, told func(message)) error {
	r := bufio.NewReaderSize(m.conn, maxLine)
	var p parser
	for {
		raw, err := r.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return errors.New("the server closed the management connection")
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("management line longer than %d bytes", maxLine)
		case err != nil:
			return fmt.Errorf("reading management socket: %w", err)
		}
		line := strings.TrimRight(string(raw), "\r\n")
		// The prompt for the socket's password is the only thing that does not
		// end its line.
		if password != "" {
			line = strings.TrimPrefix(line, "ENTER PASSWORD:")
		}
		msg, err := p.line(line)
		switch {
		case err != nil:
			return fmt.Errorf("management protocol: %w", err)
		case msg.reply:
			select {
			case m.replies <- msg.text:
			case <-m.closed:
				return errors.New("the management connection was closed")
			}
		case msg.client != nil || msg.source != "":
			told(msg)
		}
	}
}

// single gives a command that is answered by one line and returns what follows
// "SUCCESS: ".
func (m *management) single(ctx context.Context, command string) (string, error) {
	return m.exchange(ctx, command, func(line string) (bool, error) { return true, nil })
}

// listing gives a command that is answered by lines up to "END" and returns
// them.
func (m *management) listing(ctx context.Context, command string) ([]string, error) {
	var lines []string
	_, err := m.exchange(ctx, command, func(line string) (bool, error) {
		if line == "END" {
			return true, nil
		}
		lines = append(lines, line)
		return false, nil
	})
	return lines, err
}

// exchange writes a command and reads its answer. When the answer does not
// come in time, answers and commands no longer match: the connection is closed.
func (m *management) exchange(ctx context.Context, command string, last func(line string) (bool, error)) (string, error) {
	if strings.ContainsAny(command, "\r\n\x00") {
		return "", errors.New("management command with a line break")
	}
	m.turn.Lock()
	defer m.turn.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	verb, _, _ := strings.Cut(command, " ")
	if deadline, ok := ctx.Deadline(); ok {
		_ = m.conn.SetWriteDeadline(deadline) // an error shows in the write
	}
	if _, err := io.WriteString(m.conn, command+"\n"); err != nil {
		m.close()
		return "", fmt.Errorf("management command %s: %w", verb, err)
	}
	for {
		select {
		case line := <-m.replies:
			if text, ok := strings.CutPrefix(line, "ERROR: "); ok {
				return "", &refusedError{verb: verb, text: text}
			}
			done, err := last(line)
			if done || err != nil {
				return strings.TrimPrefix(line, "SUCCESS: "), err
			}
		case <-m.gone:
			return "", fmt.Errorf("management command %s: %w", verb, m.why)
		case <-ctx.Done():
			m.close()
			return "", fmt.Errorf("management command %s: no answer: %w", verb, ctx.Err())
		}
	}
}

// refusedError is a command that the server answered with an error: the
// connection is fine.
type refusedError struct{ verb, text string }

func (e *refusedError) Error() string {
	return fmt.Sprintf("management command %s: %s", e.verb, e.text)
}
