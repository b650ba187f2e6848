package matrix

import (
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
)

// view is a record as people look at it: machines of one class are one row and
// one column, but the service's host, which has a column of its own.
type view struct {
	*Record
	columns []string
	layers  []string
	blocks  []block
}

// block is the conditions under which everything was the same.
type block struct {
	texts []string
	rows  []row
}

type row struct {
	source string
	// squares are by layer, then by column; nil where nothing was tried.
	squares [][]*square
}

// square is the sum of some cells.
type square struct {
	open, leaked, shut []string
	refused            int
	silent             bool
}

func (r *Record) view() *view {
	v := &view{Record: r, layers: distinct(r.Cells, func(c Cell) (string, bool) { return c.Layer, true })}
	host := ""
	for _, c := range r.Cells {
		// Whom a guest may open something of is a service's host.
		if host == "" && c.Source.Class == "guest" && len(c.Open) > 0 {
			host = c.Destination.Name
		}
	}
	column := func(e End) string {
		if e.Name == host {
			return e.Name
		}
		return e.Class
	}
	v.columns = distinct(r.Cells, func(c Cell) (string, bool) { return column(c.Destination), true })
	// The host first, whatever was tried first.
	if i := slices.Index(v.columns, host); i > 0 {
		v.columns = slices.Insert(slices.Delete(v.columns, i, i+1), 0, host)
	}
	for _, c := range r.Conditions {
		b := block{texts: []string{c.Text}}
		for _, source := range distinct(r.Cells, func(x Cell) (string, bool) { return x.Source.Class, x.Condition == c.Name }) {
			w := row{source: source}
			for _, layer := range v.layers {
				line := make([]*square, len(v.columns))
				for _, x := range r.Cells {
					if x.Condition != c.Name || x.Layer != layer || x.Source.Class != source {
						continue
					}
					i := slices.Index(v.columns, column(x.Destination))
					if line[i] == nil {
						line[i] = &square{silent: true}
					}
					line[i].add(x)
				}
				w.squares = append(w.squares, line)
			}
			b.rows = append(b.rows, w)
		}
		if i := slices.IndexFunc(v.blocks, func(a block) bool { return reflect.DeepEqual(a.rows, b.rows) }); i >= 0 {
			v.blocks[i].texts = append(v.blocks[i].texts, c.Text)
			continue
		}
		v.blocks = append(v.blocks, b)
	}
	return v
}

func (q *square) add(c Cell) {
	q.open = merge(q.open, c.Open)
	q.leaked = merge(q.leaked, c.Leaked)
	q.shut = merge(q.shut, c.Shut)
	q.refused += c.Refused
	q.silent = q.silent && c.Silent
}

// merge adds ports, each once: "443/tcp over IPv6" is 443 as well.
func merge(to, more []string) []string {
	for _, m := range more {
		m, _, _ = strings.Cut(m, " over ")
		m = strings.TrimSuffix(m, "/tcp")
		if m == "icmp" {
			m = "ping"
		}
		if !slices.Contains(to, m) {
			to = append(to, m)
		}
	}
	return to
}

// words are the square in two short lines.
func (q *square) words() (what, count string) {
	tried := q.refused + len(q.leaked)
	open, shut := len(q.open), len(q.shut)
	switch {
	case len(q.leaked) > 0:
		return "leaks " + few(q.leaked), fmt.Sprintf("%d of %d", len(q.leaked), tried)
	case q.silent:
		return "silent", ""
	case shut > 0 && open > 0:
		return few(q.open), fmt.Sprintf("%d shut", shut)
	case shut > 0:
		return "shut", fmt.Sprintf("0 of %d", shut)
	case open > 0 && tried == 0:
		return "all", fmt.Sprintf("%d of %d", open, open)
	case open > 0:
		return few(q.open), fmt.Sprintf("0 of %d", tried)
	}
	return "", fmt.Sprintf("0 of %d", tried)
}

// few names two and counts the rest.
func few(all []string) string {
	const most = 2
	if len(all) <= most {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s, +%d", strings.Join(all[:most], ", "), len(all)-most)
}

// Summary is the whole in one sentence.
func (r *Record) Summary() string {
	refused, leaked := r.Refused()
	return fmt.Sprintf("%d of %d forbidden packets came through; with every door open %d of %d were seen", leaked, refused+leaked, r.Control.Seen, r.Control.Sent)
}

// Text writes the tables for a terminal.
func (r *Record) Text(w io.Writer) error {
	v := r.view()
	var out strings.Builder
	fmt.Fprintf(&out, "%s.\nMeasured %s at commit %s.\n", r.Summary(), r.Date.UTC().Format("2006-01-02 15:04 UTC"), r.Commit)
	for _, b := range v.blocks {
		fmt.Fprintf(&out, "\n%s\n", strings.Join(b.texts, "\n"))
		t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		for l, layer := range v.layers {
			fmt.Fprintf(t, "  %s\t%s\n", layer, strings.Join(v.columns, "\t"))
			for _, w := range b.rows {
				if !slices.ContainsFunc(w.squares[l], func(q *square) bool { return q != nil }) {
					continue
				}
				fmt.Fprintf(t, "  from %s", w.source)
				for _, q := range w.squares[l] {
					text := "."
					if q != nil {
						what, count := q.words()
						text = strings.Trim(what+"; "+count, "; ")
					}
					fmt.Fprintf(t, "\t%s", text)
				}
				fmt.Fprintln(t)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	out.WriteString("\n0 of N: so many forbidden packets were tried, and none came. all: everything asked is\nopen. shut: allowed, but not open on this layer. silent: the ISP has taken the layer\naway. A dot: not tried.\n")
	_, err := io.WriteString(w, out.String())
	return err
}
