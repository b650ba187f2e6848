package headscale

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const secret = "hskey-api-abcdefghijkl-secret"

// answering is a client of a server that says the given things by path.
func answering(t *testing.T, replies map[string]string) *Client {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secret {
			http.Error(rw, "Unauthorized", http.StatusUnauthorized)
			return
		}
		reply, ok := replies[r.Method+" "+r.URL.Path]
		if !ok {
			rw.WriteHeader(http.StatusInternalServerError)
			fmt.Fprint(rw, `{"code":2,"message":"it went wrong"}`)
			return
		}
		io.WriteString(rw, reply)
	}))
	t.Cleanup(srv.Close)
	c := NewClient(srv.URL+"/", secret, srv.Client())
	c.Now = func() time.Time { return now }
	return c
}

func TestCreateKey(t *testing.T) {
	const path = "POST /api/v1/preauthkey"
	for name, c := range map[string]struct {
		reply string
		bad   string // in the error; empty if it must work
	}{
		"good":            {`{"preAuthKey":{"id":"3","key":"hskey-auth-a-b","expiration":"2026-11-24T12:00:00Z","aclTags":["tag:guest"]}}`, ""},
		"born expired":    {`{"preAuthKey":{"id":"3","key":"hskey-auth-a-b","expiration":"0001-01-01T00:00:00Z","aclTags":["tag:guest"]}}`, "expired"},
		"reusable":        {`{"preAuthKey":{"id":"3","key":"hskey-auth-a-b","reusable":true,"expiration":"2026-11-24T12:00:00Z","aclTags":["tag:guest"]}}`, "single-use"},
		"without its tag": {`{"preAuthKey":{"id":"3","key":"hskey-auth-a-b","expiration":"2026-11-24T12:00:00Z"}}`, "single-use"},
		"empty":           {`{}`, "has none"},
		"not JSON":        {`<html>`, "reading the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := answering(t, map[string]string{path: c.reply}).CreateKey(t.Context(), "tag:guest")
			switch {
			case c.bad == "" && (err != nil || k.Secret == ""):
				t.Error(k, err)
			case c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)):
				t.Errorf("%v does not say %q", err, c.bad)
			case strings.Contains(fmt.Sprint(k, err), "hskey"):
				t.Errorf("a secret is printed: %v %v", k, err)
			}
		})
	}
}

func TestExpireKeyLooksAgain(t *testing.T) {
	const expire, list = "POST /api/v1/preauthkey/expire", "GET /api/v1/preauthkey"
	for keys, works := range map[string]bool{
		`{"preAuthKeys":[{"id":"3","expiration":"2026-11-23T12:00:00Z"}]}`: true,
		`{"preAuthKeys":[{"id":"3","expiration":"2026-11-24T12:00:00Z"}]}`: false, // said yes and did nothing
		`{"preAuthKeys":[]}`: false, // said yes to nothing
	} {
		err := answering(t, map[string]string{expire: "{}", list: keys}).ExpireKey(t.Context(), "3")
		if (err == nil) != works {
			t.Errorf("%s: %v", keys, err)
		}
	}
}

func TestRefused(t *testing.T) {
	c := answering(t, nil)
	_, err := c.Nodes(t.Context())
	var r *Refused
	if !errors.As(err, &r) || r.Status != 500 || r.Message != "it went wrong" {
		t.Error(err)
	}
	c.bearer = "hskey-api-of-nobody"
	if _, err = c.Nodes(t.Context()); !errors.As(err, &r) || r.Status != http.StatusUnauthorized || strings.Contains(err.Error(), c.bearer) {
		t.Error(err)
	}
}
