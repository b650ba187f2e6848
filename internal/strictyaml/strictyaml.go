// Package strictyaml reads the YAML files that people write for veilor (site,
// recipe, undo list) and says what is wrong with them in a form that a person
// can act on: file, line, path, and what to write.
//
// Strict means: an unknown key is an error, a key may stand once, and there are
// no tags, anchors or aliases. These files need none, and refusing them keeps
// the meaning of a line on that line.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Problem is one thing wrong with a file.
type Problem struct {
	File string
	Line int    // 1-based; 0 if unknown
	Path string // "services[0].host"; empty for the file as a whole
	Text string // what is wrong and what to write
}

func (p Problem) Error() string {
	at := p.File
	if p.Line > 0 {
		at += ":" + strconv.Itoa(p.Line)
	}
	if p.Path != "" {
		at += ": " + p.Path
	}
	return at + ": " + p.Text
}

// Document is a file that was read, kept to find the line of a path.
type Document struct {
	name string
	file *ast.File
}

// Decode reads data, called name in errors, into the struct that into points
// to. hint says where the known keys are listed; it ends the error for an
// unknown one. Every error is a [Problem].
func Decode(name string, data []byte, into any, hint string) (doc *Document, err error) {
	// The library panics on some malformed input (found by fuzzing); for the
	// person who wrote the file that is a file that cannot be read.
	defer func() {
		if r := recover(); r != nil {
			doc, err = nil, Problem{File: name, Text: fmt.Sprintf("not readable as YAML: %v", r)}
		}
	}()
	if len(data) > MaxSize {
		return nil, Problem{File: name, Text: fmt.Sprintf("%d bytes; such a file has at most %d", len(data), MaxSize)}
	}
	tokens := lexer.Tokenize(string(data))
	if line := tooDeep(tokens); line > 0 {
		return nil, Problem{File: name, Line: line, Text: fmt.Sprintf("more than %d brackets or dashes within each other; write it flatter", maxDepth)}
	}
	file, err := parser.Parse(tokens, 0)
	if err != nil {
		return nil, problem(name, err, hint)
	}
	if len(file.Docs) > 1 {
		return nil, Problem{File: name, Text: "more than one document; remove all but one between the --- lines"}
	}
	for _, d := range file.Docs {
		v := refuse{name: name}
		ast.Walk(&v, d)
		if v.problem != nil {
			return nil, *v.problem
		}
	}
	if err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(into); err != nil {
		return nil, problem(name, err, hint)
	}
	return &Document{name: name, file: file}, nil
}

const (
	// MaxSize bounds a file, in bytes. The longest that anybody wrote for veilor
	// has 5 KB, secureblue's longest recipe 12 KB.
	MaxSize = 64 << 10
	// maxDepth bounds how deep lists and mappings lie within each other. Ours have
	// four; the time and memory of the library grow with the square of it (60 s and
	// 6 GB for 64000 brackets, goccy/go-yaml 1.19).
	maxDepth = 64
	// maxColumn is the column at which a list's entry may begin. Each list within
	// another one begins further right.
	maxColumn = 2 * maxDepth
)

// tooDeep returns the line at which things lie deeper than maxDepth, 0 if none.
func tooDeep(tokens token.Tokens) int {
	depth := 0
	for _, t := range tokens {
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			depth++
		case token.SequenceEndType, token.MappingEndType:
			depth--
		}
		entry := t.Type == token.SequenceEntryType || t.Type == token.MappingKeyType
		if depth > maxDepth || entry && t.Position.Column > maxColumn {
			return t.Position.Line
		}
	}
	return 0
}

// refuse finds the first node of a kind that has no place in these files.
type refuse struct {
	name    string
	problem *Problem
}

func (r *refuse) Visit(n ast.Node) ast.Visitor {
	what := ""
	switch n.(type) {
	case *ast.TagNode:
		what = "a tag (!…)"
	case *ast.AnchorNode:
		what = "an anchor (&…)"
	case *ast.AliasNode:
		what = "an alias (*…); quote the text if it begins with *"
	case *ast.MergeKeyNode:
		what = "a merge key (<<)"
	}
	if what != "" && r.problem == nil {
		r.problem = &Problem{File: r.name, Text: what + " is not allowed here; write the value itself"}
		if t := n.GetToken(); t != nil && t.Position != nil {
			r.problem.Line = t.Position.Line
		}
	}
	if r.problem != nil {
		return nil
	}
	return r
}

// problem turns the library's error into ours.
func problem(name string, err error, hint string) Problem {
	p := Problem{File: name}
	var ye yaml.Error
	if !errors.As(err, &ye) {
		p.Text = err.Error() // of the library's own it draws the whole file
	} else {
		p.Text = ye.GetMessage()
		if t := ye.GetToken(); t != nil && t.Position != nil {
			p.Line = t.Position.Line
		}
	}
	var te *yaml.TypeError
	if errors.As(err, &te) {
		p.Text = fmt.Sprintf("want %s, got %s", kind(te.DstType), kind(te.SrcType))
	}
	if strings.HasPrefix(p.Text, "unknown field") {
		p.Text += "; remove it, or " + hint
	}
	return p
}

// kind says in a person's words what a Go type is in YAML.
func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Int, reflect.Int64, reflect.Uint16, reflect.Uint64:
		return "a whole number"
	case reflect.Float64:
		return "a fraction"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	}
	return t.String()
}

// Problem makes an error for path, with the line of path or of its nearest
// parent that stands in the file.
func (d *Document) Problem(path, format string, args ...any) Problem {
	return Problem{File: d.name, Line: d.Line(path), Path: path, Text: fmt.Sprintf(format, args...)}
}

// Line is where path, or its nearest parent, stands; 0 if neither does.
func (d *Document) Line(path string) int {
	for path != "" {
		if p, err := yaml.PathString("$." + path); err == nil {
			if n, err := p.FilterFile(d.file); err == nil && n != nil && n.GetToken() != nil {
				return n.GetToken().Position.Line
			}
		}
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
	}
	return 0
}
