package program

import (
	"debug/buildinfo"
	"fmt"
	"strings"
)

// others are the modules whose versions say what was measured.
var others = map[string]string{
	"tailscale.com":                             "tailscaled",
	"github.com/juanfont/headscale":             "Headscale",
	"github.com/yggdrasil-network/yggdrasil-go": "yggdrasil-go",
}

// Versions are those of the others' programs and of Go, as built into them. All
// records name them alike.
func Versions(p Set) (map[string]string, error) {
	found := map[string]string{}
	for _, file := range []string{p.Tailscaled, p.Headscale, p.Ygg} {
		info, err := buildinfo.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("reading the version of %s: %w", file, err)
		}
		found["Go"] = strings.TrimPrefix(info.GoVersion, "go")
		for _, m := range append(info.Deps, &info.Main) {
			if name := others[m.Path]; name != "" && (m.Path != "tailscale.com" || file == p.Tailscaled) {
				found[name] = strings.TrimPrefix(m.Version, "v")
			}
		}
	}
	return found, nil
}
