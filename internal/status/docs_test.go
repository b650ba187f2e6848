package status

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// docs is the page of the conditions, and docsHead what stands above the table.
const (
	docs     = "../../docs/conditions.md"
	docsHead = `# What veilor may say, and what to do

Every warning of ` + "`veilor`" + ` ends with a code in brackets. These are all of them; ` + "`veilor status --codes`" + `
prints the same without a network. Broken: something that is promised does not hold now. Warning: it holds,
and may soon not. Note: nothing is lost.

This page is written from the table in internal/status. Change that, then run
` + "`go test ./internal/status -update`" + `.

`
)

// The page says what the program says.
func TestDocs(t *testing.T) {
	page := bytes.NewBufferString(docsHead)
	if err := KindsMarkdown(page); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(docs, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(have), page.String()); d != "" {
		t.Errorf("docs/conditions.md is stale; renew it with: go test ./internal/status -update\n(-page +table)\n%s", d)
	}
}
