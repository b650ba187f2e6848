package world

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestServiceHandler(t *testing.T) {
	h := serviceHandler("x.veilor")
	for name, c := range map[string]struct {
		method, path, accept string
		status               int
		has                  string
	}{
		"JSON":      {"GET", "/", "application/json", 200, `{"from":"192.0.2.1","path":"/"}`},
		"a path":    {"GET", "/a/b", "text/html", 200, `"path":"/a/b"`},
		"a page":    {"GET", "/", "text/html,*/*", 200, "<code>192.0.2.1</code>"},
		"bytes":     {"GET", "/bytes/5", "", 200, "\x00\x00\x00\x00\x00"},
		"no number": {"GET", "/bytes/x", "", 400, "write /bytes/N"},
		"negative":  {"GET", "/bytes/-1", "", 400, "write /bytes/N"},
		"too many":  {"GET", "/bytes/99999999999", "", 400, "write /bytes/N"},
		"a write":   {"POST", "/", "", 405, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(c.method, c.path, nil)
			r.Header.Set("Accept", c.accept)
			rw := httptest.NewRecorder()
			h.ServeHTTP(rw, r)
			body, _ := io.ReadAll(rw.Result().Body)
			if rw.Code != c.status || !strings.Contains(string(body), c.has) {
				t.Errorf("%d %q", rw.Code, body)
			}
			if rw.Code == http.StatusOK && c.path == "/bytes/5" && len(body) != 5 {
				t.Errorf("%d bytes", len(body))
			}
		})
	}
}
