package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/veilor/veilor-os/lab/browse"
)

func samples(t *testing.T, text []byte) []browse.Sample {
	t.Helper()
	var all []browse.Sample
	if err := browse.Read(bytes.NewReader(text), time.Now, func(s browse.Sample) { all = append(all, s) }); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestBrowser(t *testing.T) {
	var n, conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		switch n.Add(1) {
		case 2:
			http.Error(rw, "broken", http.StatusInternalServerError)
		case 3:
			time.Sleep(300 * time.Millisecond) // longer than the timeout
		default:
			fmt.Fprint(rw, `{"from":"200::5","path":"/"}`)
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "samples")
	o := options{url: srv.URL, out: file, every: 20 * time.Millisecond, timeout: 150 * time.Millisecond, length: 200 * time.Millisecond}
	if err := run(context.Background(), o, strings.NewReader(""), nil); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	good, bad := 0, 0
	for _, s := range samples(t, text) {
		if s.OK {
			good++
			if s.Layer != browse.Yggdrasil {
				t.Errorf("%+v", s)
			}
		} else {
			bad++
		}
	}
	if conns.Load() != n.Load() {
		t.Errorf("%d connections for %d requests", conns.Load(), n.Load())
	}
	if bad != 2 || good < 3 {
		t.Errorf("%d good, %d bad\n%s", good, bad, text)
	}
}

func TestBrowserStopsWithItsInput(t *testing.T) {
	var out bytes.Buffer
	o := options{url: "http://127.0.0.1:1/", every: time.Hour, timeout: time.Second, stdin: true}
	if err := run(context.Background(), o, strings.NewReader(""), &out); err != nil {
		t.Fatal(err)
	}
	if all := samples(t, out.Bytes()); len(all) != 1 || all[0].OK {
		t.Errorf("%s", out.Bytes())
	}
}
