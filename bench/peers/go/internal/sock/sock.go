// Package sock reads and writes TCP with as few copies as Linux allows, so that a load generator costs less than the
// server it loads.
package sock

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

const (
	bufferSize = 64 << 10
	// Of contents that are not compared in full, the first `window` bytes of every `stride` are.
	window = 4 << 10
	stride = 1 << 20
	// One content of so many is compared in full.
	fullEvery = 8
)

// ErrContent says that bytes arrived which are not those that were expected.
var ErrContent = errors.New("the content is not what was expected")

// Conn is a TCP connection with a read buffer.
type Conn struct {
	*net.TCPConn
	Received int64 // bytes that were consumed

	gulp       int // bytes to read at once while it is not known what comes
	raw        syscall.RawConn
	buffer     []byte
	start, end int
}

// New wraps a connection over which contents of a size come. Large ones are not read along with what precedes them.
func New(conn *net.TCPConn, size int64) (*Conn, error) {
	gulp := bufferSize
	if size > window {
		gulp = window
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Conn{TCPConn: conn, raw: raw, gulp: gulp, buffer: make([]byte, bufferSize)}, nil
}

// InFull tells whether the n-th content is one that is compared in full.
func InFull(n int) bool { return n%fullEvery == 0 }

// Dial connects to an address, for contents of a size.
func Dial(address string, size int64) (*Conn, error) {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	return New(conn.(*net.TCPConn), size)
}

// Buffered is the number of bytes that can be had without a system call.
func (c *Conn) Buffered() int { return c.end - c.start }

// Peek gives the next n bytes (at most 64 KiB) without consuming them.
func (c *Conn) Peek(n int) ([]byte, error) {
	for c.Buffered() < n {
		if err := c.fill(max(c.gulp, n-c.Buffered())); err != nil {
			return nil, err
		}
	}
	return c.buffer[c.start : c.start+n], nil
}

// Skip consumes n bytes that were peeked.
func (c *Conn) Skip(n int) {
	c.start += n
	c.Received += int64(n)
}

// Until consumes up to and including a mark. The slice is valid until the next read.
func (c *Conn) Until(mark string) ([]byte, error) {
	for {
		if i := bytes.Index(c.buffer[c.start:c.end], []byte(mark)); i >= 0 {
			found := c.buffer[c.start : c.start+i+len(mark)]
			c.Skip(len(found))
			return found, nil
		}
		if c.Buffered() == bufferSize {
			return nil, fmt.Errorf("64 KiB without %q", mark)
		}
		if err := c.fill(c.gulp); err != nil {
			return nil, err
		}
	}
}

// Discard consumes n bytes; those that are still in the kernel are dropped there, uncopied.
func (c *Conn) Discard(n int64) error {
	if have := int64(c.Buffered()); have > 0 {
		c.Skip(int(min(have, n)))
		n -= min(have, n)
	}
	for n > 0 {
		var got uintptr
		var errno syscall.Errno
		err := c.raw.Read(func(fd uintptr) bool {
			got, _, errno = syscall.Syscall6(syscall.SYS_RECVFROM, fd, 0, uintptr(min(n, 1<<30)), syscall.MSG_TRUNC, 0, 0)
			return errno != syscall.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case errno == syscall.EINTR:
			continue
		case errno != 0:
			return os.NewSyscallError("recvfrom", errno)
		case got == 0:
			return io.ErrUnexpectedEOF
		}
		c.Received += int64(got)
		n -= int64(got)
	}
	return nil
}

// Expect consumes as many bytes as `want` has and compares them: all of them where `full` is set, else a part of
// every MiB. `position` is where in its object `want` starts.
func (c *Conn) Expect(want []byte, position int64, full bool) error {
	wrong := false
	for len(want) > 0 {
		if !full && position%stride >= window {
			n := min(int64(len(want)), stride-position%stride)
			if err := c.Discard(n); err != nil {
				return err
			}
			want, position = want[n:], position+n
			continue
		}
		next := len(want)
		if !full {
			next = min(next, int(window-position%stride))
		}
		if c.Buffered() == 0 {
			if err := c.fill(next); err != nil {
				return err
			}
		}
		n := min(c.Buffered(), next)
		wrong = wrong || !bytes.Equal(c.buffer[c.start:c.start+n], want[:n])
		c.Skip(n)
		want, position = want[n:], position+int64(n)
	}
	if wrong {
		return ErrContent
	}
	return nil
}

// SendFile sends a part of a file; the kernel takes it from the page cache.
func (c *Conn) SendFile(file *os.File, offset, n int64) error {
	for n > 0 {
		var sent int
		var errno error
		err := c.raw.Write(func(fd uintptr) bool {
			sent, errno = syscall.Sendfile(int(fd), int(file.Fd()), &offset, int(min(n, 1<<30)))
			return errno != syscall.EAGAIN
		})
		switch {
		case err != nil:
			return err
		case errno == syscall.EINTR:
			continue
		case errno != nil:
			return os.NewSyscallError("sendfile", errno)
		case sent == 0:
			return io.ErrUnexpectedEOF
		}
		n -= int64(sent)
	}
	return nil
}

// fill reads at most n bytes into the buffer, as far as it has room.
func (c *Conn) fill(n int) error {
	if c.start == c.end {
		c.start, c.end = 0, 0
	} else if c.end == len(c.buffer) {
		c.end = copy(c.buffer, c.buffer[c.start:c.end])
		c.start = 0
	}
	got, err := c.Read(c.buffer[c.end:min(c.end+n, bufferSize)])
	c.end += got
	if got > 0 {
		return nil
	}
	if err == nil || err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
