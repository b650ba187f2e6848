package peering

import (
	"math/rand/v2"
	"testing"
	"time"
)

// forgets is when the most forgetful NAT that is worth a thought drops a flow.
const forgets = 60 * time.Second

// TestKeepalive plays a day, second by second, with traffic by turns.
func TestKeepalive(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	k := NewKeepalive(r.Float64)
	var idle, wait time.Duration
	_, wait = k.Step(0)
	spoken, pauses := 0, map[time.Duration]bool{}
	for s := range 24 * 3600 {
		busy := s/3600%2 == 1
		if idle, wait = idle+time.Second, wait-time.Second; busy {
			idle = 0
		}
		if wait <= 0 {
			was := idle
			var speak bool
			if speak, wait = k.Step(idle); speak {
				if busy {
					t.Fatal("it speaks while there is traffic")
				}
				spoken++
				pauses[was] = true
				idle = 0
			}
		}
		if idle >= forgets {
			t.Fatalf("silent for %v", idle)
		}
	}
	// 12 idle hours, 30 s each.
	if spoken < 12*3600/40 || spoken > 12*3600/24 {
		t.Errorf("spoke %d times in 12 idle hours", spoken)
	}
	if len(pauses) < 8 {
		t.Errorf("only %d different pauses: a beat", len(pauses))
	}
}

func TestKeepaliveNeverSpins(t *testing.T) {
	k := NewKeepalive(func() float64 { return 0.5 })
	for _, idle := range []time.Duration{0, Idle - time.Nanosecond, Idle, time.Hour} {
		if _, next := k.Step(idle); next < again {
			t.Errorf("idle for %v: next look after %v", idle, next)
		}
	}
}
