package message

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// speakers are the packages whose texts are in the catalogue.
var speakers = []string{"../status", "../../cmd/veilor"}

// Every text that is said must be in both languages, and nothing must be in the
// catalogue that nobody says: it would be kept up in vain.
func TestEveryTextThatIsSaid(t *testing.T) {
	said, literals := map[string]bool{}, map[string]bool{}
	files := token.NewFileSet()
	for _, dir := range speakers {
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(names) == 0 {
			t.Fatalf("no sources in %s: %v", dir, err)
		}
		for _, name := range names {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(files, name, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if text, err := strconv.Unquote(l.Value); err == nil {
						literals[text] = true
					}
				}
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				selector, ok := call.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				// end and took finish a line of `veilor join`.
				at := map[string]int{"say": 0, "Say": 0, "Count": 1, "end": 0, "took": 0}
				i, ok := at[selector.Sel.Name]
				if !ok || len(call.Args) <= i {
					return true
				}
				l, ok := call.Args[i].(*ast.BasicLit)
				if !ok || l.Kind != token.STRING {
					return true // what is in a variable stands somewhere as a literal
				}
				text, err := strconv.Unquote(l.Value)
				if err != nil {
					t.Fatal(err)
				}
				said[text] = true
				if !Has(text) {
					t.Errorf("%s: %q is in no other language; add it to catalogue.go", files.Position(l.Pos()), text)
				}
				return true
			})
		}
	}
	if len(said) < 40 {
		t.Errorf("only %d texts found; is the method still called say?", len(said))
	}
	for _, text := range Catalogue() {
		if !literals[text.English] {
			t.Errorf("nobody says %q; remove it from catalogue.go", text.English)
		}
	}
}
