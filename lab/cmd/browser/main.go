// Command browser is a browser-like client for the lab's virtual machine: it
// fetches a page again and again, each time on a new connection and by name,
// through the system's own resolver and trust store, and prints one line of
// JSON per finished request (see package browse).
//
// Requests begin at a fixed beat whether or not earlier ones have answered, as
// a person's clicks would: an outage does not slow the clock that measures it.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/veilor/veilor-os/lab/browse"
)

const (
	// maxInFlight bounds requests that hang: 50 at 10 a second are 5 s, the
	// default timeout, so none is left out.
	maxInFlight = 50
	// maxAnswer bounds what is read of an answer; the real one has 60 bytes.
	maxAnswer = 64 << 10
	// outBacklog is how many lines may wait for a slow reader of the port
	// before the beat itself would wait: 100 s at 10 a second.
	outBacklog = 1000
)

type options struct {
	url     string
	out     string
	every   time.Duration
	timeout time.Duration
	length  time.Duration
	stdin   bool
}

func main() {
	var o options
	flag.StringVar(&o.url, "url", "https://x.veilor/", "what to fetch: a service that answers {\"from\": ADDRESS}")
	flag.StringVar(&o.out, "out", "", "`file` or port for the samples; standard output if empty")
	flag.DurationVar(&o.every, "every", 100*time.Millisecond, "time between the starts of two requests")
	flag.DurationVar(&o.timeout, "timeout", 5*time.Second, "when a request counts as lost")
	flag.DurationVar(&o.length, "for", 0, "stop after this long; 0 is until SIGTERM")
	flag.BoolVar(&o.stdin, "until-eof", false, "stop when standard input ends")
	flag.Parse()
	if u, err := url.Parse(o.url); err != nil || u.Host == "" || o.every <= 0 || o.timeout <= 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "browser: bad arguments; write for example: browser --url https://x.veilor/ --every 100ms --for 10s")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, stdin io.Reader, stdout io.Writer) error {
	out := stdout
	if o.out != "" {
		// No O_TRUNC and no O_CREATE for a device: a port that is missing is an error.
		flags := os.O_WRONLY
		if info, err := os.Stat(o.out); err != nil || info.Mode().IsRegular() {
			flags |= os.O_CREATE | os.O_APPEND
		}
		f, err := os.OpenFile(o.out, flags, 0o644)
		if err != nil {
			return fmt.Errorf("opening where the samples go: %w", err)
		}
		defer f.Close()
		out = f
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.length > 0 {
		ctx, cancel = context.WithTimeout(ctx, o.length)
		defer cancel()
	}
	if o.stdin {
		go func() {
			io.Copy(io.Discard, stdin)
			cancel()
		}()
	}
	samples := make(chan browse.Sample, outBacklog)
	written := make(chan error, 1)
	go func() { written <- write(out, samples) }()
	beat(ctx, o, samples)
	close(samples)
	return <-written
}

// write prints samples, each at once and in one piece.
func write(out io.Writer, samples <-chan browse.Sample) error {
	var failed error
	for s := range samples {
		line, err := json.Marshal(s)
		if err == nil && failed == nil {
			_, failed = out.Write(append(line, '\n'))
		}
	}
	if failed != nil {
		return fmt.Errorf("writing samples: %w", failed)
	}
	return nil
}

// beat starts a request every o.every until ctx ends, and waits for those in
// flight.
func beat(ctx context.Context, o options, samples chan<- browse.Sample) {
	client := &http.Client{
		Timeout: o.timeout,
		Transport: &http.Transport{
			DisableKeepAlives:   true,
			TLSHandshakeTimeout: o.timeout,
			// A new connection, but not a new acquaintance: browsers resume
			// sessions (RFC 8446, 2.2).
			TLSClientConfig: &tls.Config{ClientSessionCache: tls.NewLRUClientSessionCache(0)},
		},
	}
	slots := make(chan struct{}, maxInFlight)
	tick := time.NewTicker(o.every)
	defer tick.Stop()
	var flying sync.WaitGroup
	defer flying.Wait()
	for n := 1; ; n++ {
		select {
		case slots <- struct{}{}:
			flying.Go(func() {
				defer func() { <-slots }()
				samples <- fetch(client, o.url, n)
			})
		default:
			// Everything hangs: this click is lost, and said to be.
			samples <- browse.Sample{N: n, Start: time.Now().UnixNano(), Err: fmt.Sprintf("not tried: %d requests hang", maxInFlight)}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// fetch makes one request. It is bounded by the client's timeout and not by the
// end of the run: what began is finished.
func fetch(client *http.Client, target string, n int) browse.Sample {
	start := time.Now()
	layer, err := ask(client, target)
	s := browse.Sample{N: n, Start: start.UnixNano(), Millis: float64(time.Since(start).Microseconds()) / 1000, OK: err == nil, Layer: layer}
	if err != nil {
		s.Err = err.Error()
		var ue *url.Error
		if errors.As(err, &ue) { // without the URL, which is always the same
			s.Err = ue.Err.Error()
		}
		s.Err = shorten(s.Err)
	}
	return s
}

// shorten keeps a line well below what the reader takes.
func shorten(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

func ask(client *http.Client, target string) (layer string, err error) {
	req, err := http.NewRequest(http.MethodGet, target, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("the service answered %s", resp.Status)
	}
	var answer struct {
		From netip.Addr `json:"from"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	return browse.Layer(answer.From), nil
}
