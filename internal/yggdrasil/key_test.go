package yggdrasil

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/yggdrasil-network/yggdrasil-go/src/config"
)

func TestEnsureKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	key, made, err := EnsureKey(path)
	if err != nil || !made {
		t.Fatalf("first start: made %v, %v", made, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	again, made, err := EnsureKey(path)
	if err != nil || made || !bytes.Equal(again, key) {
		t.Errorf("second start: made %v, %v, same key %v", made, err, bytes.Equal(again, key))
	}
	if _, err := MakeKey(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("making over it: %v, want ErrExist", err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	// The library reads the same file.
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var upstream config.NodeConfig
	if err := upstream.UnmarshalPEMPrivateKey(data); err != nil || !bytes.Equal(upstream.PrivateKey, key) {
		t.Errorf("the library does not read it: %v", err)
	}
}

// TestEnsureKeyTogether has ten first starts at once: one key, whole.
func TestEnsureKeyTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key.pem")
	keys := make([]string, 10)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			k, _, err := EnsureKey(path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = string(k)
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Fatal("two starts have different keys")
		}
	}
}

func TestBrokenKey(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := MakeKey(good); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "truncated": string(data[:60]), "twice": string(data) + string(data), "other": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
		"not DER": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "huge": strings.Repeat("x", maxKey+1),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, _, err := EnsureKey(path)
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want an error that names the file", name, err)
		}
		after, _ := os.ReadFile(path)
		if string(after) != text {
			t.Errorf("%s: the file was changed", name)
		}
		if len(text) > 100 && err != nil && strings.Contains(err.Error(), text[30:50]) {
			t.Errorf("%s: the error quotes the key", name)
		}
	}
}
