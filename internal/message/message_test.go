package message

import (
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
)

var verb = regexp.MustCompile(`%[-+# 0]*[0-9.]*(\[\d+\])?[a-zA-Z%]`)

// The catalogue is checked whole: what a translator can get wrong is found here,
// not by a person whose laptop is in trouble.
func TestCatalogue(t *testing.T) {
	command := regexp.MustCompile("`[^`]+`|run0 [a-z0-9 -]*[a-z0-9]|https?://\\S+|\\[[a-z-]+\\]|--[a-z-]+")
	seen := map[string]bool{}
	for _, text := range Catalogue() {
		if seen[text.English] {
			t.Errorf("%q is there twice", text.English)
		}
		seen[text.English] = true
		forms := map[string]string{"Russian": text.Russian}
		if text.One != "" {
			forms["One"], forms["RussianOne"], forms["RussianFew"] = text.One, text.RussianOne, text.RussianFew
			if !strings.HasPrefix(text.English, "%d") {
				t.Errorf("%q counts, and does not begin with the number", text.English)
			}
		}
		for name, form := range forms {
			if d := cmp.Diff(verb.FindAllString(text.English, -1), verb.FindAllString(form, -1)); d != "" {
				t.Errorf("%q: its %s form has other verbs (-English +other):\n%s", text.English, name, d)
			}
			// What can be pasted is the same in every language.
			if d := cmp.Diff(command.FindAllString(text.English, -1), command.FindAllString(form, -1)); d != "" {
				t.Errorf("%q: its %s form has other commands (-English +other):\n%s", text.English, name, d)
			}
			ends := func(s string) (begin, end bool) {
				return strings.HasPrefix(s, " ") || strings.HasPrefix(s, "\n"), strings.HasSuffix(s, " ")
			}
			b1, e1 := ends(text.English)
			if b2, e2 := ends(form); b1 != b2 || e1 != e2 {
				t.Errorf("%q: its %s form begins or ends otherwise: %q", text.English, name, form)
			}
			if strings.HasSuffix(text.English, ".") != strings.HasSuffix(form, ".") && !strings.HasSuffix(form, "дн.") {
				t.Errorf("%q: its %s form has another full stop: %q", text.English, name, form)
			}
		}
		if !strings.ContainsFunc(text.Russian, func(r rune) bool { return unicode.Is(unicode.Cyrillic, r) }) {
			t.Errorf("%q is not translated: %q", text.English, text.Russian)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	for _, c := range []struct {
		all, messages, lang string
		want                Language
	}{
		{"", "", "", English},
		{"", "", "ru_RU.UTF-8", Russian},
		{"", "", "ru_RU.utf8", Russian},
		{"", "", "ru", Russian},
		{"", "", "ru_UA.UTF-8@variant", Russian},
		{"", "", "ru_RU.KOI8-R", English}, // veilor writes UTF-8
		{"", "", "rue_UA.UTF-8", English}, // Rusyn is another language
		{"", "en_US.UTF-8", "ru_RU.UTF-8", English},
		{"ru_RU.UTF-8", "en_US.UTF-8", "C", Russian},
		{"C.UTF-8", "", "ru_RU.UTF-8", English},
		{"", "", "POSIX", English},
	} {
		env := map[string]string{"LC_ALL": c.all, "LC_MESSAGES": c.messages, "LANG": c.lang}
		if got := FromEnvironment(func(k string) string { return env[k] }); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestSay(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{Language("").Say("not joined"), "not joined"},
		{Russian.Say("not joined"), "не подключён"},
		{Russian.Say("100 % of nothing"), "100 % of nothing"}, // not in the catalogue
		{Russian.Say("via %s", "edge-2"), "через edge-2"},
		{English.Count(1, "%d connections were refused because too many are open, the last at %s", "10:42"), "1 connection was refused because too many are open, at 10:42"},
		{English.Count(2, "%d connections were refused because too many are open, the last at %s", "10:42"), "2 connections were refused because too many are open, the last at 10:42"},
		{Russian.Count(21, "%d connections were refused because too many are open, the last at %s", "10:42"), "21 соединение отклонено: открыто слишком много, в 10:42"},
		{Russian.Count(11, "%d connections were refused because too many are open, the last at %s", "10:42"), "11 соединений отклонено: открыто слишком много, последнее в 10:42"},
		{Russian.Count(3, "%d connections were refused because too many are open, the last at %s", "10:42"), "3 соединения отклонены: открыто слишком много, последнее в 10:42"},
		{Russian.Count(13, "%d connections were refused because too many are open, the last at %s", "10:42"), "13 соединений отклонено: открыто слишком много, последнее в 10:42"},
		{Russian.Count(2, "%d of no catalogue"), "2 of no catalogue"},
	} {
		if c.got != c.want {
			t.Errorf("got  %s\nwant %s", c.got, c.want)
		}
	}
}

func FuzzFromEnvironment(f *testing.F) {
	for _, s := range []string{"ru_RU.UTF-8", "C", "", "ru@", "_", ".", "ru.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if l := FromEnvironment(func(string) string { return s }); l != English && l != Russian {
			t.Errorf("%q: %q", s, l)
		}
	})
}
