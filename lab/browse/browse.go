// Package browse is what a browser-like client saw: one sample per request, and
// what they say about an outage.
//
// Samples are made by cmd/browser inside the machine, by its clock, and read
// outside; [Offset] brings the two clocks together.
package browse

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"
)

// Layers by which an answer can have come.
const (
	Tailnet   = "tailnet"
	Yggdrasil = "yggdrasil"
	Other     = "other"
)

var (
	tailnet4  = netip.MustParsePrefix("100.64.0.0/10")       // RFC 6598, Tailscale's IPv4
	tailnet6  = netip.MustParsePrefix("fd7a:115c:a1e0::/48") // Tailscale's IPv6
	yggdrasil = netip.MustParsePrefix("200::/7")             // Yggdrasil's nodes
)

// Layer names the layer from which the service saw the request come.
func Layer(from netip.Addr) string {
	from = from.Unmap()
	switch {
	case tailnet4.Contains(from), tailnet6.Contains(from):
		return Tailnet
	case yggdrasil.Contains(from):
		return Yggdrasil
	}
	return Other
}

// Sample is one finished request, as it travels: a line of JSON.
type Sample struct {
	// N counts requests from 1, in the order of their start.
	N int `json:"n"`
	// Start is when the request began, in nanoseconds of the client's Unix clock.
	Start int64 `json:"start"`
	// Millis is how long it took, in ms, to the last byte of the answer or to
	// the failure.
	Millis float64 `json:"ms"`
	OK     bool    `json:"ok"`
	// Layer is empty unless OK.
	Layer string `json:"layer,omitempty"`
	// Err is empty if OK.
	Err string `json:"err,omitempty"`

	// Received is when the line was read outside, by the reader's clock.
	Received time.Time `json:"-"`
}

// Began is when the request began, by the client's clock.
func (s Sample) Began() time.Time { return time.Unix(0, s.Start) }

// Done is when it finished, by the client's clock.
func (s Sample) Done() time.Time {
	return s.Began().Add(time.Duration(s.Millis * float64(time.Millisecond)))
}

// maxLine bounds a line of the wire form: a sample has under 300 bytes.
const maxLine = 4096

// ErrMalformed is the cause when a line is not a sample.
var ErrMalformed = errors.New("not a sample")

// Parse reads one line.
func Parse(line []byte) (Sample, error) {
	var s Sample
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return Sample{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if s.N < 1 || s.Start <= 0 || s.Millis < 0 || s.OK != (s.Err == "") || s.OK != (s.Layer != "") {
		return Sample{}, fmt.Errorf("%w: %.100q", ErrMalformed, line)
	}
	return s, nil
}

// Read hands every sample of r to each, stamped with now, until r ends. A first
// line that is cut is passed over: the port may have been opened before.
func Read(r io.Reader, now func() time.Time, each func(Sample)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for first := true; lines.Scan(); first = false {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		s, err := Parse(line)
		if err != nil {
			if first {
				continue
			}
			return fmt.Errorf("reading samples: %w", err)
		}
		s.Received = now()
		each(s)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading samples: %w", err)
	}
	return nil
}

// Offset is what to add to the client's clock to get the reader's. It is too
// large by the shortest time that a sample took to be read, a millisecond or
// two; ok is false without samples that were read by [Read].
func Offset(samples []Sample) (offset time.Duration, ok bool) {
	for _, s := range samples {
		if s.Received.IsZero() {
			continue
		}
		if d := s.Received.Sub(s.Done()); !ok || d < offset {
			offset, ok = d, true
		}
	}
	return offset, ok
}

// Shift moves samples by offset, to the reader's clock.
func Shift(samples []Sample, offset time.Duration) []Sample {
	out := slices.Clone(samples)
	for i := range out {
		out[i].Start += int64(offset)
	}
	return out
}

// Stretch is a time between two marks: what the ISP did at From held until To.
type Stretch struct{ From, To time.Time }

// Outage is what a client saw of a stretch.
type Outage struct {
	// Requests began in the stretch, and of them Lost had no good answer.
	Requests, Lost int
	// Layers counts the good answers to them by layer.
	Layers map[string]int
	// Gap is from the last good answer before the mark to the first good answer
	// to a request that began after it: how long a person waits to see the page
	// again. HasGap is false if either does not exist.
	Gap    time.Duration
	HasGap bool
	// GapLayer is the layer of that answer.
	GapLayer string
	// Silence is the longest time in the stretch without any good answer,
	// counted from the last one before the mark. It includes every later stumble.
	Silence time.Duration
}

// Watch computes what samples say of a stretch. Answers count when they are
// complete. Samples may come in any order; all are by one clock, the marks too.
func Watch(samples []Sample, in Stretch) Outage {
	byDone := slices.Clone(samples)
	slices.SortFunc(byDone, func(a, b Sample) int { return cmp.Compare(a.Done().UnixNano(), b.Done().UnixNano()) })

	o := Outage{Layers: map[string]int{}}
	var last, lastBefore time.Time // of good answers
	for _, s := range byDone {
		began, done := s.Began(), s.Done()
		inside := !began.Before(in.From) && began.Before(in.To)
		if inside {
			o.Requests++
			if s.OK {
				o.Layers[s.Layer]++
			} else {
				o.Lost++
			}
		}
		if !s.OK {
			continue
		}
		if done.Before(in.From) {
			last, lastBefore = done, done
			continue
		}
		if !last.IsZero() && done.Before(in.To) {
			o.Silence = max(o.Silence, done.Sub(last))
			last = done
		}
		if inside && !o.HasGap && !lastBefore.IsZero() {
			o.Gap, o.HasGap, o.GapLayer = done.Sub(lastBefore), true, s.Layer
		}
	}
	if !last.IsZero() && in.To.After(last) {
		o.Silence = max(o.Silence, in.To.Sub(last))
	}
	return o
}

// First returns when the first good answer by layer to a request begun at or
// after mark was complete.
func First(samples []Sample, layer string, mark time.Time) (time.Time, bool) {
	var first time.Time
	for _, s := range samples {
		if s.OK && s.Layer == layer && !s.Began().Before(mark) && (first.IsZero() || s.Done().Before(first)) {
			first = s.Done()
		}
	}
	return first, !first.IsZero()
}
