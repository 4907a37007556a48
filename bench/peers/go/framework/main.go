// An echo ETL server on AIStore's own Go framework.
package main

import (
	"bytes"
	"flag"
	"io"
	"log"
	"net"
	"strconv"

	"github.com/NVIDIA/aistore/ext/etl/webserver"
)

type echo struct{ webserver.ETLServer }

// Transform has to read all of the object: the framework closes it before it sends the result.
func (*echo) Transform(object io.ReadCloser, _, _ string) (io.ReadCloser, int64, error) {
	content, err := io.ReadAll(object)
	return io.NopCloser(bytes.NewReader(content)), int64(len(content)), err
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	flag.Parse()
	host, port, err := net.SplitHostPort(*listen)
	if err != nil {
		log.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(webserver.Run(&echo{}, host, number))
}
