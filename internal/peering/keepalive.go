package peering

import "time"

// Idle is how long a peering may be silent before the node says something
// itself: Yggdrasil does not, and a NAT that has forgotten the connection costs
// the next request 5 s (measured). Carriers forget after 60 s and more; with the
// jitter it is at most 36 s here. A shorter pause would only cost battery.
const Idle = 30 * time.Second

// again is the least pause between two looks: a clock of another resolution
// must not make a spin of it.
const again = 100 * time.Millisecond

// Keepalive decides when an idle peering is to say something. Its pauses are
// random within a fifth, so that they are no beat that an observer would know.
type Keepalive struct {
	rand  func() float64
	pause time.Duration
}

// NewKeepalive returns one for a peering that begins now. rand gives numbers in
// [0,1).
func NewKeepalive(rand func() float64) *Keepalive {
	k := &Keepalive{rand: rand}
	k.draw()
	return k
}

func (k *Keepalive) draw() {
	k.pause = Idle + time.Duration(float64(Idle)*jitter*(2*k.rand()-1))
}

// Step takes how long nothing has been sent or received, and says whether to
// speak now and when to look again. While there is traffic it never speaks.
func (k *Keepalive) Step(idle time.Duration) (speak bool, next time.Duration) {
	if idle >= k.pause {
		k.draw()
		return true, k.pause
	}
	return false, max(k.pause-idle, again)
}
