// Package linkwatch tells when the machine's interfaces, addresses or routes
// change: when another network is joined, an overlay's interface comes or goes,
// or the machine wakes up, which takes its links down and up.
//
// It listens to the kernel (rtnetlink(7)) and polls nothing.
package linkwatch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// settle is how long nothing must change before a change is over. Joining a
// network is some tens of messages within a second.
const settle = 500 * time.Millisecond

// groups are the kernel's announcements that are listened to.
const groups = unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE

// Watch calls changed at the first sign of a change, and once more when nothing
// has changed for half a second, until ctx ends. changed is not called
// concurrently.
func Watch(ctx context.Context, changed func()) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{Groups: groups})
	if err != nil {
		return fmt.Errorf("watching the network: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	events, failed := make(chan struct{}), make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			// What the messages say does not matter: whoever is told looks.
			// ENOBUFS is that there were too many of them.
			if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) {
				failed <- err
				return
			}
			select {
			case events <- struct{}{}:
			case <-done:
				return
			}
		}
	}()
	timer := time.NewTimer(settle)
	timer.Stop()
	defer timer.Stop()
	for changing := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watching the network: %w", err)
		case <-events:
			if !changing {
				changed()
			}
			changing = true
			timer.Reset(settle)
		case <-timer.C:
			changing = false
			changed()
		}
	}
}
