package yggdrasil

import (
	"bytes"
	"log/slog"
	"os"
	"strings"
	"testing"
)

func TestPreflight(t *testing.T) {
	err := preflight("lo")
	if err == nil || !strings.Contains(err.Error(), "making the interface lo") {
		t.Fatalf("%v, want an error that names the interface", err)
	}
	if _, e := os.Stat(tunDevice); e == nil && os.Geteuid() == 0 && !strings.Contains(err.Error(), "there is one already") {
		t.Errorf("%v, want it to say that the name is taken", err)
	}
}

func TestLogger(t *testing.T) {
	var out bytes.Buffer
	l := &logger{to: slog.New(slog.NewTextHandler(&out, nil))}
	l.Debugf("Link %s error: %s\n", "edge-1", "node public key that does not match pinned keys")
	l.Debugln("Unable to send packet: none of our business")
	if got := out.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "pinned keys") || strings.Contains(got, "Unable") {
		t.Errorf("logged %q", got)
	}
	out.Reset()
	l.stopping.Store(true)
	l.Errorln("Error reading TUN: file already closed")
	if out.Len() != 0 {
		t.Errorf("logged while stopping: %q", out.String())
	}
}
