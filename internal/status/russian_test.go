package status

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/veilor/veilor-os/internal/message"
)

func TestRussian(t *testing.T) {
	old := time.Local
	time.Local = time.UTC
	defer func() { time.Local = old }()
	for name, english := range cases {
		r := *english
		r.In(message.Russian)
		for i, c := range r.Conditions {
			if e := english.Conditions[i]; c.Code != e.Code || c.Text == e.Text || c.Todo == e.Todo {
				t.Errorf("%s: %s is said as in English: %q, %q", name, c.Code, c.Text, c.Todo)
			}
		}
		var text bytes.Buffer
		if err := r.Text(&text); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".ru.txt")
		if *update {
			if err := os.WriteFile(path, text.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), text.String()); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	for _, k := range Kinds() {
		if !message.Has(k.Todo) {
			t.Errorf("%s: what to do is in no other language: %q", k.Code, k.Todo)
		}
	}
}
