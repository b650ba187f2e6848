package main

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestListen: a daemon that is not there is looked for ever more rarely, one that
// was is looked for soon.
func TestListen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	now := time.Unix(1e9, 0)
	var pauses []time.Duration
	lives := []time.Duration{0, 0, 0, 0, 0, 0, 0, 0, time.Hour, 0}
	n, lost := 0, 0
	listen(ctx, func() time.Time { return now }, func(d time.Duration) <-chan time.Time {
		pauses = append(pauses, d)
		c := make(chan time.Time, 1)
		c <- now
		return c
	}, func(context.Context) error {
		if n == len(lives) {
			cancel()
			return ctx.Err()
		}
		now = now.Add(lives[n])
		n++
		return errors.New("nobody there")
	}, func(error) { lost++ })
	s := time.Second
	want := []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, time.Minute, time.Minute, s, 2 * s}
	if diff := cmp.Diff(want, pauses); diff != "" || lost != 1 {
		t.Errorf("pauses (-want +got):\n%s%d lost, want 1", diff, lost)
	}
}
