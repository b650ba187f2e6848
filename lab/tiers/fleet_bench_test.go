package tiers

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	_ "github.com/glebarez/go-sqlite" // Headscale's own driver

	"github.com/veilor/veilor-os/internal/acl"
	"github.com/veilor/veilor-os/internal/headscale"
)

// fleets are how many guests there are. 10^4 is far beyond one town.
var fleets = []int{10, 1000, 10_000}

// BenchmarkLoadPolicy is the time of putting the policy in force on a real
// server with so many nodes: asking, two writes, and reading back after each.
// The server's own memory is beside it. (Package acl has the time of compiling.)
func BenchmarkLoadPolicy(b *testing.B) {
	for _, guests := range fleets {
		b.Run(fmt.Sprintf("guests=%d", guests), func(b *testing.B) {
			c := newControl(b)
			cl := c.client(nil)
			town, err := NewTown(rand.New(rand.NewPCG(4, 6)), 2)
			if err != nil {
				b.Fatal(err)
			}
			d, err := acl.Compile(town.Fleet)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := cl.LoadPolicy(b.Context(), d); err != nil {
				b.Fatal(err)
			}
			c.join(cl, "tag:infra", "tag:infra", "tag:admin", "tag:family", "tag:guest")
			c.grow(guests)
			c.startAgain(cl)
			nodes, err := cl.Nodes(b.Context())
			if err != nil || len(nodes) != guests+5 {
				b.Fatalf("%d nodes, %v", len(nodes), err)
			}
			none := []byte(`{"tagOwners": {"tag:guest": [], "tag:infra": [], "tag:family": [], "tag:admin": []}, "acls": []}`)
			for b.Loop() {
				b.StopTimer() // so that there is something to change
				if err := cl.SetPolicy(b.Context(), none); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				l, err := cl.LoadPolicy(b.Context(), d)
				if err != nil || l.Step != headscale.Whole || l.Already {
					b.Fatalf("%+v, %v", l, err)
				}
			}
			b.ReportMetric(peakMemory(b, c.daemon.PID()), "server-MB")
		})
	}
}

// grow copies the last node, a guest's, until there are n more. Joining so many
// would take hours; the server reads them all when it starts.
func (c *control) grow(n int) {
	c.t.Helper()
	c.daemon.Stop()
	db, err := sql.Open("sqlite", filepath.Join(c.config.Dir, "db.sqlite"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer db.Close()
	_, err = db.Exec(`
		WITH RECURSIVE more(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM more WHERE i < ?)
		INSERT INTO nodes (machine_key, node_key, disco_key, endpoints, host_info, ipv4, ipv6, hostname, given_name,
			user_id, register_method, tags, auth_key_id, last_seen, expiry, approved_routes, created_at, updated_at)
		SELECT 'mkey:' || printf('%064x', i), 'nodekey:' || printf('%064x', i), 'discokey:' || printf('%064x', i), endpoints, host_info,
			'100.80.' || (i / 250) || '.' || (i % 250 + 1), 'fd7a:115c:a1e0::' || printf('%x:%x', i / 65536 + 16, i % 65536),
			'laptop-' || i, 'laptop-' || i,
			user_id, register_method, tags, auth_key_id, last_seen, expiry, approved_routes, created_at, updated_at
		FROM more, nodes WHERE id = (SELECT max(id) FROM nodes)`, n)
	if err != nil {
		c.t.Fatal(err)
	}
}

// peakMemory is the most that a process has had, in MB (proc_pid_status(5)).
func peakMemory(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "VmHWM:" {
			kB, err := strconv.ParseFloat(f[1], 64)
			if err != nil {
				b.Fatal(err)
			}
			return kB / 1024
		}
	}
	b.Fatal("no VmHWM")
	return 0
}
