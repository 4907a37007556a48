// Package stats sums up what a load generator saw, as the JSON that the harness reads.
package stats

import (
	"encoding/json"
	"os"
	"slices"
	"sync"
	"time"
)

const kept = 5

// Result is one run.
type Result struct {
	Objects   int64    `json:"objects"` // answers that were right
	Wrong     int64    `json:"wrong"`
	Errors    []string `json:"errors"` // the first few reasons
	Seconds   float64  `json:"seconds"`
	P50       float64  `json:"p50_ms"`
	P99       float64  `json:"p99_ms"`
	Max       float64  `json:"max_ms"`
	AnswerMin int64    `json:"answer_min"` // bytes of an answer, its head included
	AnswerMax int64    `json:"answer_max"`

	mutex     sync.Mutex
	latencies []time.Duration
}

// Tally is what one connection saw; it is not shared.
type Tally struct {
	Latencies            []time.Duration
	AnswerMin, AnswerMax int64
}

// Right counts an answer that was right.
func (t *Tally) Right(latency time.Duration, answer int64) {
	t.Latencies = append(t.Latencies, latency)
	if t.AnswerMin == 0 || answer < t.AnswerMin {
		t.AnswerMin = answer
	}
	t.AnswerMax = max(t.AnswerMax, answer)
}

// Add takes over what a connection saw.
func (r *Result) Add(t *Tally) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.Objects += int64(len(t.Latencies))
	r.latencies = append(r.latencies, t.Latencies...)
	if t.AnswerMin > 0 && (r.AnswerMin == 0 || t.AnswerMin < r.AnswerMin) {
		r.AnswerMin = t.AnswerMin
	}
	r.AnswerMax = max(r.AnswerMax, t.AnswerMax)
}

// Fail counts an answer that was not right, or did not come.
func (r *Result) Fail(err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.Wrong++
	if len(r.Errors) < kept {
		r.Errors = append(r.Errors, err.Error())
	}
}

// Print writes the result to standard output.
func (r *Result) Print(elapsed time.Duration) {
	r.Seconds = elapsed.Seconds()
	slices.Sort(r.latencies)
	r.P50, r.P99, r.Max = r.quantile(0.5), r.quantile(0.99), r.quantile(1)
	if r.Errors == nil {
		r.Errors = []string{}
	}
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

func (r *Result) quantile(share float64) float64 {
	if len(r.latencies) == 0 {
		return 0
	}
	index := min(int(share*float64(len(r.latencies))), len(r.latencies)-1)
	return float64(r.latencies[index]) / float64(time.Millisecond)
}
