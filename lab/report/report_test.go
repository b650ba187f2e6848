package report

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/matrix"
	"github.com/veilor/veilor-os/lab/browse"
)

// update rewrites the goldens: go test ./report -update
var update = flag.Bool("update", false, "write testdata anew")

// runOf makes up a run like the demo's: 10 requests a second, three acts of the
// ISP.
func runOf(seconds int) *Page {
	r := rand.New(rand.NewPCG(1, 2))
	start := time.Date(2026, 11, 23, 14, 0, 0, 0, time.UTC)
	at := func(s float64) time.Time { return start.Add(time.Duration(s * float64(time.Second))) }
	length := float64(seconds)
	cut, edge, back := length*.22, length*.5, length*.76
	var samples []browse.Sample
	for i := range seconds * 10 {
		t := float64(i) / 10
		s := browse.Sample{N: i + 1, Start: at(t).UnixNano(), OK: true, Layer: browse.Tailnet, Millis: 22 * math.Exp(.25*r.NormFloat64())}
		switch {
		case t > cut && t < edge:
			s.Layer, s.Millis = browse.Yggdrasil, 41*math.Exp(.3*r.NormFloat64())
			if t < cut+.8 {
				s.Millis += 300
			}
			if t < cut+.2 {
				s = browse.Sample{N: s.N, Start: s.Start, Millis: 5000, Err: "timeout"}
			}
		case t >= edge && t < back+3:
			s.Layer, s.Millis = browse.Yggdrasil, 55*math.Exp(.3*r.NormFloat64())
			if t < edge+1.2 {
				s.Millis += 1000 * (edge + 1.2 - t)
			}
			if t < edge+.4 {
				s = browse.Sample{N: s.N, Start: s.Start, Millis: 5000, Err: "connection refused"}
			}
		}
		samples = append(samples, s)
	}
	return &Page{
		Title: "One laptop, one town, one censor", Made: start, Took: 10*time.Minute + 41*time.Second, Machine: "2 cores, no KVM",
		Samples: samples,
		Bands: []Band{
			{From: at(cut), To: at(edge), Text: "UDP and the control server dropped", Result: "next answer after 0.27 s, over yggdrasil; 2 requests lost"},
			{From: at(edge), To: at(back), Text: "the edge dropped too", Result: "next answer after 0.31 s, through the public peer; 4 requests lost"},
			{From: at(back), To: at(length), Text: "all blocks lifted", Result: "back on the tailnet after 4.0 s, 0 requests lost", Lifted: true},
		},
		Boots: []Boot{{
			Samples: []browse.Sample{
				{N: 1, Start: at(70).UnixNano(), Millis: 12, Err: "no such host"},
				{N: 2, Start: at(82).UnixNano(), Millis: 640, OK: true, Layer: browse.Yggdrasil},
				{N: 3, Start: at(94).UnixNano(), Millis: 60, OK: true, Layer: browse.Tailnet},
			},
			Bands: []Band{
				{From: at(0), To: at(90), Text: "DNS lies, Tailscale dropped", Result: "login prompt after 79 s, the page after 83 s, over yggdrasil"},
				{From: at(90), To: at(99), Text: "Tailscale let through, DNS still lies", Result: "on the tailnet after 4.1 s"},
			},
			Marks: []Mark{{at(34), "passphrase"}, {at(79), "login prompt"}},
		}},
		Acts: []Act{
			{"image", "44.lab.1: 6 layers, 31 MB over the base, same digest twice", 4100 * time.Millisecond, Pass},
			{"signature", "accepted signed; refused unsigned, stranger's key, swapped layer", 1900 * time.Millisecond, Pass},
			{"install", "LUKS2 and ostree onto a 1.5 GB disk", 41 * time.Second, Pass},
			{"boot", "passphrase at 34 s, login at 79 s, 0 failed units", 79 * time.Second, Pass},
			{"join", "guest key minted, used, spent", 3300 * time.Millisecond, Pass},
			{"reach", "x.veilor over the tailnet, 212 of 212 requests", 21 * time.Second, Pass},
			{"blocked", "two failovers and the way back", 91 * time.Second, Fail},
			{"hardware", "no laptop here", 0, Skip},
		},
		Checks: []Check{
			AtMost("failover.first-gap", "First answer after UDP and control were dropped", .27, 2, "s"),
			AtMost("failover.peer-gap", "First answer after the edge was dropped too", 3.31, 3, "s").With("through the public peer; the link was dialled anew"),
			AtLeast("forward.throughput", "Forwarder against a direct connection", .93, .8, "of direct"),
			AtMost("rss.veilor", "Memory of the mesh daemon", 18.4, 40, "MB"),
			Fact("image.rebuild", "Rebuild after one overlay file changed", 1.7, "s"),
			Held("units.failed", "No unit has failed", nil),
			Held("policy.unsigned", "An unsigned image is refused", errors.New("the image was accepted")),
			Skipped("kvm", "Boot with KVM", "no KVM that works on this machine"),
		},
		Tiers: &matrix.Record{
			Date: start, Commit: "b49938b2f0c1", Conditions: []matrix.Condition{{Name: "open", Text: "the ISP lets <everything> pass"}},
			Cells: []matrix.Cell{
				{Condition: "open", Layer: "tailnet", Source: matrix.End{Name: "laptop", Class: "guest"}, Destination: matrix.End{Name: "nullstone", Class: "infra"}, Open: []string{"443/tcp"}, Refused: 30},
				{Condition: "open", Layer: "yggdrasil", Source: matrix.End{Name: "laptop", Class: "guest"}, Destination: matrix.End{Name: "cousin", Class: "guest"}, Refused: 29, Leaked: []string{"22/tcp"}},
			},
			Control: matrix.Control{Sent: 60, Seen: 60},
		},
		Screens: []Screen{{When: "joined", Command: "veilor status", Text: "x.veilor     reachable over tailnet <direct>"}, {When: "the disk wants its passphrase", Command: "boot", PNG: []byte("\x89PNG")}},
		StandIns: []StandIn{
			{"Debian trixie with ostree", "secureblue's Kinoite", "it cannot be had offline"},
			{"lab/bootc", "bootc", "no package of it exists for Debian"},
			{"a static GRUB configuration", "Fedora's GRUB, shim and bootupd", "Debian's GRUB has no blscfg"},
			{"the lab's web CA", "the public web PKI", "no route out"},
		},
		Untried: []string{"Secure Boot and TPM on a real laptop", "Wi-Fi, suspend and resume", "a real censor"},
		Commit:  "b49938b2f0c1", Versions: []Version{{"headscale", "v0.29.3"}, {"tailscale", "v1.102.5"}, {"yggdrasil-go", "v0.5.14"}, {"go", "go1.26.8"}},
	}
}

