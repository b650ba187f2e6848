package act

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/veilor/veilor-os/lab/browse"
	"github.com/veilor/veilor-os/lab/censor"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/vm"
	"github.com/veilor/veilor-os/lab/world"
)

const (
	// coldBeat is the time between two requests of a machine that is booting:
	// seldom, since they take from the boot what it needs itself.
	coldBeat = 500 * time.Millisecond

	// coldLimit is how long after the login prompt the page may be missing: a
	// person needs as long to type a password and to open a browser.
	coldLimit = 20 * time.Second

	// coldWait ends the waiting for an answer after the login prompt.
	coldWait = 2 * time.Minute

	// liarPort is the lying resolver's, on the ISP's router.
	liarPort = 5354

	// strangerName is known to the honest resolver, and nowhere pinned.
	strangerName = "peer.lab.test"

	coldUnit = "/etc/systemd/system/lab-cold.service"
)

// coldClient is a unit that asks for the page from the moment that the system is
// up, before anybody logs in.
const coldClient = `[Unit]
Description=The lab's client, from the first moment
# The disk that it is on may be found late.
StartLimitIntervalSec=0
[Service]
ExecStartPre=mkdir -p %[1]s
ExecStartPre=-mount -o ro LABEL=%[2]s %[1]s
ExecStart=%[1]s/browser --url https://%[3]s/ --every %[4]v --out %[5]s
Restart=on-failure
RestartSec=1s
[Install]
WantedBy=multi-user.target
`

// cold is one boot of the joined laptop where the ISP acts already: no cache of a
// resolver and no connection is left from before.
type cold struct {
	id, title string
	// lies says that every DNS answer is one; blocked, that Tailscale is.
	lies, blocked bool
	// lifted is what is said when Tailscale is let through in the end.
	lifted string
}

// colds are the boots. A short run has one for all: first only the fallback can
// work; then Tailscale is let through, and has to find its control server with a
// resolver that has lied since the machine was switched on.
func (s *Stage) colds() []cold {
	if s.Short {
		return []cold{{id: "cold.both", title: "DNS lies, Tailscale dropped", lies: true, blocked: true, lifted: "Tailscale let through, DNS still lies"}}
	}
	return []cold{
		{id: "cold.dns", title: "every DNS answer a lie", lies: true},
		{id: "cold.tailscale", title: "UDP + control server dropped", blocked: true, lifted: "Tailscale let through"},
	}
}

var (
	lyingResolver    = censor.Resolver("lies", liarPort)
	tailscaleBlocked = []censor.Rule{censor.Beyond(censor.UDP()), censor.Host("control", world.Control)}
)

func (c cold) rules() []censor.Rule {
	var all []censor.Rule
	if c.lies {
		all = append(all, lyingResolver)
	}
	if c.blocked {
		all = append(all, tailscaleBlocked...)
	}
	return all
}

// bootCold switches the laptop off, and on again while the ISP acts.
func (s *Stage) bootCold(ctx context.Context, a *console.Act) (string, error) {
	liar, err := s.world.Lie(liarPort)
	if err != nil {
		return "", err
	}
	defer liar.Close()
	unit := fmt.Sprintf(coldClient, dataMount, vm.DataLabel, s.site.Services[0].Name, coldBeat, vm.EventsPort)
	if _, err := s.machine.Must(ctx, "systemctl stop lab-browser; cat >"+coldUnit+" <<'UNIT'\n"+unit+"UNIT\nsystemctl enable "+coldUnit+" 2>&1"); err != nil {
		return "", err
	}
	for _, c := range s.colds() {
		if err := s.bootOnce(ctx, a, c); err != nil {
			return "", err
		}
	}
	return "", s.world.Healthy()
}

