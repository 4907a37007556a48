// httpload loads an HTTP server over keep-alive connections, one request at a time on each, and looks at every answer:
// its status, its length, and its content: the first 4 KiB of every MiB, and all of every eighth answer (of every one
// with -full).
// Every request carries another object, so that an answer meant for another request is seen.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"etlbench/internal/body"
	"etlbench/internal/sock"
	"etlbench/internal/stats"
)

// Bodies up to this size are written before the answer is read; larger ones at the same time, as servers may stream.
const inline = 32 << 10

var (
	address     = flag.String("url", "", "http://host:port/path to load")
	method      = flag.String("method", "PUT", "HTTP method; GET sends no body")
	header      = flag.String("header", "", "one more header, as `name: value`")
	bodyFile    = flag.String("body", "", "file that objects are cut from")
	size        = flag.Int64("size", 0, "bytes of an object; 0: the whole file is the object")
	empty       = flag.Bool("empty", false, "send no body with a PUT")
	answer      = flag.String("answer", "same", "content to expect: `same` (what was sent), first (the first object), none, or a file's name")
	status      = flag.Int("status", 200, "status to expect")
	full        = flag.Bool("full", false, "compare all of every answer")
	connections = flag.Int("connections", 16, "connections")
	duration    = flag.Duration("duration", 3*time.Second, "how long to begin new requests")
	count       = flag.Int64("count", 0, "stop after so many requests instead")
	rate        = flag.Float64("rate", 0, "at most so many requests a second; 0: as many as the server takes")
	timeout     = flag.Duration("timeout", 60*time.Second, "longest wait for one answer")
	pattern     = flag.String("pattern", "", "write the file that objects of -size are cut from, and end")
)

type load struct {
	host     string
	path     string
	objects  *body.Body
	expected *body.Body // nil: the object itself
	result   stats.Result
	begun    atomic.Int64
	deadline time.Time
	ticks    <-chan time.Time
}

func main() {
	flag.Parse()
	if *pattern != "" {
		if err := body.Write(*pattern, *size); err != nil {
			log.Fatal(err)
		}
		return
	}
	target, err := url.Parse(*address)
	if err != nil {
		log.Fatal(err)
	}
	run := &load{host: target.Host, path: target.RequestURI()}
	if run.objects, err = body.Open(*bodyFile, *size); err != nil {
		log.Fatal(err)
	}
	if *answer != "same" && *answer != "first" && *answer != "none" {
		if run.expected, err = body.Open(*answer, 0); err != nil {
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
			run.work()
		}()
	}
	workers.Wait()
	run.result.Print(time.Since(started))
}

// next tells which request to begin, or that there is none left.
func (l *load) next() (int, bool) {
	if l.ticks != nil {
		<-l.ticks
	}
	if *count == 0 && time.Now().After(l.deadline) {
		return 0, false
	}
	n := l.begun.Add(1)
	return int(n), *count == 0 || n <= *count
}

func (l *load) work() {
	var conn *sock.Conn
	var tally stats.Tally
	defer func() {
		if conn != nil {
			conn.Close()
		}
		l.result.Add(&tally)
	}()
	for failures := 0; failures < 20; {
		n, more := l.next()
		if !more {
			return
		}
		started := time.Now()
		if conn == nil {
			var err error
			if conn, err = sock.Dial(l.host, l.objects.Size); err != nil {
				l.result.Fail(err)
				failures++
				continue
			}
		}
		before := conn.Received
		closing, err := l.exchange(conn, n)
		if err == nil {
			tally.Right(time.Since(started), conn.Received-before)
		} else {
			l.result.Fail(err)
			failures++
		}
		if closing || err != nil {
			conn.Close()
			conn = nil
		}
	}
}

// exchange sends the n-th request and reads its answer. It tells whether the server ends the connection.
func (l *load) exchange(conn *sock.Conn, n int) (bool, error) {
	if err := conn.SetDeadline(time.Now().Add(*timeout)); err != nil {
		return true, err
	}
	offset := l.objects.Offset(n)
	sent := make(chan error, 1)
	if bodyLength(l.objects) <= inline {
		sent <- l.send(conn, offset)
	} else {
		go func() { sent <- l.send(conn, offset) }()
	}
	closing, err := l.receive(conn, offset, *full || sock.InFull(n))
	if err != nil || closing {
		conn.Close() // a body that nobody reads ends here
		if wrote := <-sent; err == nil && wrote != nil {
			err = fmt.Errorf("the server answered and closed before it had read the request: %w", wrote)
		}
		return true, err
	}
	return false, <-sent
}

func bodyLength(objects *body.Body) int64 {
	if *method == "GET" || *empty {
		return 0
	}
	return objects.Size
}

func (l *load) send(conn *sock.Conn, offset int64) error {
	var head strings.Builder
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\n", *method, l.path, l.host)
	if *header != "" {
		head.WriteString(*header + "\r\n")
	}
	length := bodyLength(l.objects)
	if *method != "GET" {
		fmt.Fprintf(&head, "Content-Length: %d\r\n", length)
	}
	head.WriteString("\r\n")
	if length <= inline {
		_, err := conn.Write(append([]byte(head.String()), l.objects.At(offset)[:length]...))
		return err
	}
	if _, err := conn.Write([]byte(head.String())); err != nil {
		return err
	}
	return conn.SendFile(l.objects.File, offset, length)
}

func (l *load) receive(conn *sock.Conn, offset int64, full bool) (bool, error) {
	head, err := conn.ReadHead()
	if err != nil {
		return true, fmt.Errorf("no answer: %w", err)
	}
	var want []byte
	switch *answer {
	case "same":
		want = l.objects.At(offset)
	case "first":
		want = l.objects.At(0)
	case "none":
	default:
		want = l.expected.Data
	}
	if code := head.Status(); code != *status {
		detail := []byte{}
		if head.Length > 0 {
			detail, _ = conn.Peek(int(min(head.Length, 200)))
		}
		return true, fmt.Errorf("status %d, expected %d: %s", code, *status, detail)
	}
	position, wrong := int64(0), error(nil)
	err = conn.ReadBody(head, func(n int64) error {
		start := position
		position += n
		if position > int64(len(want)) {
			return conn.Discard(n)
		}
		err := conn.Expect(want[start:position], start, full)
		if errors.Is(err, sock.ErrContent) {
			wrong, err = err, nil
		}
		return err
	})
	switch {
	case err != nil:
		return true, fmt.Errorf("the answer broke off after %d bytes: %w", position, err)
	case position != int64(len(want)):
		return true, fmt.Errorf("%d bytes, expected %d", position, len(want))
	}
	return head.Close, wrong
}
