package wake

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatch: a night's sleep is told, a clock that somebody sets is not.
func TestWatch(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var (
		steps  = []time.Duration{0, 0, 8 * time.Hour, 8 * time.Hour, 8*time.Hour + 10*time.Millisecond, 9 * time.Hour}
		n      int
		got    []time.Duration
		closed = errors.New("closed")
	)
	err := watch(ctx, clocks{
		set: func() error {
			if n++; n == len(steps) {
				cancel()
				return closed
			}
			return nil
		},
		asleep: func() (time.Duration, error) { return steps[n], nil },
	}, func(d time.Duration) { got = append(got, d) })
	if err != nil || len(got) != 2 || got[0] != 8*time.Hour || got[1] != time.Hour {
		t.Errorf("%v, %v; want 8 h, 1 h", got, err)
	}
	if err := watch(t.Context(), clocks{func() error { return closed }, slept}, nil); !errors.Is(err, closed) {
		t.Errorf("%v, want that the timer failed", err)
	}
}

// TestKernel: the timer of the kernel ends with the context, and is cancelled
// when the clock is set. It is set to what it shows.
func TestKernel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, func(d time.Duration) { t.Errorf("woke after %v", d) }) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}

	f, err := timer()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	set := make(chan error, 1)
	go func() { set <- wait(f) }()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		f.Close()
		<-set
		t.Skipf("NOT TESTED without the right to set the clock: %v", os.NewSyscallError("clock_settime", err))
	}
	if err := <-set; err != nil {
		t.Errorf("after the clock was set: %v", err)
	}
	if d, err := slept(); err != nil || d < 0 {
		t.Errorf("asleep for %v, %v", d, err)
	}
}
