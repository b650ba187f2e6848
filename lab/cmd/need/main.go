// Command need makes sure that this machine has what the lab needs: it installs
// the missing Debian packages if it may, and otherwise says in one line what is
// missing and the command that installs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"

	"github.com/veilor/veilor-os/lab/debian"
)

func main() {
	cache := flag.String("cache", "out/cache", "where the lab keeps what it builds; its disk is checked for space")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *cache); err != nil {
		fmt.Fprintln(os.Stderr, "veilor:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, cache string) error {
	err := debian.Check(ctx, cache)
	var missing *debian.MissingError
	if !errors.As(err, &missing) || len(missing.Packages) == 0 || os.Geteuid() != 0 {
		return err
	}
	fmt.Fprintln(os.Stderr, "veilor: installing Debian packages:", strings.Join(missing.Packages, " "))
	install := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing.Packages...)
	for _, args := range [][]string{{"update", "-qq"}, install} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w (tried: apt-get %s: %v: %s)", missing, args[0], err, lastLine(out))
		}
	}
	return debian.Check(ctx, cache)
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
