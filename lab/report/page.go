package report

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/veilor/veilor-os/internal/matrix"
	"github.com/veilor/veilor-os/lab/browse"
)

// Page is the report as a person sees it.
type Page struct {
	// Title is the page's one sentence.
	Title string
	// Made is when the run began; Took is how long it was.
	Made time.Time
	Took time.Duration
	// Machine says where: "2 cores, no KVM".
	Machine string
	// Samples and Bands are by one clock.
	Samples []browse.Sample
	Bands   []Band
	// Boots are what a laptop saw that was switched on where the ISP acts already.
	Boots []Boot
	Acts  []Act
	// Checks are shown as bars if they have a limit, else as a list.
	Checks []Check
	// Tiers, if set, is who reaches what, as it was measured.
	Tiers *matrix.Record
	// Floors, if set, is what a laptop reached in every condition of the network:
	// an SVG that stands alone.
	Floors template.HTML
	// Screens are what a person in front of the laptop saw.
	Screens []Screen
	// StandIns say what here is not the real thing.
	StandIns []StandIn
	// Untried is what remains to be tried on hardware.
	Untried []string
	// Commit is of this repository; Versions are of every program that took part.
	Commit   string
	Versions []Version
}

// Band is a time in which the ISP acted, or had stopped to.
type Band struct {
	From, To time.Time
	// Text is the act: "UDP and control server dropped".
	Text string
	// Result is what the client saw: "next answer after 0.27 s, over yggdrasil".
	Result string
	// Lifted says that the ISP lets everything pass again: a mark without grey.
	Lifted bool
}

// Boot is one start of the laptop. It has a clock of its own: the first band
// begins where it was switched on.
type Boot struct {
	Samples []browse.Sample
	Bands   []Band
	Marks   []Mark
}

// Mark is a moment: "login prompt".
type Mark struct {
	At   time.Time
	Text string
}

// Act is one step of the run.
type Act struct {
	// Name is one word, Text what came of it.
	Name, Text string
	Took       time.Duration
	Status     Status
}

// Screen is the output of a command at some moment, or a picture.
type Screen struct {
	// When says the moment: "UDP + control server dropped".
	When          string
	Command, Text string
	// PNG is shown instead of Text, if there is one.
	PNG []byte
}

// Source is the picture as the page carries it.
func (s Screen) Source() template.URL {
	return template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(s.PNG))
}

// StandIn is a part that takes the place of another one.
type StandIn struct{ Part, For, Why string }

// Version is of one program.
type Version struct{ Name, Version string }

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"duration": Duration,
	"number":   Number,
	"sign":     sign,
	"word":     word,
	"percent":  func(f float64) template.CSS { return template.CSS(fmt.Sprintf("%.1f%%", 100*f)) },
	"inc":      func(i int) int { return i + 1 },
}).Parse(pageText))

// sign is a status for who does not see colour; word for who does not see.
func sign(s Status) string {
	return map[Status]string{Pass: "✓", Fail: "✕", Skip: "–"}[s]
}

func word(s Status) string {
	return map[Status]string{Pass: "held", Fail: "failed", Skip: "not tried"}[s]
}

// bar is a measured value beside its limit, as shares of the longer of the two.
type bar struct {
	Check
	ValueShare, LimitShare float64
	Text                   string
}

// start is a boot as it is drawn.
type start struct {
	Bands        []Band
	Wide, Narrow template.HTML
}

// Render makes the page: one file that needs no other.
func (p *Page) Render() ([]byte, error) {
	view := struct {
		*Page
		Wide, Narrow   template.HTML
		Good, Bad, Not int
		Lost, Missed   int
		Longest        time.Duration
		Starts         []start
		Said, Pictures []Screen
		Bars           []bar
		Plain          []Check
		Squares        template.HTML
		SquaresNarrow  template.HTML
	}{Page: p}
	for _, a := range p.Acts {
		view.Longest = max(view.Longest, a.Took)
		switch a.Status {
		case Pass:
			view.Good++
		case Fail:
			view.Bad++
		default:
			view.Not++
		}
	}
	for _, s := range p.Samples {
		if !s.OK {
			view.Lost++
		}
	}
	if len(p.Samples) > 0 {
		view.Wide, view.Narrow = drawTimeline(wide, p.Samples, p.Bands), drawTimeline(narrow, p.Samples, p.Bands)
	}
	for _, b := range p.Boots {
		view.Starts = append(view.Starts, start{
			b.Bands, drawTimeline(wideBoot, b.Samples, b.Bands, b.Marks...), drawTimeline(narrowBoot, b.Samples, b.Bands, b.Marks...),
		})
	}
	for _, c := range p.Screens {
		if c.PNG != nil {
			view.Pictures = append(view.Pictures, c)
		} else {
			view.Said = append(view.Said, c)
		}
	}
	if p.Tiers != nil {
		var wide, narrow strings.Builder
		if err := errors.Join(p.Tiers.SVG(&wide, matrix.Wide), p.Tiers.SVG(&narrow, matrix.Narrow)); err != nil {
			return nil, fmt.Errorf("making the report page: %w", err)
		}
		// Inside HTML the namespace goes without saying.
		inline := func(svg string) template.HTML {
			return template.HTML(strings.Replace(svg, ` xmlns="http://www.w3.org/2000/svg"`, "", 1))
		}
		view.Squares, view.SquaresNarrow = inline(wide.String()), inline(narrow.String())
	}
	for _, c := range p.Checks {
		if c.Status == Fail {
			view.Missed++
		}
		if c.Value == nil || c.Limit == nil {
			view.Plain = append(view.Plain, c)
			continue
		}
		most := max(*c.Value, *c.Limit, 1e-9)
		b := bar{Check: c, ValueShare: *c.Value / most, LimitShare: *c.Limit / most}
		rel := "at most"
		if c.AtLeast {
			rel = "at least"
		}
		b.Text = fmt.Sprintf("%s %s %s", rel, Number(*c.Limit), c.Unit)
		view.Bars = append(view.Bars, b)
	}
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, view); err != nil {
		return nil, fmt.Errorf("making the report page: %w", err)
	}
	return b.Bytes(), nil
}

// Write renders the page to the file at path.
func (p *Page) Write(path string) error {
	text, err := p.Render()
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("writing the report page: %w", err)
	}
	return nil
}

// ActShare is an act's duration as a share of the longest.
func (a Act) ActShare(longest time.Duration) float64 {
	if longest <= 0 {
		return 0
	}
	return float64(a.Took) / float64(longest)
}
