// wsload loads a WebSocket as a target does: on every connection it keeps so many objects under way, each a control
// message and a message with the object, and takes the answers in the order of its requests. Every object under way
// is another one, so an answer in the wrong place is seen. Of the content, the first 4 KiB of every MiB are compared, and
// all of every eighth answer (of every one with -full).
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"etlbench/internal/body"
	"etlbench/internal/frame"
	"etlbench/internal/sock"
	"etlbench/internal/stats"
)

const (
	// Objects up to this size are written by the reader of the answers; larger ones by a writer beside it, so that
	// neither side ever waits for the other with both their buffers full.
	inline = 4 << 10
	// With more of them queued in sockets, the kernel is what is measured.
	sendBuffer = 64 << 10
	key        = "ZXRsLXNlcnZlci1iZW5jaA=="
)

var (
	address     = flag.String("url", "", "http://host:port/path of the WebSocket")
	bodyFile    = flag.String("body", "", "file that objects are cut from")
	size        = flag.Int64("size", 0, "bytes of an object; 0: the whole file is the object")
	answer      = flag.String("answer", "same", "content to expect: `same` (what was sent) or first (the first object)")
	full        = flag.Bool("full", false, "compare all of every answer")
	connections = flag.Int("connections", 16, "connections")
	inflight    = flag.Int("inflight", 8, "objects under way on each")
	duration    = flag.Duration("duration", 3*time.Second, "how long to begin new objects")
	count       = flag.Int64("count", 0, "stop after so many objects instead")
	rate        = flag.Float64("rate", 0, "at most so many objects a second; 0: as many as the server takes")
	timeout     = flag.Duration("timeout", 60*time.Second, "longest wait for an answer")
)

type load struct {
	host     string
	path     string
	objects  *body.Body
	variants []variant
	file     *os.File // the frames of all variants, where they are large
	result   stats.Result
	begun    atomic.Int64
	deadline time.Time
	ticks    <-chan time.Time
}

// variant is an object with its control message, as they go over the wire. All are of one length.
type variant struct {
	frames []byte
	offset int64 // of the object, in the file of objects
}

func main() {
	flag.Parse()
	target, err := url.Parse(*address)
	if err != nil {
		log.Fatal(err)
	}
	run := &load{host: target.Host, path: target.RequestURI()}
	if run.objects, err = body.Open(*bodyFile, *size); err != nil {
		log.Fatal(err)
	}
	for i := 0; i < 2**inflight+1; i++ { // more than are under way
		frames := frame.Append(nil, frame.Binary, []byte(`{"path":"object"}`), true)
		offset := run.objects.Offset(i)
		frames = frame.Append(frames, frame.Binary, run.objects.At(offset), true)
		run.variants = append(run.variants, variant{frames, offset})
	}
	if run.objects.Size > inline {
		if run.file, err = body.Anonymous(run.join()); err != nil {
			log.Fatal(err)
		}
	}
	if *rate > 0 {
		run.ticks = time.Tick(time.Duration(float64(time.Second) / *rate))
	}
	started := time.Now()
	run.deadline = started.Add(*duration)
	var workers sync.WaitGroup
	for i := 0; i < *connections; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			if err := run.work(); err != nil {
				run.result.Fail(err)
			}
		}()
	}
	workers.Wait()
	run.result.Print(time.Since(started))
}

func (l *load) join() []byte {
	var all []byte
	for _, each := range l.variants {
		all = append(all, each.frames...)
	}
	return all
}

func (l *load) more() bool {
	if l.ticks != nil {
		<-l.ticks
	}
	if *count > 0 {
		return l.begun.Add(1) <= *count
	}
	return time.Now().Before(l.deadline)
}

func (l *load) work() error {
	conn, err := l.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	s := &session{load: l, conn: conn, out: bufio.NewWriterSize(conn, 64<<10)}
	defer func() { l.result.Add(&s.tally) }()
	if l.objects.Size <= inline {
		return s.alternate()
	}
	return s.both()
}

func (l *load) connect() (*sock.Conn, error) {
	conn, err := sock.Dial(l.host, l.objects.Size)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", l.path, l.host, key)
	if err != nil {
		return nil, err
	}
	head, err := conn.ReadHead()
	if err != nil {
		return nil, fmt.Errorf("no answer to the handshake: %w", err)
	}
	if head.Status() != 101 || string(head.Upgrade) != frame.Accept(key) {
		return nil, fmt.Errorf("the handshake was answered with %q", head.Start)
	}
	return conn, nil
}

