package censor

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/florianl/go-nfqueue/v2"
)

const (
	// guilty is the mark of a packet that an inspector has judged.
	guilty = 0x7e15
	// queueLength is how many packets may wait: a second of 50 Mbit/s.
	queueLength = 4096
	// wholePacket is the most that a packet can be.
	wholePacket = 0xffff
)

// inspector reads packets that are held back until it has judged them. It is
// called by one goroutine.
type inspector interface {
	// judge gets an IP packet and says after which time it goes on, and whether
	// with the mark.
	judge(packet []byte) (after time.Duration, marked bool)
}

// watch has every packet of the queue judged, until stop is called.
func watch(netns int, queue uint16, i inspector) (stop func(), err error) {
	q, err := nfqueue.Open(&nfqueue.Config{
		NetNS: netns, NfQueue: queue, MaxQueueLen: queueLength, MaxPacketLen: wholePacket, Copymode: nfqueue.NfQnlCopyPacket,
	})
	if err != nil {
		return nil, fmt.Errorf("opening packet queue %d: %w", queue, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	on := func(a nfqueue.Attribute) int {
		if a.PacketID == nil {
			return 0
		}
		id := *a.PacketID
		var after time.Duration
		mark := 0
		if a.Payload != nil {
			var bad bool
			if after, bad = i.judge(*a.Payload); bad {
				mark = guilty
			}
		}
		if after > 0 {
			time.AfterFunc(after, func() { q.SetVerdictWithMark(id, nfqueue.NfAccept, mark) })
			return 0
		}
		q.SetVerdictWithMark(id, nfqueue.NfAccept, mark)
		return 0
	}
	// An error is a message that was lost; the kernel drops its packet.
	if err := q.RegisterWithErrorFunc(ctx, on, func(error) int { return 0 }); err != nil {
		cancel()
		q.Close()
		return nil, fmt.Errorf("reading packet queue %d: %w", queue, err)
	}
	return func() {
		cancel()
		q.Close()
	}, nil
}

// jitter delays packets, each for itself: they also overtake one another.
type jitter struct{ least, most time.Duration }

func (j *jitter) judge([]byte) (time.Duration, bool) {
	return j.least + rand.N(j.most-j.least+1), false
}
