package sock

import (
	"log"
	"net"
)

// Serve gives every connection on an address to a goroutine of its own, and never returns. Contents are of a size.
func Serve(address string, size int64, handle func(*Conn) error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	for {
		accepted, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer accepted.Close()
			conn, err := New(accepted.(*net.TCPConn), size)
			for err == nil {
				err = handle(conn)
			}
		}()
	}
}
