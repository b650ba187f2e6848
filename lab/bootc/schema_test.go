package bootc

import (
	"encoding/json"
	"strings"
	"testing"
)

// managed is what the stand-in prints on an installed machine.
const managed = `{"apiVersion":"org.containers.bootc/v1","kind":"BootcHost","metadata":{"name":"host"},
"spec":{"image":{"image":"ghcr.io/veilor/veilor-os:44","transport":"registry","signature":"containerPolicy"},"bootOrder":"default"},
"status":{"staged":null,"booted":{"image":{"image":{"image":"ghcr.io/veilor/veilor-os:44","transport":"registry","signature":"containerPolicy"},
"version":"44.lab.1","timestamp":"2026-01-01T00:00:00Z","imageDigest":"sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","architecture":"amd64"},
"cachedUpdate":null,"incompatible":false,"pinned":false,"store":"ostreeContainer",
"ostree":{"stateroot":"veilor","checksum":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb","deploySerial":0}},
"rollback":null,"rollbackQueued":false,"type":"bootcHost"}}`

const unmanaged = `{"apiVersion":"org.containers.bootc/v1","kind":"BootcHost","metadata":{"name":"host"},"spec":{"image":null,"bootOrder":"default"},"status":{"staged":null,"booted":null,"rollback":null,"rollbackQueued":false,"type":null}}`

func TestCheckStatus(t *testing.T) {
	for name, tc := range map[string]struct{ doc, old, new, want string }{
		"managed":          {doc: managed},
		"not managed":      {doc: unmanaged},
		"ostree remote":    {doc: managed, old: `"containerPolicy"},"bootOrder"`, new: `{"ostreeRemote":"x"}},"bootOrder"`},
		"new field":        {doc: managed, old: `"pinned":false`, new: `"pinned":false,"softRebootCapable":true`},
		"other API":        {doc: managed, old: `bootc/v1"`, new: `bootc/v2"`, want: "$.apiVersion"},
		"bad digest":       {doc: managed, old: `sha256:aa`, new: `sha256:a`, want: "$.status.booted.image.imageDigest"},
		"bad signature":    {doc: managed, old: `"containerPolicy"},"bootOrder"`, new: `"none"},"bootOrder"`, want: "$.spec.image"},
		"no rollback":      {doc: managed, old: `"rollback":null,`, new: ``, want: "has no rollback"},
		"serial as string": {doc: managed, old: `"deploySerial":0`, new: `"deploySerial":"0"`, want: "deploySerial"},
		"serial as 0.5":    {doc: managed, old: `"deploySerial":0`, new: `"deploySerial":0.5`, want: "deploySerial"},
		"not JSON":         {doc: "x", want: "reading the status"},
		"a list":           {doc: "[]", want: "$: is array"},
	} {
		t.Run(name, func(t *testing.T) {
			doc := strings.Replace(tc.doc, tc.old, tc.new, 1)
			if tc.old != "" && doc == tc.doc {
				t.Fatal("the case changes nothing")
			}
			err := CheckStatus([]byte(doc))
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one about %q", err, tc.want)
			}
		})
	}
}

func FuzzCheckStatus(f *testing.F) {
	f.Add([]byte(managed))
	f.Add([]byte(unmanaged))
	f.Fuzz(func(t *testing.T, doc []byte) {
		var host map[string]any
		if CheckStatus(doc) == nil && (json.Unmarshal(doc, &host) != nil || host["kind"] == nil || host["apiVersion"] == nil) {
			t.Errorf("%q is no status", doc)
		}
	})
}
