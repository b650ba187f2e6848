package wss

import (
	"testing"
	"time"
)

const ms = time.Millisecond

var start = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func TestAckWatch(t *testing.T) {
	type look struct {
		at                time.Duration
		unacked, timeouts int
		lastAck           time.Duration
		want              verdict
	}
	for name, looks := range map[string][]look{
		"acknowledged at once":                 {{0, 1, 0, time.Minute, waiting}, {50 * ms, 0, 0, 40 * ms, idle}},
		"a busy flow on a good path":           {{0, 9, 0, 3 * ms, waiting}, {500 * ms, 9, 0, 3 * ms, waiting}, {9 * time.Second, 9, 0, 3 * ms, waiting}},
		"a long round trip is not suspect":     {{0, 1, 0, time.Minute, waiting}, {600 * ms, 1, 0, time.Minute, waiting}, {650 * ms, 0, 0, 0, idle}},
		"one loss, repaired":                   {{0, 1, 0, time.Minute, waiting}, {350 * ms, 1, 1, time.Minute, overdue}, {450 * ms, 0, 0, 20 * ms, idle}},
		"blackhole after idle":                 {{0, 1, 0, time.Minute, waiting}, {250 * ms, 1, 1, time.Minute, waiting}, {300 * ms, 1, 1, time.Minute, overdue}, {999 * ms, 2, 2, time.Minute, overdue}, {1000 * ms, 2, 2, time.Minute, dead}},
		"blackhole in a busy flow":             {{0, 5, 0, 0, waiting}, {300 * ms, 9, 1, 300 * ms, overdue}, {1000 * ms, 9, 2, 1000 * ms, dead}},
		"an acknowledgement starts it anew":    {{0, 5, 0, 0, waiting}, {400 * ms, 9, 1, 400 * ms, overdue}, {1100 * ms, 9, 1, 200 * ms, waiting}, {1899 * ms, 9, 1, 999 * ms, overdue}, {1900 * ms, 9, 1, 1000 * ms, dead}},
		"idle in between starts the wait anew": {{0, 1, 0, time.Minute, waiting}, {50 * ms, 0, 0, 10 * ms, idle}, {time.Hour, 1, 0, time.Hour, waiting}},
	} {
		t.Run(name, func(t *testing.T) {
			w := ackWatch{dead: deadAfter(0)}
			for _, l := range looks {
				if got := w.judge(start.Add(l.at), l.unacked, l.timeouts, l.lastAck); got != l.want {
					t.Fatalf("at %v: verdict %d, want %d", l.at, got, l.want)
				}
			}
		})
	}
}

func TestDeadAfterGrowsWithThePath(t *testing.T) {
	for rtt, want := range map[time.Duration]time.Duration{0: time.Second, 40 * ms: time.Second, 600 * ms: 2400 * ms} {
		if got := deadAfter(rtt); got != want {
			t.Errorf("round trip %v: dead after %v, want %v", rtt, got, want)
		}
	}
}

func TestEchoWatch(t *testing.T) {
	type look struct {
		at      time.Duration
		in, out uint64
		want    verdict
	}
	for name, looks := range map[string][]look{
		"only received":               {{0, 100, 0, idle}, {time.Hour, 200, 0, idle}},
		"answered":                    {{0, 0, 10, waiting}, {50 * ms, 10, 10, idle}, {time.Hour, 10, 10, idle}},
		"answered after a ping":       {{0, 0, 10, waiting}, {300 * ms, 0, 10, ping}, {350 * ms, 0, 10, waiting}, {500 * ms, 6, 10, idle}, {time.Hour, 6, 10, idle}},
		"never answered":              {{0, 0, 10, waiting}, {300 * ms, 0, 20, ping}, {1199 * ms, 0, 90, waiting}, {1200 * ms, 0, 90, dead}},
		"received and sent in a look": {{0, 5, 10, waiting}, {50 * ms, 9, 20, waiting}, {350 * ms, 9, 20, ping}, {500 * ms, 15, 20, idle}},
	} {
		t.Run(name, func(t *testing.T) {
			var w echoWatch
			for _, l := range looks {
				if got := w.judge(start.Add(l.at), l.in, l.out); got != l.want {
					t.Fatalf("at %v: verdict %d, want %d", l.at, got, l.want)
				}
			}
		})
	}
}
