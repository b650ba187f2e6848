// Package report writes what a run has found: report.json, a list of checks
// that later stages extend, and report.html, one self-contained page to look at.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/google/renameio/v2"
)

// Status is the outcome of a check or an act.
type Status string

const (
	Pass Status = "pass"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Check is one thing that was looked at, as report.json has it. Fields are
// added over time, never renamed.
type Check struct {
	// ID is stable over versions: "failover.first-gap".
	ID string `json:"id"`
	// Title says it to a person, without the value.
	Title  string `json:"title"`
	Status Status `json:"status"`
	// Value and Limit are in Unit ("s", "ms", "MB", "ratio"); nil without a number.
	Value *float64 `json:"value"`
	Unit  string   `json:"unit"`
	Limit *float64 `json:"limit"`
	// AtLeast says that Limit is a floor and not a ceiling.
	AtLeast bool   `json:"at_least,omitempty"`
	Note    string `json:"note"`
}

// Held is a check without a number: err is nil, or says why it failed.
func Held(id, title string, err error) Check {
	c := Check{ID: id, Title: title, Status: Pass}
	if err != nil {
		c.Status, c.Note = Fail, err.Error()
	}
	return c
}

// AtMost is a measured value that must not be more than limit.
func AtMost(id, title string, value, limit float64, unit string) Check {
	return measured(id, title, value, limit, unit, false, value <= limit)
}

// AtLeast is a measured value that must not be less than limit.
func AtLeast(id, title string, value, limit float64, unit string) Check {
	return measured(id, title, value, limit, unit, true, value >= limit)
}

func measured(id, title string, value, limit float64, unit string, floor, ok bool) Check {
	c := Check{ID: id, Title: title, Status: Fail, Value: &value, Unit: unit, Limit: &limit, AtLeast: floor}
	if ok { // false for NaN
		c.Status = Pass
	}
	return c
}

// Fact is a value without a limit.
func Fact(id, title string, value float64, unit string) Check {
	return Check{ID: id, Title: title, Status: Pass, Value: &value, Unit: unit}
}

// Skipped is a check that was not made.
func Skipped(id, title, why string) Check {
	return Check{ID: id, Title: title, Status: Skip, Note: why}
}

// With returns the check with a note.
func (c Check) With(format string, args ...any) Check {
	c.Note = fmt.Sprintf(format, args...)
	return c
}

// Seconds is d as a value.
func Seconds(d time.Duration) float64 { return d.Seconds() }

// Append adds checks to the report.json at path, or starts it. A check whose ID
// is there already replaces that one in its place. The file is written whole.
func Append(path string, checks ...Check) error {
	all, err := Read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	at := map[string]int{}
	for i, c := range all {
		at[c.ID] = i
	}
	for _, c := range checks {
		if c.ID == "" || c.Status == "" {
			return fmt.Errorf("adding to %s: a check without id or status: %+v", path, c)
		}
		if i, ok := at[c.ID]; ok {
			all[i] = c
			continue
		}
		at[c.ID] = len(all)
		all = append(all, c)
	}
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("adding to %s: %w", path, err)
	}
	if err := renameio.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return fmt.Errorf("adding to %s: %w", path, err)
	}
	return nil
}

// Read reads a report.json.
func Read(path string) ([]Check, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the report: %w", err)
	}
	var all []Check
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, fmt.Errorf("reading the report %s: %w; remove it to start anew", path, err)
	}
	return all, nil
}

// Number writes v as a person reads it: three digits that matter.
func Number(v float64) string {
	switch a := max(v, -v); {
	case a >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return trim(strconv.FormatFloat(v, 'f', 1, 64))
	default:
		return trim(strconv.FormatFloat(v, 'f', 2, 64))
	}
}

// trim takes off ".0" and ".00", nothing else: 0.50 stays as measured.
func trim(s string) string {
	for _, tail := range []string{".00", ".0"} {
		if len(s) > len(tail) && s[len(s)-len(tail):] == tail {
			return s[:len(s)-len(tail)]
		}
	}
	return s
}

// Duration writes d as a person reads it: "0.27 s", "41 s", "3 min 12 s".
func Duration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return strconv.FormatFloat(d.Seconds(), 'f', 2, 64) + " s"
	case d < time.Minute:
		return strconv.FormatFloat(d.Seconds(), 'f', 1, 64) + " s"
	}
	d = d.Round(time.Second)
	return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
}
