// responder does as little as a server can: it drops what it is sent and answers what it has ready. What a load
// generator reaches against it is that generator's ceiling.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"log"
	"os"
	"sync"

	"etlbench/internal/body"
	"etlbench/internal/frame"
	"etlbench/internal/sock"
)

const small = 64 << 10

var (
	address  = flag.String("listen", "127.0.0.1:0", "address")
	bodyFile = flag.String("body", "", "file that objects are cut from")
	size     = flag.Int64("size", 0, "bytes of an object; 0: the whole file")
	status   = flag.Int("status", 200, "status of an answer; 204 has no content")
)

type responder struct {
	once    sync.Once
	objects *body.Body
	answer  []byte   // to HTTP; without the content where that is large
	message []byte   // to a WebSocket's object
	file    *os.File // which holds the message
}

func main() {
	flag.Parse()
	objects, err := body.Open(*bodyFile, *size)
	if err != nil {
		log.Fatal(err)
	}
	r := &responder{objects: objects}
	if *status == 204 {
		r.answer = []byte("HTTP/1.1 204 No Content\r\n\r\n")
	} else {
		r.answer = fmt.Appendf(nil, "HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n", *status, objects.Size)
		if objects.Size <= small {
			r.answer = append(r.answer, objects.At(0)...)
		}
	}
	sock.Serve(*address, objects.Size, r.serve)
}

func (r *responder) serve(conn *sock.Conn) error {
	head, err := conn.ReadHead()
	if err != nil {
		return err
	}
	if head.Upgrade != nil {
		return r.messages(conn, string(head.Upgrade))
	}
	if bytes.HasPrefix(head.Start, []byte("GET /health ")) {
		_, err = conn.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nRunning"))
		return err
	}
	if err := conn.ReadBody(head, conn.Discard); err != nil {
		return err
	}
	if _, err := conn.Write(r.answer); err != nil || *status == 204 || r.objects.Size <= small {
		return err
	}
	return conn.SendFile(r.objects.File, 0, r.objects.Size)
}

// prepare makes the answer to a WebSocket's object.
func (r *responder) prepare() {
	var err error
	r.message = frame.Append(nil, frame.Binary, r.objects.At(0), false)
	if r.file, err = body.Anonymous(r.message); err != nil {
		log.Fatal(err)
	}
}

// messages answers every second message, which is an object, with the one that is ready; those that came together
// are answered together.
func (r *responder) messages(conn *sock.Conn, key string) error {
	r.once.Do(r.prepare)
	_, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Accept: %s\r\n\r\n", frame.Accept(key))
	if err == nil && len(r.message) > small {
		err = conn.SetWriteBuffer(small)
	}
	var answers []byte
	for control := true; err == nil; control = !control {
		if conn.Buffered() == 0 && len(answers) > 0 {
			_, err = conn.Write(answers)
			answers = answers[:0]
		}
		var head frame.Head
		if head, err = frame.Read(conn); err != nil {
			break
		}
		if head.Opcode == frame.Close {
			break
		}
		err = conn.Discard(head.Length)
		if !control && err == nil {
			if len(r.message) > small {
				err = conn.SendFile(r.file, 0, int64(len(r.message)))
			} else {
				answers = append(answers, r.message...)
			}
		}
	}
	return err
}
