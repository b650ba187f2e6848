// Package wake tells when the machine was asleep and is awake again.
//
// It asks the kernel and nobody else: a timer on the wall clock that is cancelled
// when that clock is set (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET), which the
// kernel also does when it resumes. logind's PrepareForSleep says the same over
// D-Bus, but only for the sleeps that it was asked for, later, and not where there
// is no bus; the sandbox of a daemon would have to let it onto the bus besides.
// How long the machine slept is what the clock that counts sleep (CLOCK_BOOTTIME)
// gained on the one that does not (CLOCK_MONOTONIC): a clock that somebody merely
// set gains nothing.
package wake

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// far is when the timer would ring, in seconds since 1970: in the year 2242.
	far = 1 << 33
	// nap is the least time asleep that counts. Reading two clocks one after the
	// other differs by as long as this process was not scheduled.
	nap = time.Second
)

// clocks is what this package reads; a test has its own.
type clocks struct {
	// set waits until the wall clock is set or the machine resumes.
	set func() error
	// asleep is how long the machine has slept since it was started.
	asleep func() (time.Duration, error)
}

// Watch calls woke each time the machine wakes up, with how long it slept, until
// ctx ends.
func Watch(ctx context.Context, woke func(asleep time.Duration)) error {
	f, err := timer()
	if err != nil {
		return fmt.Errorf("watching for sleep: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	defer f.Close()
	return watch(ctx, clocks{func() error { return wait(f) }, slept}, woke)
}

func watch(ctx context.Context, c clocks, woke func(time.Duration)) error {
	before, err := c.asleep()
	if err != nil {
		return fmt.Errorf("watching for sleep: %w", err)
	}
	for {
		if err := c.set(); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watching for sleep: %w", err)
		}
		now, err := c.asleep()
		if err != nil {
			return fmt.Errorf("watching for sleep: %w", err)
		}
		if d := now - before; d >= nap {
			before = now
			woke(d)
		}
	}
}

// timer makes the timer. It is not blocking, so that closing it ends a read.
func timer() (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	spec := unix.ItimerSpec{Value: unix.Timespec{Sec: far}}
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &spec, nil); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("timerfd_settime", err)
	}
	return os.NewFile(uintptr(fd), "timerfd"), nil
}

// wait returns when the clock was set; the timer stays armed.
func wait(f *os.File) error {
	var rings [8]byte
	_, err := f.Read(rings[:])
	switch {
	case errors.Is(err, unix.ECANCELED):
		return nil
	case err == nil:
		return errors.New("the clock says that it is the year 2242")
	}
	return err
}

// slept is how long the machine has slept since it was started.
func slept() (time.Duration, error) {
	var awake, all unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &awake); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &all); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(all.Nano() - awake.Nano()), nil
}
