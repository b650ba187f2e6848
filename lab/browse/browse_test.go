package browse

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// at is a moment: ms after the epoch of these tests.
func at(ms int) time.Time { return time.Unix(1000, 0).Add(time.Duration(ms) * time.Millisecond) }

func good(start, took int, layer string) Sample {
	return Sample{N: 1, Start: at(start).UnixNano(), Millis: float64(took), OK: true, Layer: layer}
}

func bad(start, took int) Sample {
	return Sample{N: 1, Start: at(start).UnixNano(), Millis: float64(took), Err: "timeout"}
}

func TestWatch(t *testing.T) {
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, c := range map[string]struct {
		samples []Sample
		from    int
		to      int
		want    Outage
	}{
		"nothing at all": {nil, 0, 1000, Outage{Layers: map[string]int{}}},
		"no harm done": {
			[]Sample{good(0, 10, Tailnet), good(100, 10, Tailnet), good(200, 10, Tailnet), good(300, 10, Tailnet)}, 150, 350,
			Outage{Requests: 2, Layers: map[string]int{Tailnet: 2}, Gap: ms(100), HasGap: true, GapLayer: Tailnet, Silence: ms(100)},
		},
		"failover": {
			[]Sample{good(0, 10, Tailnet), bad(100, 5000), bad(200, 5000), good(300, 60, Yggdrasil), good(400, 20, Yggdrasil)}, 50, 500,
			Outage{Requests: 4, Lost: 2, Layers: map[string]int{Yggdrasil: 2}, Gap: ms(350), HasGap: true, GapLayer: Yggdrasil, Silence: ms(350)},
		},
		// Its answer had passed before the block and proves nothing about new
		// connections: the gap runs on.
		"an answer in flight at the mark": {
			[]Sample{good(0, 10, Tailnet), good(40, 15, Tailnet), good(400, 50, Yggdrasil)}, 50, 500,
			Outage{Requests: 1, Layers: map[string]int{Yggdrasil: 1}, Gap: ms(440), HasGap: true, GapLayer: Yggdrasil, Silence: ms(395)},
		},
		// Concurrent requests: the one begun later answers first.
		"answers out of order": {
			[]Sample{good(0, 10, Tailnet), good(100, 900, Yggdrasil), good(200, 100, Yggdrasil)}, 50, 2000,
			Outage{Requests: 2, Layers: map[string]int{Yggdrasil: 2}, Gap: ms(290), HasGap: true, GapLayer: Yggdrasil, Silence: ms(1000)},
		},
		"it never comes back": {
			[]Sample{good(0, 10, Tailnet), bad(100, 500)}, 50, 1010,
			Outage{Requests: 1, Lost: 1, Layers: map[string]int{}, Silence: ms(1000)},
		},
		"nothing good before the mark": {
			[]Sample{bad(0, 10), good(100, 10, Tailnet)}, 50, 200,
			Outage{Requests: 1, Layers: map[string]int{Tailnet: 1}},
		},
		"a stumble later on": {
			[]Sample{good(0, 10, Tailnet), good(60, 10, Yggdrasil), good(900, 10, Yggdrasil), good(980, 10, Yggdrasil)}, 50, 1000,
			Outage{Requests: 3, Layers: map[string]int{Yggdrasil: 3}, Gap: ms(60), HasGap: true, GapLayer: Yggdrasil, Silence: ms(840)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := Watch(c.samples, Stretch{at(c.from), at(c.to)})
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error("(-want +got)\n", d)
			}
		})
	}
}

func TestFirst(t *testing.T) {
	samples := []Sample{good(0, 10, Tailnet), good(100, 10, Yggdrasil), good(300, 50, Tailnet), good(310, 10, Tailnet)}
	if got, ok := First(samples, Tailnet, at(50)); !ok || !got.Equal(at(320)) {
		t.Error(got, ok)
	}
	if _, ok := First(samples, Tailnet, at(500)); ok {
		t.Error("an answer from before the mark")
	}
}

func TestOffset(t *testing.T) {
	a, b := good(0, 10, Tailnet), good(100, 10, Tailnet)
	a.Received, b.Received = at(10).Add(time.Hour+5*time.Millisecond), at(110).Add(time.Hour+2*time.Millisecond)
	offset, ok := Offset([]Sample{a, b})
	if want := time.Hour + 2*time.Millisecond; !ok || offset != want {
		t.Fatalf("%v, %t; want %v", offset, ok, want)
	}
	if got := Shift([]Sample{a}, offset)[0].Began(); !got.Equal(at(0).Add(offset)) {
		t.Error(got)
	}
	if _, ok := Offset(nil); ok {
		t.Error("an offset of nothing")
	}
}

func TestLayer(t *testing.T) {
	for from, want := range map[string]string{
		"100.64.0.2": Tailnet, "fd7a:115c:a1e0::2": Tailnet, "::ffff:100.64.0.2": Tailnet,
		"200:e602::1": Yggdrasil, "3ff::1": Yggdrasil, "10.88.1.10": Other, "100.128.0.1": Other, "400::1": Other,
	} {
		if got := Layer(netip.MustParseAddr(from)); got != want {
			t.Errorf("%s: %s, want %s", from, got, want)
		}
	}
}

func TestRead(t *testing.T) {
	now := func() time.Time { return at(0) }
	const line = `{"n":7,"start":1000000000000,"ms":12.5,"ok":true,"layer":"tailnet"}`
	for name, c := range map[string]struct {
		in   string
		want int
		err  error
	}{
		"two":                {line + "\n" + line + "\n", 2, nil},
		"cut at the start":   {`0,"ok":true}` + "\n" + line + "\n", 1, nil},
		"cut in the middle":  {line + "\n" + `{"n":8,"st` + "\n", 1, ErrMalformed},
		"ok without a layer": {line + "\n" + `{"n":8,"start":1,"ms":1,"ok":true}` + "\n", 1, ErrMalformed},
		"nothing":            {"", 0, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			err := Read(strings.NewReader(c.in), now, func(s Sample) {
				n++
				if !s.Received.Equal(at(0)) {
					t.Error("not stamped")
				}
			})
			if n != c.want || !errors.Is(err, c.err) {
				t.Errorf("%d samples, %v; want %d, %v", n, err, c.want, c.err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"n":7,"start":1000000000000,"ms":12.5,"ok":true,"layer":"tailnet"}`))
	f.Add([]byte(`{"n":7,"start":1,"ms":5000,"ok":false,"err":"timeout"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		s, err := Parse(line)
		if err == nil && (s.OK == (s.Err != "") || s.Millis < 0) {
			t.Errorf("%+v", s)
		}
	})
}
