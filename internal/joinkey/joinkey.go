// Package joinkey reads the key with which a laptop joins: a pre-auth key as
// Headscale makes it. The whole key is a secret and never printed.
package joinkey

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/veilor/veilor-os/internal/advice"
)

const (
	// prefix begins every key since Headscale 0.28 (hscontrol/db/preauth_keys.go).
	prefix = "hskey-auth-"
	// idLen and secretLen are the fixed lengths of its two parts. Both are
	// base64url and may contain "-" themselves, so length alone tells them apart.
	idLen, secretLen = 12, 64
	// hexLen is a key of Headscale up to 0.27: 24 random bytes in hex.
	hexLen = 48
	// shown is how much of the id a masked key shows: enough to tell two keys
	// apart, and public anyway (Headscale lists ids).
	shown = 4
)

// Key is a well-formed pre-auth key. It prints masked everywhere; only Secret
// gives the text.
type Key struct{ text string }

// Parse reads a key. White space around it, as pasting leaves it, is ignored;
// inside it is an error.
func Parse(s string) (Key, error) {
	s = strings.TrimSpace(s)
	bad := func(format string, args ...any) (Key, error) {
		return Key{}, &advice.Error{
			Text: fmt.Sprintf(format, args...),
			Todo: "A key is one line: hskey-auth- and 77 more characters. Copy the whole of it, from the page that showed it.",
		}
	}
	rest, modern := strings.CutPrefix(s, prefix)
	switch {
	case s == "":
		return bad("the key is empty")
	case strings.ContainsAny(s, " \t\r\n\v\f"):
		return bad("the key has a space or a line break in the middle")
	case modern && len(rest) < idLen+1+secretLen:
		return bad("the key is cut short: %d of %d characters", len(s), len(prefix)+idLen+1+secretLen)
	case modern && len(rest) > idLen+1+secretLen:
		return bad("the key is too long: %d characters where %d belong", len(s), len(prefix)+idLen+1+secretLen)
	case modern && rest[idLen] != '-', modern && strings.Trim(rest, base64url) != "":
		return bad("the key is damaged: it has a character that does not belong there")
	case modern:
		return Key{s}, nil
	case strings.HasPrefix(s, "hskey-"):
		return bad("this is another kind of key, not one to join with")
	case len(s) == hexLen && strings.Trim(s, "0123456789abcdef") == "":
		return Key{s}, nil
	case strings.Trim(s, "0123456789abcdef") == "":
		return bad("the key is damaged or cut short: %d hex digits where %d belong", len(s), hexLen)
	}
	return bad("this is not a key")
}

const base64url = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// Secret is the key itself.
func (k Key) Secret() string { return k.text }

// String is the key with its secret hidden: "hskey-auth-3f9c…".
func (k Key) String() string {
	switch {
	case k.text == "":
		return "(no key)"
	case strings.HasPrefix(k.text, prefix):
		return k.text[:len(prefix)+shown] + "…"
	}
	return k.text[:shown] + "…" // of 24 random bytes
}

// GoString hides the secret from %#v.
func (k Key) GoString() string { return "joinkey.Key{" + k.String() + "}" }

// LogValue hides the secret from logs.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText hides the secret from JSON.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
