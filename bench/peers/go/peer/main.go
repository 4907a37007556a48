// peer is an echo ETL server on net/http and gorilla/websocket: the same libraries, the same data path and the same
// outbound pool as AIStore's Go framework, for machines on which that cannot be built.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/gorilla/websocket"
)

const directPutLength = "ais-direct-put-length"

var listen = flag.String("listen", "127.0.0.1:0", "address")

// transform is what a user writes: it has the object as a reader and gives back another one, and its size.
func transform(object io.Reader) (io.Reader, int64, error) {
	content, err := io.ReadAll(object)
	return bytes.NewReader(content), int64(len(content)), err
}

type server struct {
	target   string
	client   *http.Client
	upgrader websocket.Upgrader
}

type control struct {
	Pipeline string `json:"pipeline"`
	FQN      string `json:"fqn"`
	Path     string `json:"path"`
}

func main() {
	flag.Parse()
	s := &server{
		target: os.Getenv("AIS_TARGET_URL"),
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}},
	}
	http.HandleFunc("/", s.object)
	http.HandleFunc("/ws", s.messages)
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Running") })
	log.Fatal(http.ListenAndServe(*listen, nil))
}

func (s *server) object(w http.ResponseWriter, r *http.Request) {
	input, err := s.source(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	output, size, err := transform(input)
	input.Close()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if stages := r.Header.Get("ais-node-url"); stages != "" {
		s.deliver(w, output, size, r.URL.Path, stages)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	_, _ = io.Copy(w, output)
}

func (s *server) source(r *http.Request) (io.ReadCloser, error) {
	if fqn := r.URL.Query().Get("etl_fqn"); fqn != "" {
		return openFile(fqn)
	}
	if r.Method == http.MethodPut {
		return r.Body, nil
	}
	answer, err := s.client.Get(s.target + r.URL.EscapedPath())
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		answer.Body.Close()
		return nil, fmt.Errorf("the target answered %s", answer.Status)
	}
	return answer.Body, nil
}

func (s *server) deliver(w http.ResponseWriter, output io.Reader, size int64, path, stages string) {
	answer, err := s.put(output, size, path, stages)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	switch {
	case answer.StatusCode == http.StatusOK && answer.ContentLength == 0:
		w.Header().Set(directPutLength, strconv.FormatInt(size, 10))
		w.WriteHeader(http.StatusNoContent)
	case answer.StatusCode == http.StatusNoContent:
		w.Header().Set(directPutLength, answer.Header.Get(directPutLength))
		w.WriteHeader(http.StatusNoContent)
	default:
		w.WriteHeader(answer.StatusCode)
		_, _ = io.Copy(w, answer.Body)
	}
}

func (s *server) put(output io.Reader, size int64, path, stages string) (*http.Response, error) {
	first, rest, _ := strings.Cut(stages, ",")
	stage, err := url.Parse(first)
	if err != nil {
		return nil, err
	}
	if stage.Path == "" {
		stage.Path = path
	} else {
		target, err := url.Parse(s.target)
		if err != nil {
			return nil, err
		}
		stage.Scheme = target.Scheme
		stage.RawPath = target.EscapedPath() + stage.EscapedPath()
		stage.Path = target.Path + stage.Path
	}
	request, err := http.NewRequest(http.MethodPut, stage.String(), output)
	if err != nil {
		return nil, err
	}
	request.ContentLength = size
	if rest != "" {
		request.Header.Set("ais-node-url", rest)
	}
	return s.client.Do(request)
}

func (s *server) messages(w http.ResponseWriter, r *http.Request) {
	conn, err := s.upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer conn.Close()
	for err == nil {
		err = s.message(conn)
	}
	if !websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived) {
		log.Print(err)
	}
}

func (s *server) message(conn *websocket.Conn) error {
	_, message, err := conn.ReadMessage()
	if err != nil {
		return err
	}
	var about control
	if err = json.Unmarshal(message, &about); err != nil {
		return err
	}
	var input io.Reader
	if about.FQN != "" {
		file, err := openFile(about.FQN)
		if err != nil {
			return err
		}
		defer file.Close()
		input = file
	} else if _, input, err = conn.NextReader(); err != nil {
		return err
	}
	output, size, err := transform(input)
	if err != nil {
		return err
	}
	if about.Pipeline != "" {
		answer, err := s.put(output, size, "/"+about.Path, about.Pipeline)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK || answer.ContentLength == 0 {
			return conn.WriteMessage(websocket.TextMessage, []byte(strconv.FormatInt(size, 10)))
		}
		output = answer.Body
	}
	writer, err := conn.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err = io.Copy(writer, output); err != nil {
		return err
	}
	return writer.Close()
}

func openFile(fqn string) (io.ReadCloser, error) {
	path, err := url.PathUnescape(fqn)
	if err != nil {
		return nil, err
	}
	return os.Open(path)
}
