package check

import (
	"context"
	"errors"
	"strings"

	"github.com/veilor/veilor-os/internal/recipe"
)

var lockRules = []Rule{
	{
		ID:     "base-pinned",
		What:   "the base image is pinned by digest",
		Why:    "whoever can move the base's tag puts anything under us, and nobody can say what an older image was built on",
		Source: "SLSA v1.0, dependencies; decision 12 (docs/DECISIONS.md)",
		Fix:    "write the lock with: veilor-forge image lock",
		Pending: "the base's registry alone knows the digest; `veilor-forge image lock` asks it and writes " + recipe.LockPath +
			", and the workflow base proposes a newer one every day",
		check: func(_ context.Context, s *Subject) error {
			if _, err := recipe.LoadLock(s.Source); errors.Is(err, recipe.ErrNoLock) {
				return err
			}
			return nil // base-lock says what is wrong with it
		},
	},
	{
		ID:     "base-lock",
		What:   "recipe, site and the lock of the base name the same base",
		Why:    "GitHub would build on the image of another release, or on none",
		Source: recipe.LockPath,
		Fix:    "write the lock anew with: veilor-forge image lock",
		check:  baseLock,
	},
}

func baseLock(_ context.Context, s *Subject) error {
	if err := s.need("recipe"); err != nil {
		return err
	}
	var p problems
	// Where the digest stood in two places they would differ after the first bump.
	if strings.Contains(s.Recipe.BaseImage+string(s.Recipe.ImageVersion), "@") {
		p.addf("%s: image-version %q has a digest; write the tag alone, the digest belongs into %s", recipePath, s.Recipe.ImageVersion, recipe.LockPath)
	}
	l, err := recipe.LoadLock(s.Source)
	switch {
	case errors.Is(err, recipe.ErrNoLock):
		p.add(skipf("there is no lock to compare"))
	case err != nil:
		p.add(err)
	default:
		p.add(l.Agree(s.Recipe, s.Site))
	}
	return p.err()
}
