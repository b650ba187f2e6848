package forward

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// roleVar makes this program one end of many connections, in a process of its
// own: what the forwarder holds for them is then all that this one holds.
const roleVar = "VEILOR_FORWARD_ROLE"

func TestMain(m *testing.M) {
	role, where, _ := strings.Cut(os.Getenv(roleVar), " ")
	switch role {
	case "":
		os.Exit(m.Run())
	case "servers":
		os.Exit(beServers(where))
	case "clients":
		os.Exit(beClients(where))
	}
	fmt.Fprintln(os.Stderr, "there is no role", role)
	os.Exit(2)
}

// beServers echoes on an address until the end of stdin.
func beServers(where string) int {
	l, err := net.Listen("tcp", where)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("listening")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				// Not io.Copy: its pipes would count against the machine.
				one := make([]byte, 1)
				for {
					if _, err := c.Read(one); err != nil {
						return
					}
					if _, err := c.Write(one); err != nil {
						return
					}
				}
			}()
		}
	}()
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// beClients opens so many connections: "ADDRESS COUNT". It says so, and for each
// line on stdin asks something on each.
func beClients(where string) int {
	address, number, _ := strings.Cut(where, " ")
	count, _ := strconv.Atoi(number)
	conns := make([]net.Conn, count)
	ask := func(c net.Conn) error {
		one := []byte{'?'}
		if _, err := c.Write(one); err != nil {
			return err
		}
		_, err := io.ReadFull(c, one)
		return err
	}
	for i := range conns {
		c, err := net.Dial("tcp", address)
		if err == nil {
			conns[i] = c
			err = ask(c)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "connection %d: %v\n", i, err)
			return 1
		}
	}
	fmt.Println("open")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		const parts = 16 // at a time, as programs do, and not one after the other
		errs := make([]error, parts)
		var wg sync.WaitGroup
		for p := range parts {
			wg.Go(func() {
				for i := p; i < count && errs[p] == nil; i += parts {
					errs[p] = ask(conns[i])
				}
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		fmt.Println("asked")
	}
	return 0
}

// other is such a process.
type other struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func startOther(t testing.TB, role string) *other {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	o := &other{t, cmd, in, bufio.NewScanner(out)}
	t.Cleanup(o.stop)
	return o
}

// says waits for a line.
func (o *other) says(want string) {
	o.t.Helper()
	if !o.lines.Scan() || o.lines.Text() != want {
		o.t.Fatalf("%q was said, want %q", o.lines.Text(), want)
	}
}

func (o *other) stop() {
	o.in.Close()
	o.cmd.Wait()
}

// BenchmarkForwardConnections holds MaxConns connections, or as many as this
// process may have files for, and reports what one costs the forwarder when it is
// idle and when bytes have just moved on all of them. The kernel's own memory for
// a socket is not in it.
func BenchmarkForwardConnections(b *testing.B) {
	const each, others = 2, 100 // files
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	before := files
	if most := uint64(each*MaxConns + 2*sparePipes + others); files.Max < most {
		more := unix.Rlimit{Cur: most, Max: most} // which needs CAP_SYS_RESOURCE
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil {
			files = more
		}
	}
	files.Cur = files.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: before.Cur, Max: files.Max}) })
	allowed := min(MaxConns, (int(files.Max)-2*sparePipes-others)/each)
	for b.Loop() {
		port := freePort(b)
		servers := startOther(b, "servers "+netip.AddrPortFrom(tailnetAddr, port).String())
		servers.says("listening")
		r1, _ := routes()
		f, via := start(b, port, r1)
		empty, emptySet, none := inUse(), resident(b), descriptors(b)
		clients := startOther(b, fmt.Sprintf("clients %s %d", via, allowed))
		clients.says("open")
		fmt.Fprintln(clients.in, "ask")
		clients.says("asked")
		// Not collected before: this is what the garbage of a moment ago costs, too.
		set := resident(b)
		report := func(state string) {
			b.ReportMetric(float64(inUse()-empty)/float64(allowed), state+"-B/conn")
			b.ReportMetric(float64(descriptors(b)-none)/float64(allowed), state+"-files/conn")
		}
		report("active")
		b.ReportMetric(float64(set-emptySet)/1e6, "active-resident-MB")
		waitFor(b, func() bool { return timed(f) == 0 }, "the connections to be left alone")
		report("idle")
		b.ReportMetric(float64(resident(b)-emptySet)/1e6, "idle-resident-MB")
		b.ReportMetric(float64(f.services[0].status().Conns), "conns")
		b.ReportMetric(float64(allowed), "allowed-conns")
		b.ReportMetric(0, "ns/op") // which go test then leaves out
		clients.stop()
		servers.stop()
		waitFor(b, func() bool { return f.services[0].status().Conns == 0 }, "the connections to end")
	}
}

// timed is how many connections cost a timer.
func timed(f *Forwarder) (n int) {
	s := f.services[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, flows := range s.flows {
		for fl := range flows {
			fl.watch.mu.Lock()
			if fl.watch.armed {
				n++
			}
			fl.watch.mu.Unlock()
		}
	}
	return n
}

// inUse is what the program has in use, after what it does not is gone.
func inUse() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// resident is what this process has in memory now (proc_pid_statm(5)).
func resident(b *testing.B) int64 {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

func descriptors(b *testing.B) int {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		b.Fatal(err)
	}
	return len(files)
}
