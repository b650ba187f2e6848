package act

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/veilor/veilor-os/internal/site"
	"github.com/veilor/veilor-os/lab/console"
	"github.com/veilor/veilor-os/lab/report"
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
	a.Step("the operator mints a single-use guest key")
	key, err := s.world.Headscale.API.CreateKey(ctx, guestTag)
	if err != nil {
		return "", err
	}
	a.Step("veilor join")
	began := time.Now()
	// By a here-document, as a paste: it is in no argument list.
	out, err := s.machine.Must(ctx, "veilor join <<'KEY'\n"+key.Secret+"\nKEY")
	if err != nil {
		return "", err
	}
	took := time.Since(began)
	fmt.Fprintln(s.log, out)
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