func TestPageGolden(t *testing.T) {
	got, err := runOf(12).Render()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", "page.html")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err, "; make it with go test ./report -update and look at it")
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Error("the page changed; look at it, then go test ./report -update\n", d)
	}
}

func TestPageIsSelfContained(t *testing.T) {
	p := runOf(90)
	p.Title = `<script>"&`
	p.Bands[0].Text = "a </text><script> in a band"
	p.Acts[0].Text = "<img src=x>"
	got, err := p.Render()
	if err != nil {
		t.Fatal(err)
	}
	text := string(got)
	for _, bad := range []string{"<script", "<img src=x", "http://", "https://", "url(", "@import", "<link", "ZgotmplZ"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page contains %q", bad)
		}
	}
	if len(got) > 500<<10 {
		t.Errorf("%d bytes for 900 requests", len(got))
	}
}

func TestPageOfNothing(t *testing.T) {
	got, err := (&Page{Title: "Nothing", Made: time.Unix(0, 0)}).Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Nothing was tried", "no picture"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestAppend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report.json")
	if err := Append(file, Held("a", "A", nil), AtMost("b", "B", 2, 1, "s")); err != nil {
		t.Fatal(err)
	}
	if err := Append(file, Skipped("c", "C", "no root"), AtMost("b", "B", 1, 1, "s").With("again")); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const want = `[
  {
    "id": "a",
    "title": "A",
    "status": "pass",
    "value": null,
    "unit": "",
    "limit": null,
    "note": ""
  },
  {
    "id": "b",
    "title": "B",
    "status": "pass",
    "value": 1,
    "unit": "s",
    "limit": 1,
    "note": "again"
  },
  {
    "id": "c",
    "title": "C",
    "status": "skip",
    "value": null,
    "unit": "",
    "limit": null,
    "note": "no root"
  }
]
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	if err := Append(file, Check{Title: "no id"}); err == nil {
		t.Error("a check without id was taken")
	}
	os.WriteFile(file, []byte("{"), 0o644)
	if err := Append(file, Held("a", "A", nil)); err == nil {
		t.Error("a broken report was overwritten")
	}
}

func TestMeasured(t *testing.T) {
	for _, c := range []struct {
		check Check
		want  Status
	}{
		{AtMost("", "", 1, 1, ""), Pass}, {AtMost("", "", 1.1, 1, ""), Fail}, {AtLeast("", "", .9, 1, ""), Fail},
		{AtLeast("", "", 1, 1, ""), Pass}, {AtMost("", "", math.NaN(), 1, ""), Fail}, {AtLeast("", "", math.NaN(), 1, ""), Fail},
	} {
		if c.check.Status != c.want {
			t.Errorf("%v against %v: %s", *c.check.Value, *c.check.Limit, c.check.Status)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", .27: "0.27", .5: "0.50", 3: "3", 12.34: "12.3", 12: "12", 1234.5: "1234"} {
		if got := Number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
	for d, want := range map[time.Duration]string{270 * time.Millisecond: "0.27 s", 41 * time.Second: "41.0 s", 192 * time.Second: "3 min 12 s", 59999 * time.Millisecond: "60.0 s"} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		width, rows int
		want        string
	}{{40, 1, "[all UDP dropped]"}, {8, 2, "[all UDP dropped]"}, {8, 1, "[]"}, {3, 9, "[]"}, {-5, 9, "[]"}} {
		if got := fmt.Sprint(wrap("all UDP dropped", c.width, c.rows)); got != c.want {
			t.Errorf("%d x %d: %s, want %s", c.width, c.rows, got, c.want)
		}
	}
}

// A band's words end where the next begins, though the band goes on below it.
func TestBandsOverlap(t *testing.T) {
	from := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return from.Add(time.Duration(s) * time.Second) }
	long := "all UDP and the control server dropped"
	for next, want := range map[int]bool{1: false, 50: true} {
		got := string(drawTimeline(wide, nil, []Band{{From: at(0), To: at(100), Text: long}, {From: at(next), To: at(100), Text: "edge"}}))
		if strings.Contains(got, ">"+long+"</text>") != want {
			t.Errorf("with another after %d s it is named: %t, want %t", next, !want, want)
		}
	}
}

// TestShow writes the long page to a file to look at: SHOW=page.html go test -run Show
func TestShow(t *testing.T) {
	file := os.Getenv("SHOW")
	if file == "" {
		t.Skip("set SHOW to a file to have a page to look at")
	}
	if err := runOf(92).Write(file); err != nil {
		t.Fatal(err)
	}
}