// session is one connection. The n-th object that is sent is the n-th that is answered.
type session struct {
	load        *load
	conn        *sock.Conn
	out         *bufio.Writer
	sent, taken int
	tally       stats.Tally
}

// alternate sends as many objects as were answered, together, and takes what answers there are.
func (s *session) alternate() error {
	times := make([]time.Time, *inflight)
	for more := true; ; {
		if err := s.conn.SetDeadline(time.Now().Add(*timeout)); err != nil {
			return err
		}
		for more && s.sent-s.taken < *inflight {
			if more = s.load.more(); more {
				times[s.sent%*inflight] = time.Now()
				if err := s.send(); err != nil {
					return err
				}
			}
		}
		if err := s.out.Flush(); err != nil {
			return err
		}
		if s.sent == s.taken {
			return s.goodbye()
		}
		for first := true; first || s.conn.Buffered() > 0 && s.taken < s.sent; first = false {
			if err := s.receive(times[s.taken%*inflight]); err != nil {
				return err
			}
		}
	}
}

// both sends and takes answers at the same time.
func (s *session) both() error {
	if err := s.conn.SetWriteBuffer(sendBuffer); err != nil {
		return err
	}
	under := make(chan time.Time, *inflight-1) // one more is held by the reader
	var sending error
	go func() {
		defer close(under)
		for sending == nil && s.load.more() {
			under <- time.Now()
			if sending = s.conn.SetDeadline(time.Now().Add(*timeout)); sending == nil {
				sending = s.sendFile()
			}
		}
	}()
	for started := range under {
		if err := s.receive(started); err != nil {
			s.conn.Close()
			for range under { // the sender ends on the closed connection
			}
			return errors.Join(err, sending)
		}
	}
	return errors.Join(sending, s.goodbye())
}

func (s *session) send() error {
	_, err := s.out.Write(s.load.variants[s.sent%len(s.load.variants)].frames)
	s.sent++
	return err
}

func (s *session) sendFile() error {
	index := s.sent % len(s.load.variants)
	length := int64(len(s.load.variants[index].frames))
	s.sent++
	return s.conn.SendFile(s.load.file, int64(index)*length, length)
}

// receive takes one answer, whose parts may be several frames.
func (s *session) receive(started time.Time) error {
	want := s.load.objects.At(s.load.variants[s.taken%len(s.load.variants)].offset)
	if *answer == "first" {
		want = s.load.objects.At(0)
	}
	before, position, wrong := s.conn.Received, int64(0), error(nil)
	full := *full || sock.InFull(s.taken)
	for final := false; !final; {
		head, err := frame.Read(s.conn)
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		if head.Opcode == frame.Ping {
			if err := s.pong(head.Length); err != nil {
				return err
			}
			continue
		}
		if head.Opcode == frame.Text || head.Opcode == frame.Close {
			text, _ := s.conn.Peek(int(min(head.Length, 200)))
			return fmt.Errorf("a message of type %d instead of an object: %q", head.Opcode, text)
		}
		start := position
		position += head.Length
		if position > int64(len(want)) {
			return fmt.Errorf("an object of at least %d bytes, expected %d", position, len(want))
		}
		if err := s.conn.Expect(want[start:position], start, full); errors.Is(err, sock.ErrContent) {
			wrong = err
		} else if err != nil {
			return fmt.Errorf("the answer broke off after %d bytes: %w", start, err)
		}
		final = head.Final
	}
	s.taken++
	switch {
	case position != int64(len(want)):
		return fmt.Errorf("%d bytes, expected %d", position, len(want))
	case wrong != nil:
		return wrong
	}
	s.tally.Right(time.Since(started), s.conn.Received-before)
	return nil
}

// pong answers a ping. A server that pings while large objects are on their way is not answered: the runs are shorter
// than any server's patience.
func (s *session) pong(length int64) error {
	payload, err := s.conn.Peek(int(length))
	if err == nil && s.load.objects.Size <= inline {
		_, err = s.conn.Write(frame.Append(nil, frame.Pong, payload, true))
	}
	s.conn.Skip(int(length))
	return err
}

func (s *session) goodbye() error {
	_, err := s.conn.Write(frame.Append(nil, frame.Close, []byte{0x03, 0xE8}, true))
	return err
}
