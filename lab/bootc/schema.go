package bootc

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strings"
)

// HostSchema is the JSON schema of the status document, as far as veilor relies
// on it.
//
//go:embed host-v1.schema.json
var HostSchema []byte

// CheckStatus holds the output of `bootc status --format=json` against
// HostSchema. Errors say where in the document.
func CheckStatus(document []byte) error {
	var schema, value any
	if err := json.Unmarshal(HostSchema, &schema); err != nil {
		return fmt.Errorf("reading the schema: %w", err)
	}
	if err := json.Unmarshal(document, &value); err != nil {
		return fmt.Errorf("reading the status: %w", err)
	}
	root, ok := schema.(map[string]any)
	if !ok {
		return errors.New("reading the schema: it is no object")
	}
	return (&checker{root}).check(root, value, "$")
}

// checker knows the keywords that HostSchema uses; another one is an error, so
// that the schema cannot say what nobody checks.
type checker struct{ root map[string]any }

// notes are keywords that constrain nothing.
var notes = map[string]bool{"$schema": true, "$defs": true, "title": true, "description": true}

func (c *checker) check(schema map[string]any, value any, at string) error {
	for keyword, arg := range schema {
		if notes[keyword] {
			continue
		}
		if err := c.keyword(keyword, arg, value, at); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) keyword(keyword string, arg, value any, at string) error {
	object, isObject := value.(map[string]any)
	text, isText := value.(string)
	switch keyword {
	case "$ref":
		name, ok := strings.CutPrefix(fmt.Sprint(arg), "#/$defs/")
		defs, _ := c.root["$defs"].(map[string]any)
		def, found := defs[name].(map[string]any)
		if !ok || !found {
			return fmt.Errorf("%s: the schema refers to %v, which it does not have", at, arg)
		}
		return c.check(def, value, at)
	case "type":
		for _, t := range list(arg) {
			if kindOf(value, t == "integer") == t {
				return nil
			}
		}
		return fmt.Errorf("%s: is %s, want %v", at, kindOf(value, false), arg)
	case "const":
		if !reflect.DeepEqual(arg, value) {
			return fmt.Errorf("%s: is %v, want %v", at, value, arg)
		}
	case "enum":
		for _, a := range list(arg) {
			if reflect.DeepEqual(a, value) {
				return nil
			}
		}
		return fmt.Errorf("%s: is %v, want one of %v", at, value, arg)
	case "pattern":
		if !isText {
			return nil // JSON schema: only strings have patterns
		}
		re, err := regexp.Compile(fmt.Sprint(arg))
		if err != nil {
			return fmt.Errorf("%s: the schema's pattern: %w", at, err)
		}
		if !re.MatchString(text) {
			return fmt.Errorf("%s: %q does not match %s", at, text, re)
		}
	case "required":
		for _, name := range list(arg) {
			if _, there := object[fmt.Sprint(name)]; isObject && !there {
				return fmt.Errorf("%s: has no %v", at, name)
			}
		}
	case "properties":
		properties, _ := arg.(map[string]any)
		for name, sub := range properties {
			v, there := object[name]
			s, ok := sub.(map[string]any)
			if !there || !ok {
				continue
			}
			if err := c.check(s, v, at+"."+name); err != nil {
				return err
			}
		}
	case "items":
		items, _ := value.([]any)
		s, _ := arg.(map[string]any)
		for i, v := range items {
			if err := c.check(s, v, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case "oneOf":
		return c.oneOf(list(arg), value, at)
	default:
		return fmt.Errorf("%s: the schema says %q, which is not checked", at, keyword)
	}
	return nil
}

func (c *checker) oneOf(choices []any, value any, at string) error {
	fits := 0
	var why []error
	for _, choice := range choices {
		s, _ := choice.(map[string]any)
		if err := c.check(s, value, at); err != nil {
			why = append(why, err)
		} else {
			fits++
		}
	}
	if fits != 1 {
		return fmt.Errorf("%s: fits %d of %d forms: %w", at, fits, len(choices), errors.Join(why...))
	}
	return nil
}

func list(arg any) []any {
	if l, ok := arg.([]any); ok {
		return l
	}
	return []any{arg}
}

// kindOf is the JSON schema type of a value; a whole number is an integer if
// asked for one.
func kindOf(v any, integer bool) any {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case string:
		return "string"
	case float64:
		if integer && v == math.Trunc(v) {
			return "integer"
		}
		return "number"
	case []any:
		return "array"
	default:
		return "object"
	}
}
