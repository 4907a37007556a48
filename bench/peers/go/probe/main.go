// probe asks for a URL at a fixed pace, over a connection of its own each time, whether or not the earlier answers have
// come; a wait begins when its request was due. One that is not answered in time counts with the time it was given.
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"sync"
	"time"

	"etlbench/internal/stats"
)

var (
	address  = flag.String("url", "", "URL to ask for")
	rate     = flag.Float64("rate", 20, "requests a second")
	duration = flag.Duration("duration", 10*time.Second, "how long to begin new requests")
	timeout  = flag.Duration("timeout", 15*time.Second, "longest wait for an answer")
)

func main() {
	flag.Parse()
	if *address == "" {
		log.Fatal("-url is missing")
	}
	client := &http.Client{Timeout: *timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	var result stats.Result
	var asked sync.WaitGroup
	started := time.Now()
	for due := started; due.Sub(started) < *duration; due = due.Add(time.Duration(float64(time.Second) / *rate)) {
		time.Sleep(time.Until(due))
		asked.Add(1)
		go func() {
			defer asked.Done()
			err := ask(client)
			result.Add(&stats.Tally{Latencies: []time.Duration{time.Since(due)}})
			if err != nil {
				result.Fail(err)
			}
		}()
	}
	asked.Wait()
	result.Print(time.Since(started))
}

func ask(client *http.Client) error {
	answer, err := client.Get(*address)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	return nil
}
