// Package rules has the tests of `veilor-forge check` run where every program that
// its rules ask is there: in a Debian root of the lab. A developer's own machine
// must not get a firewall and a USB guard for a test, and without them some of the
// rules are not checked there.
package rules
