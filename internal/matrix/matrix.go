// Package matrix is who reaches what, as it was measured: the record that the
// lab writes of real packets over real networks, its table for a terminal, and
// its picture.
//
// What the site means is [tier.Policy.Matrix]. This is what was seen, and where
// the two differ: a port that let somebody in who should stay out, and one that
// did not open though it should.
package matrix

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// maxBytes bounds what Read takes: a record has a few dozen cells of some 200
// bytes.
const maxBytes = 1 << 20

// Record is one measurement. Its JSON form is stable: fields are added, never
// changed.
type Record struct {
	// Date is when it began, Commit what of.
	Date   time.Time `json:"date"`
	Commit string    `json:"commit"`
	// Versions of every program that took part, by name.
	Versions map[string]string `json:"versions"`
	// Conditions in the order in which they were made.
	Conditions []Condition `json:"conditions"`
	Cells      []Cell      `json:"cells"`
	Control    Control     `json:"control"`
}

// Condition is something that the ISP did meanwhile.
type Condition struct {
	// Name is short and stable: "no-edge".
	Name string `json:"name"`
	// Text says it to a person.
	Text string `json:"text"`
	// Layers are those that carried the guest to the service meanwhile.
	Layers []string `json:"layers,omitempty"`
}

// Cell is what one machine was seen to open of another one.
type Cell struct {
	Condition string `json:"condition"`
	// Layer is "tailnet" or "yggdrasil".
	Layer string `json:"layer"`
	// Source and Destination are machines, with the classes that they stand for.
	Source      End `json:"source"`
	Destination End `json:"destination"`
	// Open is what is open and should be: "443/tcp", "icmp".
	Open []string `json:"open"`
	// Refused counts what was tried, should be closed, and was.
	Refused int `json:"refused"`
	// Leaked is what should be closed and was open.
	Leaked []string `json:"leaked"`
	// Shut is what should be open and was not, though the layer worked.
	Shut []string `json:"shut"`
	// Silent says that the layer carried nothing of the source's at all, so that
	// what was refused proves nothing about the rules.
	Silent bool `json:"silent"`
}

// End is one end of a cell.
type End struct {
	// Name of the machine, and Class: its tier, or "stranger".
	Name  string `json:"name"`
	Class string `json:"class"`
}

// Control says how many of the refused packets were sent again with every door
// open, and how many of them were then seen where they go: all, or a refusal
// proves nothing. Impossible counts those that no door lets through, since the
// network or its daemons carry no such packet: a forged source, a link-local
// address.
type Control struct {
	Sent       int `json:"sent"`
	Seen       int `json:"seen"`
	Impossible int `json:"impossible"`
}

// Holds says whether nobody reached what is closed, and whether the control
// shows that it would have been seen. The error lists what is not so.
func (r *Record) Holds() error {
	var errs []error
	for _, c := range r.Cells {
		if len(c.Leaked) > 0 {
			errs = append(errs, fmt.Errorf("%s, %s: %s reaches %s of %s, which is closed to it", c.Condition, c.Layer, c.Source.Name, strings.Join(c.Leaked, ", "), c.Destination.Name))
		}
	}
	if r.Control.Seen != r.Control.Sent {
		errs = append(errs, fmt.Errorf("control: with every door open only %d of %d packets were seen, so the others prove nothing", r.Control.Seen, r.Control.Sent))
	}
	if r.Control.Sent == 0 {
		errs = append(errs, errors.New("control: there was none"))
	}
	return errors.Join(errs...)
}

// Refused is how many packets were refused, and how many leaked, over all cells.
// What was refused on a layer that was silent is not counted.
func (r *Record) Refused() (refused, leaked int) {
	for _, c := range r.Cells {
		leaked += len(c.Leaked)
		if !c.Silent {
			refused += c.Refused
		}
	}
	return refused, leaked
}

// Read reads a record, strictly.
func Read(in io.Reader) (*Record, error) {
	text, err := io.ReadAll(io.LimitReader(in, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading a matrix: %w", err)
	}
	if len(text) > maxBytes {
		return nil, fmt.Errorf("reading a matrix: it is larger than %d bytes", maxBytes)
	}
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	var r Record
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("reading a matrix: %w", err)
	}
	if d.More() {
		return nil, errors.New("reading a matrix: something follows it")
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("reading a matrix: %w", err)
	}
	return &r, nil
}

// check looks at what the table and the picture rely on.
func (r *Record) check() error {
	if len(r.Conditions) == 0 || len(r.Cells) == 0 {
		return errors.New("it has no conditions or no cells")
	}
	conditions := map[string]bool{}
	for i, c := range r.Conditions {
		if c.Name == "" || conditions[c.Name] {
			return fmt.Errorf("conditions[%d]: its name %q is empty or there twice", i, c.Name)
		}
		conditions[c.Name] = true
	}
	type key struct{ condition, layer, from, to string }
	seen := map[key]bool{}
	for i, c := range r.Cells {
		k := key{c.Condition, c.Layer, c.Source.Name, c.Destination.Name}
		switch {
		case !conditions[c.Condition]:
			return fmt.Errorf("cells[%d]: there is no condition %q", i, c.Condition)
		case c.Layer == "" || c.Source.Name == "" || c.Destination.Name == "":
			return fmt.Errorf("cells[%d]: layer, source or destination is missing", i)
		case c.Refused < 0:
			return fmt.Errorf("cells[%d]: %d refused", i, c.Refused)
		case seen[k]:
			return fmt.Errorf("cells[%d]: %s to %s on %s is there twice", i, k.from, k.to, k.layer)
		}
		seen[k] = true
	}
	return nil
}

// WriteTo writes the record as JSON.
func (r *Record) WriteTo(w io.Writer) (int64, error) {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return 0, fmt.Errorf("writing a matrix: %w", err)
	}
	n, err := w.Write(append(text, '\n'))
	return int64(n), err
}

// distinct lists what of finds, in the order of the cells.
func distinct[T comparable](cells []Cell, of func(Cell) (T, bool)) []T {
	var all []T
	for _, c := range cells {
		if v, ok := of(c); ok && !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}
