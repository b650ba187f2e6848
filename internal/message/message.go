// Package message is what veilor says to the owner of a laptop, in the languages
// that it speaks: English, in which the code is written, and Russian.
//
// The English text is the key, so that a line of code can be read, and the
// catalogue has the other beside it; see [Catalogue]. Codes, commands, names and
// what --json answers are the same in every language. A text without a
// translation is said in English: never is nothing said.
package message

import (
	"fmt"
	"strings"
)

// Language is one of the languages. The zero value is English.
type Language string

const (
	English Language = "en"
	Russian Language = "ru"
)

// FromEnvironment is the language that a person has chosen for messages: the first
// of LC_ALL, LC_MESSAGES and LANG that is not empty decides (POSIX, "Environment
// Variables", 8.2). A language that veilor does not speak is English.
func FromEnvironment(getenv func(string) string) Language {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if value := getenv(name); value != "" {
			return parse(value)
		}
	}
	return English
}

// parse reads a locale's name: ru_RU.UTF-8, ru, C.UTF-8. A Russian locale of
// another character set gets English: veilor writes UTF-8.
func parse(locale string) Language {
	locale, _, _ = strings.Cut(locale, "@")
	name, charset, coded := strings.Cut(locale, ".")
	if coded && !strings.EqualFold(strings.ReplaceAll(charset, "-", ""), "utf8") {
		return English
	}
	if language, _, _ := strings.Cut(name, "_"); language == "ru" {
		return Russian
	}
	return English
}

// Say is the text of the catalogue that is called english, with args put into it as
// by [fmt.Sprintf]. Without args it is the text as it stands.
func (l Language) Say(english string, args ...any) string {
	text := english
	if l == Russian {
		if t, ok := byEnglish[english]; ok {
			text = t.Russian
		}
	}
	if len(args) == 0 {
		return text
	}
	return fmt.Sprintf(text, args...)
}

// Count is Say for a text about n things, which has a form for one of them and
// one for others in the catalogue; n is the first of args.
func (l Language) Count(n int, english string, args ...any) string {
	args = append([]any{n}, args...)
	t, ok := byEnglish[english]
	switch {
	case ok && l == Russian:
		return fmt.Sprintf(t.russianForm(n), args...)
	case ok && n == 1 && t.One != "":
		return fmt.Sprintf(t.One, args...)
	}
	return fmt.Sprintf(english, args...)
}

// russianForm picks by the CLDR's plural rules for whole numbers: one (1, 21, 101),
// few (2 to 4, 22), many.
func (t Text) russianForm(n int) string {
	n = max(n, -n)
	switch {
	case n%10 == 1 && n%100 != 11 && t.RussianOne != "":
		return t.RussianOne
	case n%10 >= 2 && n%10 <= 4 && (n%100 < 12 || n%100 > 14) && t.RussianFew != "":
		return t.RussianFew
	}
	return t.Russian
}

// Text is one entry of the catalogue.
type Text struct {
	English, Russian string
	// One is the English form for one thing; RussianOne is the form for 1, 21, …,
	// RussianFew for 2 to 4, 22 to 24, …. Empty where the text counts nothing.
	One, RussianOne, RussianFew string
}

var byEnglish = func() map[string]Text {
	m := make(map[string]Text, len(catalogue))
	for _, t := range catalogue {
		m[t.English] = t
	}
	return m
}()

// Has says whether the catalogue has a text.
func Has(english string) bool {
	_, ok := byEnglish[english]
	return ok
}

// Catalogue returns all texts.
func Catalogue() []Text { return append([]Text(nil), catalogue...) }