// bootOnce is one boot, until everything that can work does.
func (s *Stage) bootOnce(ctx context.Context, a *console.Act, c cold) error {
	step := func(what string) { a.Step("%s: %s", c.title, what) }
	step("switching the laptop off")
	if err := s.machine.Poweroff(ctx); err != nil {
		return err
	}
	if err := s.world.Censor.Block(c.rules()...); err != nil {
		return err
	}
	defer s.world.Censor.Clear()
	on := time.Now()
	if err := s.switchOn(ctx, true); err != nil {
		return err
	}
	asks := s.listen()
	shown := report.Boot{Bands: []report.Band{{From: on, Text: c.title}}}
	defer func() {
		shown.Samples, _ = asks.all()
		shown.Bands[len(shown.Bands)-1].To = time.Now()
		s.page.Boots = append(s.page.Boots, shown)
	}()
	mark := func(what string) time.Time {
		now := time.Now()
		shown.Marks = append(shown.Marks, report.Mark{At: now, Text: what})
		return now
	}

	step("switched on, waiting for the disk's passphrase prompt")
	if err := s.machine.Unlock(ctx, diskPassphrase); err != nil {
		return err
	}
	mark("passphrase")
	step("passphrase typed, waiting for the login prompt")
	if err := s.machine.AwaitLogin(ctx); err != nil {
		return err
	}
	login := mark("login prompt")
	step("waiting for the page")
	var page time.Time
	var layer string
	if err := asks.until(ctx, coldWait, c.title+": the page", func(all []browse.Sample) (ok bool) {
		page, layer, ok = firstPage(all, on)
		return ok
	}); err != nil {
		return err
	}
	text := fmt.Sprintf("login prompt after %.0f s, the page after %.0f s, over %s", login.Sub(on).Seconds(), page.Sub(on).Seconds(), layer)
	shown.Bands[0].Result = text
	s.say(a, c.title, text)
	if err := s.check(report.AtMost(c.id, c.title+" as it is switched on: login prompt to the page", max(0, page.Sub(login).Seconds()), coldLimit.Seconds(), "s").
		With("%s", text)); err != nil {
		return err
	}
	step("logging in")
	if err := s.machine.Login(ctx, "root", rootPassword); err != nil {
		return err
	}
	from := login
	if c.blocked {
		if layer != browse.Yggdrasil {
			return fmt.Errorf("%s: the page came over %s", c.title, layer)
		}
		if err := s.lookAround(ctx, c, browse.Yggdrasil); err != nil {
			return err
		}
		if _, err := s.world.Censor.Clear(ruleNames(tailscaleBlocked)...); err != nil {
			return err
		}
		from = time.Now()
		shown.Bands[0].To = from
		c.id, c.title, c.blocked = c.id+"-lifted", c.lifted, false
		shown.Bands = append(shown.Bands, report.Band{From: from, Text: c.title, Lifted: !c.lies})
	}
	step("waiting for the tailnet")
	var tailnet time.Time
	if err := asks.until(ctx, returnLimit, c.title+": the tailnet", func(all []browse.Sample) (ok bool) {
		tailnet, ok = browse.First(all, browse.Tailnet, on)
		return ok
	}); err != nil {
		return err
	}
	took := max(0, tailnet.Sub(from).Seconds())
	text = fmt.Sprintf("on the tailnet after %.1f s", took)
	if from == login {
		text = fmt.Sprintf("on the tailnet %.1f s after the login prompt", took)
	}
	last := &shown.Bands[len(shown.Bands)-1]
	last.Result = strings.TrimPrefix(last.Result+"; "+text, "; ")
	s.say(a, c.title, text)
	if err := s.check(report.AtMost(c.id+".tailnet", c.title+": time to the tailnet", took, returnLimit.Seconds(), "s")); err != nil {
		return err
	}
	if err := s.unitsHold(ctx, c.id+".units", c.title+": no unit has failed"); err != nil {
		return err
	}
	if err := s.lookAround(ctx, c, browse.Tailnet); err != nil {
		return err
	}
	return s.nobodyElse(ctx, c.id, c.title)
}

// firstPage is the first good answer since the machine was switched on.
func firstPage(all []browse.Sample, on time.Time) (at time.Time, layer string, ok bool) {
	for _, l := range []string{browse.Tailnet, browse.Yggdrasil} {
		if t, found := browse.First(all, l, on); found && (!ok || t.Before(at)) {
			at, layer, ok = t, l, true
		}
	}
	return at, layer, ok
}

// lookAround makes sure, from the machine, that the ISP does what is said of it,
// and that the machine says what is so.
func (s *Stage) lookAround(ctx context.Context, c cold, layer string) error {
	if c.lies {
		// The resolver's word counts for strangers, not for who is pinned.
		got, err := s.machine.Must(ctx, "getent ahostsv4 "+strangerName+"; getent ahostsv4 "+s.site.ControlHost())
		if err != nil {
			return err
		}
		if !strings.Contains(got, world.Nobody.String()) || !strings.Contains(got, world.Control.String()) {
			return fmt.Errorf("%s: %s should have a false address and %s its true one: %s", c.title, strangerName, s.site.ControlHost(), got)
		}
		if err := s.world.Censor.Hit(lyingResolver.Name); err != nil {
			return err
		}
	}
	if c.blocked {
		// A datagram and a connection that must be dropped. Datagrams to the control
		// server meet the other rule first.
		try := fmt.Sprintf("echo >/dev/udp/%s/3478; ! timeout 2 bash -c '</dev/tcp/%s/443'", world.EdgeAddress, world.Control)
		if _, err := s.machine.Must(ctx, try); err != nil {
			return fmt.Errorf("%s: the control server answers: %w", c.title, err)
		}
		for _, r := range tailscaleBlocked {
			if err := s.world.Censor.Hit(r.Name); err != nil {
				return err
			}
		}
	}
	return s.namesLayer(ctx, c.id, layer, c.title)
}

func ruleNames(rules []censor.Rule) []string {
	var all []string
	for _, r := range rules {
		all = append(all, r.Name)
	}
	return all
}
