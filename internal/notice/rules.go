package notice

import "time"

// Rule says when a condition is worth a person's attention.
type Rule struct {
	Code string
	// Settle is how long it must hold before it is shown. What comes and goes
	// within it is never shown.
	Settle time.Duration
	// Again is the least time between two times that it is shown.
	Again time.Duration
	// New says that it counts only if it began while we watched: what was so
	// before is how somebody wants it, or is known.
	New bool
	// Unless are codes of conditions beside which it says nothing new.
	Unless []string
}

const (
	// restarts is longer than a daemon takes to start again (RestartSec in its
	// unit) and a laptop to find its network when it wakes.
	restarts = 30 * time.Second
	// rejoins is longer than tailscaled takes to say whether it is joined after a
	// start.
	rejoins = 2 * time.Minute
	// halfHour, workday and day are how often a person may be told the same: of
	// what is broken, of what wants something done, and of what can wait.
	halfHour = 30 * time.Minute
	workday  = 8 * time.Hour
	day      = 24 * time.Hour
)

// stopped are conditions that explain why nothing is reached.
var stopped = []string{"mesh-stopped", "not-joined", "tailnet-unknown"}

// Rules are the conditions that are shown, the worst first: where several wait,
// that is the order.
var Rules = []Rule{
	{Code: "mesh-stopped", Settle: restarts, Again: halfHour},
	{Code: "unreachable", Settle: restarts, Again: halfHour, Unless: stopped},
	{Code: "no-layer", Settle: restarts, Again: halfHour, Unless: stopped},
	// Somebody who installs has not joined yet, and knows it.
	{Code: "not-joined", Settle: rejoins, Again: day, New: true},
	// It may be an attack that goes on now.
	{Code: "wrong-name", Again: halfHour},
	{Code: "filters-missing", Settle: restarts, Again: workday},
	{Code: "crowded", Again: workday},
	{Code: "tailnet-off", Settle: restarts, Again: workday, Unless: stopped},
	{Code: "clock-behind", Settle: rejoins, Again: day},
	{Code: "fallback-rotten", Settle: halfHour, Again: day, Unless: stopped},
	{Code: "directory-lost", Settle: rejoins, Again: day},
	{Code: "directory-ignored", Settle: rejoins, Again: day},
	{Code: "directory-stale", Settle: rejoins, Again: day},
}

// Silent are the conditions that are never shown, and why. `veilor status` says
// them to whoever asks.
var Silent = map[string]string{
	"quiet":                    "somebody asked for it",
	"filters-restored":         "it was put right at once; what cannot be is shown",
	"tailnet-unknown":          "what follows from it is shown",
	"tailnet-blocked":          "the page stays open and nothing is to be done",
	"fallback-silent":          "nothing is to be done now; one that failed again and again is shown",
	"not-encrypted":            "only a new installation changes it",
	"encryption-unknown":       "it is for whoever looks into it",
	"signature-not-enforced":   "only root learns it, and a desktop is not root's",
	"not-an-image":             "somebody installed it so",
	"image-unknown":            "it is so for everybody but root",
	"image-unreadable":         "only root learns it, and a desktop is not root's",
	"directory-unsigned-image": "nothing is to be done",
	"directory-unsigned":       "the command that refuses says it",
	"directory-older":          "the command that refuses says it",
	"directory-expired":        "the command that refuses says it",
	"directory-oversized":      "the command that refuses says it",
	"directory-damaged":        "the command that refuses says it",
	"reserve-stranger":         "the command that refuses says it",
}

func ruleOf(code string) (rule Rule, rank int, ok bool) {
	for i, r := range Rules {
		if r.Code == code {
			return r, i, true
		}
	}
	return Rule{}, 0, false
}
