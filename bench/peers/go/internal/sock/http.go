package sock

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
)

// Head is what counts of an HTTP message's head.
type Head struct {
	Start   []byte // the first line, valid until the next read
	Length  int64  // Content-Length, or -1
	Chunked bool
	Close   bool   // the other side ends the connection after this message
	Upgrade []byte // the Sec-WebSocket-Key or -Accept, valid until the next read
}

// ReadHead consumes the head of a request or an answer.
func (c *Conn) ReadHead() (Head, error) {
	raw, err := c.Until("\r\n\r\n")
	if err != nil {
		return Head{}, err
	}
	first, rest, _ := bytes.Cut(raw, []byte("\r\n"))
	head := Head{Start: first, Length: -1, Close: bytes.HasPrefix(first, []byte("HTTP/1.0"))}
	for len(rest) > 2 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case is(name, "Content-Length"):
			if head.Length, err = strconv.ParseInt(string(value), 10, 64); err != nil {
				return head, fmt.Errorf("Content-Length: %w", err)
			}
		case is(name, "Transfer-Encoding"):
			head.Chunked = bytes.EqualFold(value, []byte("chunked"))
		case is(name, "Connection"):
			head.Close = bytes.EqualFold(value, []byte("close"))
		case is(name, "Sec-WebSocket-Key"), is(name, "Sec-WebSocket-Accept"):
			head.Upgrade = value
		}
	}
	return head, nil
}

func is(name []byte, other string) bool {
	return len(name) == len(other) && bytes.EqualFold(name, []byte(other))
}

// Status is the status code of an answer, 0 where there is none.
func (h Head) Status() int {
	if len(h.Start) < 12 {
		return 0
	}
	status, _ := strconv.Atoi(string(h.Start[9:12]))
	return status
}

// ReadBody consumes a body part by part: `take` is told how many bytes come next and consumes just these.
func (c *Conn) ReadBody(head Head, take func(n int64) error) error {
	switch {
	case head.Chunked:
		return c.readChunks(take)
	case head.Length > 0:
		return take(head.Length)
	case head.Length < 0 && head.Close:
		return c.readToEnd(take)
	}
	return nil
}

// readToEnd consumes a body that ends with its connection, as HTTP/1.0 has it.
func (c *Conn) readToEnd(take func(n int64) error) error {
	for {
		if _, err := c.Peek(1); err == io.ErrUnexpectedEOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := take(int64(c.Buffered())); err != nil {
			return err
		}
	}
}

func (c *Conn) readChunks(take func(n int64) error) error {
	for {
		line, err := c.Until("\r\n")
		if err != nil {
			return err
		}
		size, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte(";"))
		n, err := strconv.ParseInt(string(size), 16, 64)
		if err != nil {
			return fmt.Errorf("chunk size: %w", err)
		}
		if n > 0 {
			if err := take(n); err != nil {
				return err
			}
		}
		if line, err = c.Until("\r\n"); err != nil || len(line) != 2 {
			return fmt.Errorf("chunk without an end: %v", err)
		}
		if n == 0 {
			return nil
		}
	}
}
