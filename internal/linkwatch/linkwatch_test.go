package linkwatch

import (
	"context"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestWatch changes an interface in a namespace of its own.
func TestWatch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED without root: a network namespace of one's own needs CAP_SYS_ADMIN")
	}
	// The thread is in the new namespace and dies with its goroutine.
	runtime.LockOSThread()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan struct{}, 100)
	ended := make(chan error)
	ready := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			t.Error(err)
		}
		close(ready)
		ended <- Watch(ctx, func() { told <- struct{}{} })
	}()
	<-ready
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	// The first change may come before Watch listens.
	for i := 0; len(told) == 0; i++ {
		set := netlink.LinkSetUp
		if i%2 == 1 {
			set = netlink.LinkSetDown
		}
		if err := set(lo); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
	<-told // at the first sign
	<-told // when it has settled
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Watch = %v", err)
	}
}
