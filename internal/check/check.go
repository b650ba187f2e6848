// Package check makes the strategy executable: a table of rules, each of which
// reads the recipe, the overlay, the site and, if there is one, the built image,
// and says what is wrong and how it is put right.
//
// A rule whose tool is missing is not checked, which is not the same as ok. A rule
// that cannot be kept yet says so, with the reason, for as long as it is broken.
package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Rule is one promise of the strategy.
type Rule struct {
	ID     string `json:"id"`
	What   string `json:"what"`   // what holds
	Why    string `json:"why"`    // what happens otherwise
	Source string `json:"source"` // where that is known from
	Fix    string `json:"fix"`    // what to do when it does not hold
	// Pending says why the rule cannot be kept yet. A rule that is kept needs
	// none.
	Pending string `json:"pending,omitempty"`

	check func(context.Context, *Subject) error
}

// Status is what came of a rule.
type Status string

const (
	OK         Status = "ok"
	Failed     Status = "failed"
	NotYet     Status = "not yet"     // broken, and known to be; see Rule.Pending
	NotChecked Status = "not checked" // a tool or an input is missing
)

// Result is a rule and what came of it.
type Result struct {
	Rule
	Status   Status   `json:"status"`
	Problems []string `json:"problems,omitempty"`
}

// Rules are all rules, in the order in which they are shown.
func Rules() []Rule {
	var all []Rule
	for _, group := range [][]Rule{recipeRules, lockRules, siteRules, downloadRules, accessRules, browserRules, meshRules, trustRules, unitRules, sessionRules, deviceRules, textRules} {
		all = append(all, group...)
	}
	return all
}

// skip is the error of a rule that could not be checked.
type skip struct{ why string }

func (s skip) Error() string { return s.why }

func skipf(format string, args ...any) error { return skip{fmt.Sprintf(format, args...)} }

// problems collects what is wrong.
type problems []error

func (p *problems) addf(format string, args ...any) { *p = append(*p, fmt.Errorf(format, args...)) }

func (p *problems) add(err error) {
	if err != nil {
		*p = append(*p, err)
	}
}

func (p problems) err() error { return errors.Join(p...) }

// Run checks all rules against s.
func Run(ctx context.Context, s *Subject) ([]Result, error) {
	var all []Result
	for _, r := range Rules() {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("checking %s: %w", r.ID, err)
		}
		all = append(all, r.run(ctx, s))
	}
	return all, nil
}

func (r Rule) run(ctx context.Context, s *Subject) Result {
	res := Result{Rule: r, Status: OK}
	var unchecked bool
	for _, err := range flatten(r.check(ctx, s)) {
		res.Problems = append(res.Problems, err.Error())
		switch {
		case errors.As(err, new(skip)):
			unchecked = true
		default:
			res.Status = Failed
		}
	}
	switch {
	case res.Status == Failed && r.Pending != "":
		res.Status = NotYet
	case res.Status == OK && unchecked:
		res.Status = NotChecked
	}
	return res
}

// flatten takes apart what errors.Join put together.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// Count tells how many results have each status.
func Count(all []Result) map[Status]int {
	n := map[Status]int{}
	for _, r := range all {
		n[r.Status]++
	}
	return n
}

// width of the longest status.
const width = len(NotChecked)

// Write shows the results to a person: one line for what holds, and for the rest
// the reason, what to do, and why it matters.
func Write(w io.Writer, all []Result) error {
	var b strings.Builder
	pad := strings.Repeat(" ", width+2)
	for _, r := range all {
		status := string(r.Status)
		if r.Status == Failed {
			status = "FAILED"
		}
		fmt.Fprintf(&b, "%-*s  %-20s %s\n", width, status, r.ID, r.What)
		for _, p := range r.Problems {
			fmt.Fprintf(&b, "%s- %s\n", pad, strings.ReplaceAll(p, "\n", "\n"+pad+"  "))
		}
		switch r.Status {
		case Failed:
			fmt.Fprintf(&b, "%swhy: %s (%s)\n%sfix: %s\n", pad, r.Why, r.Source, pad, r.Fix)
		case NotYet:
			fmt.Fprintf(&b, "%snot yet: %s\n", pad, r.Pending)
		}
	}
	n := Count(all)
	fmt.Fprintf(&b, "%d rules: %d ok, %d failed, %d not yet, %d not checked\n", len(all), n[OK], n[Failed], n[NotYet], n[NotChecked])
	_, err := io.WriteString(w, b.String())
	return err
}
