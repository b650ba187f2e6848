// Package reticulum compiles the tiers for Reticulum, the network of radios.
//
// There a flow is a link to a destination, and who opens it proves an identity;
// a destination takes a list of the identities whose requests it answers
// (RNS.Destination, ALLOW_LIST). veilor's destinations are named after the port
// that they stand for: veilor.tcp.443. Only TCP is carried.
package reticulum

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/veilor/veilor-os/internal/tier"
)

// App is the first part of the destinations' names.
const App = "veilor.tcp."

// hashLength is that of an identity's truncated hash, in hex digits.
const hashLength = 32

// AllowList says whose links one machine takes, by identity hash.
type AllowList struct {
	// Any are the identities that may open every port.
	Any []string
	// Ports are those that may open one.
	Ports map[uint16][]string
}

// Compile makes the list of machine self. Revoked machines are in none.
func Compile(f *tier.Fleet, self tier.Machine) AllowList {
	l := AllowList{Ports: map[uint16][]string{}}
	for _, r := range f.Policy().Rules() {
		if self.Revoked || !r.Target.Includes(self) {
			continue
		}
		for _, m := range f.Machines() {
			if m.Tier != r.Tier || m.Revoked || m.Reticulum == "" || m.Name == self.Name {
				continue
			}
			if r.Port == 0 {
				l.Any = append(l.Any, m.Reticulum)
			} else {
				l.Ports[r.Port] = append(l.Ports[r.Port], m.Reticulum)
			}
		}
	}
	sorted := func(s []string) []string {
		slices.Sort(s)
		return slices.Compact(s)
	}
	l.Any = sorted(l.Any)
	for port, ids := range l.Ports {
		l.Ports[port] = sorted(ids)
	}
	return l
}

// Allows says whether the machine takes a link of an identity to a port.
func (l AllowList) Allows(identity string, port uint16) bool {
	return slices.Contains(l.Any, identity) || slices.Contains(l.Ports[port], identity)
}

// WriteTo writes one line for each permission, "veilor.tcp.443 HASH", in order.
func (l AllowList) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	for _, id := range l.Any {
		fmt.Fprintf(&b, "%s* %s\n", App, id)
	}
	var ports []uint16
	for p := range l.Ports {
		ports = append(ports, p)
	}
	slices.Sort(ports)
	for _, p := range ports {
		for _, id := range l.Ports[p] {
			fmt.Fprintf(&b, "%s%d %s\n", App, p, id)
		}
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

// Read reads what WriteTo writes. A line that it does not understand is an
// error: half a list would be another policy.
func Read(r io.Reader) (AllowList, error) {
	l := AllowList{Ports: map[uint16][]string{}}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		fail := func(why string) (AllowList, error) {
			return AllowList{}, fmt.Errorf("reading the allow-list: line %d: %s; write for example %s443 and 32 hex digits", n, why, App)
		}
		name, id, _ := strings.Cut(s.Text(), " ")
		port, ok := strings.CutPrefix(name, App)
		if !ok {
			return fail(fmt.Sprintf("%q is no destination", name))
		}
		if _, err := hex.DecodeString(id); err != nil || len(id) != hashLength || strings.ToLower(id) != id {
			return fail(fmt.Sprintf("%q is no identity", id))
		}
		if port == "*" {
			l.Any = append(l.Any, id)
			continue
		}
		p, err := strconv.ParseUint(port, 10, 16)
		if err != nil || p == 0 || strconv.FormatUint(p, 10) != port {
			return fail(fmt.Sprintf("%q is no port", port))
		}
		l.Ports[uint16(p)] = append(l.Ports[uint16(p)], id)
	}
	if err := s.Err(); err != nil {
		return AllowList{}, errors.Join(errors.New("reading the allow-list"), err)
	}
	return l, nil
}
