package act

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
	"github.com/veilor/veilor-os/lab/vm"
)

// guestTag is the tier of a new laptop.
const guestTag = "tag:guest"

// join mints a guest key as the operator would and gives it to the laptop.
func (s *Stage) join(ctx context.Context, a *console.Act) (string, error) {
	a.Step("the operator admits the laptop's Yggdrasil key at the edge")
	st, err := s.status(ctx)
	if err != nil {
		return "", err
	}
	if err := s.world.Edge.Admit(ctx, site.Key(st.Yggdrasil.Key)); err != nil {
		return "", err
	}
	if s.Mistakes {
		if err := s.joinWrongly(ctx, a); err != nil {
			return "", err
		}
	}
	a.Step("the operator mints a single-use guest key")
	key, err := s.world.Headscale.API.CreateKey(ctx, guestTag)
	if err != nil {
		return "", err
	}
	a.Step("veilor join")
	began := time.Now()
	r, err := s.tryKey(ctx, key.Secret)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("veilor join: exit code %d: %s", r.Code, r.Output)
	}
	took := time.Since(began)
	s.page.Screens = append(s.page.Screens, report.Screen{When: "with a guest's key", Command: "veilor join", Text: r.Output})
	if st, err = s.status(ctx); err != nil {
		return "", err
	}
	var wrong []error
	if !st.Mesh.Joined || !slices.Equal(st.Mesh.Tags, []string{guestTag}) {
		wrong = append(wrong, fmt.Errorf("veilor status: joined %v as %v", st.Mesh.Joined, st.Mesh.Tags))
	}
	spent, err := s.keySpent(ctx, key.ID)
	if err != nil {
		return "", err
	}
	if !spent {
		wrong = append(wrong, errors.New("the key could be used again"))
	}
	if err := s.check(report.Held("join.guest", "a single-use guest key joins one laptop as a guest", errors.Join(wrong...))); err != nil {
		return "", err
	}
	s.checks = append(s.checks, report.Fact("join.time", "veilor join", report.Seconds(took), "s"))
	return fmt.Sprintf("guest key minted, used, spent; %s on the tailnet, fallback peer %s", st.Mesh.Address, st.Yggdrasil.Peer), nil
}

// tryKey gives a key to `veilor join` by a here-document, as a paste: it is in no
// argument list. An emulated machine is ten times as slow as a real one.
func (s *Stage) tryKey(ctx context.Context, key string) (vm.Result, error) {
	return s.machine.Run(ctx, "veilor join --timeout 5m <<'KEY'\n"+key+"\nKEY")
}

// joinWrongly tries every key that must not work. Each has its own words, and
// leaves the laptop as it was.
func (s *Stage) joinWrongly(ctx context.Context, a *console.Act) error {
	api := s.world.Headscale.API
	expired, err := api.CreateKey(ctx, guestTag)
	if err != nil {
		return err
	}
	if err := api.ExpireKey(ctx, expired.ID); err != nil {
		return err
	}
	used, err := api.CreateKey(ctx, guestTag)
	if err != nil {
		return err
	}
	a.Step("joining, and leaving again")
	r, err := s.tryKey(ctx, used.Secret)
	if err == nil && r.Code == 0 {
		r, err = s.machine.Run(ctx, "veilor leave")
	}
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("joining and leaving: exit code %d: %s", r.Code, r.Output)
	}
	for _, m := range []struct{ id, title, key, want string }{
		{"empty", "an empty key is refused", "", "empty"},
		{"truncated", "a truncated key is refused", used.Secret[:40], "characters"},
		{"used", "a used key is refused", used.Secret, "used before"},
		{"expired", "an expired key is refused", expired.Secret, "expired"},
	} {
		a.Step("%s", m.title)
		r, err := s.tryKey(ctx, m.key)
		if err != nil {
			return err
		}
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		var wrong error
		switch {
		case r.Code != 1 || !strings.Contains(r.Output, m.want):
			wrong = fmt.Errorf("exit code %d: %s", r.Code, r.Output)
		case st.Mesh.Joined:
			wrong = errors.New("the laptop has joined")
		case m.key != "" && strings.Contains(r.Output, m.key):
			wrong = errors.New("the key is in the output")
		}
		if err := s.check(report.Held("join.key-"+m.id, m.title, wrong)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stage) keySpent(ctx context.Context, id string) (bool, error) {
	keys, err := s.world.Headscale.API.Keys(ctx)
	if err != nil {
		return false, err
	}
	for _, k := range keys {
		if k.ID == id {
			return k.Used && !k.Reusable, nil
		}
	}
	return false, fmt.Errorf("Headscale does not list pre-auth key %s", id)
}
