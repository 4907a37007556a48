// target stands for an AIStore target: GET gives an object, PUT takes one and answers 200 with Content-Length: 0. It
// counts what it gives and takes, and looks at what it takes: GET /stats tells.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"sync/atomic"

	"etlbench/internal/body"
	"etlbench/internal/sock"
)

const small = 64 << 10 // contents up to this size are written along with their head

var (
	address  = flag.String("listen", "127.0.0.1:0", "address")
	bodyFile = flag.String("body", "", "file that objects are cut from")
	size     = flag.Int64("size", 0, "bytes of an object; 0: the whole file")
)

type target struct {
	objects                          *body.Body
	gets, puts, taken, wrong, broken atomic.Int64
}

func main() {
	flag.Parse()
	objects, err := body.Open(*bodyFile, *size)
	if err != nil {
		log.Fatal(err)
	}
	t := &target{objects: objects}
	sock.Serve(*address, objects.Size, t.answer)
}

func (t *target) answer(conn *sock.Conn) error {
	head, err := conn.ReadHead()
	if err != nil {
		return err
	}
	switch {
	case bytes.HasPrefix(head.Start, []byte("GET /stats ")):
		return t.report(conn)
	case bytes.HasPrefix(head.Start, []byte("GET /v1/etl/_object/")):
		return t.give(conn)
	case bytes.HasPrefix(head.Start, []byte("PUT /v1/etl/_object/")):
		return t.take(conn, head)
	}
	_, err = conn.Write([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
	return err
}

func (t *target) report(conn *sock.Conn) error {
	counts, err := json.Marshal(map[string]int64{
		"gets": t.gets.Load(), "puts": t.puts.Load(), "taken": t.taken.Load(), "wrong": t.wrong.Load(),
		"broken": t.broken.Load(),
	})
	if err == nil {
		_, err = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(counts), counts)
	}
	return err
}

func (t *target) give(conn *sock.Conn) error {
	t.gets.Add(1)
	head := fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n",
		t.objects.Size)
	if t.objects.Size <= small {
		_, err := conn.Write(append(head, t.objects.At(0)...))
		return err
	}
	if _, err := conn.Write(head); err != nil {
		return err
	}
	return conn.SendFile(t.objects.File, 0, t.objects.Size)
}

func (t *target) take(conn *sock.Conn, head sock.Head) error {
	var want []byte // what the object's first bytes say that it is
	position, wrong, full := int64(0), false, sock.InFull(int(t.puts.Load()))
	err := conn.ReadBody(head, func(n int64) error {
		if position == 0 {
			if start, err := conn.Peek(int(min(n, 8))); err != nil {
				return err
			} else if offset, known := t.objects.Find(start); known {
				want = t.objects.At(offset)
			}
		}
		start := position
		position += n
		if position > int64(len(want)) {
			return conn.Discard(n)
		}
		err := conn.Expect(want[start:position], start, full)
		if errors.Is(err, sock.ErrContent) {
			wrong, err = true, nil
		}
		return err
	})
	if err != nil {
		t.broken.Add(1) // a target stores nothing of it
		return err
	}
	if wrong || position != t.objects.Size {
		t.wrong.Add(1)
	}
	t.puts.Add(1)
	t.taken.Add(position)
	_, err = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
	return err
}
