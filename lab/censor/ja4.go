package censor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Fingerprint is what a censor can tell of a TLS client by its ClientHello.
type Fingerprint struct {
	// JA4 is the fingerprint by that name (FoxIO, technical details of JA4), for
	// TLS over TCP.
	JA4 string
	// Suites and Extensions are its sorted parts in hexadecimal, so that a person
	// sees where two differ.
	Suites, Extensions []string
}

// ErrNoHello says that bytes do not begin with a whole ClientHello.
var ErrNoHello = errors.New("these bytes do not begin with a whole TLS ClientHello")

// Identify reads the bytes that a client sends first.
func Identify(stream []byte) (Fingerprint, error) {
	h, r := parseHello(stream)
	if r != complete {
		return Fingerprint{}, ErrNoHello
	}
	suites, extensions := genuine(h.suites), genuine(h.extensions)
	name := "i"
	if h.serverName != "" {
		name = "d"
	}
	protocol := "00"
	if len(h.protocols) > 0 && len(h.protocols[0]) > 0 {
		p := h.protocols[0]
		protocol = p[:1] + p[len(p)-1:]
	}
	// Server name and ALPN are in the first part.
	hashed := slices.DeleteFunc(slices.Clone(extensions), func(id uint16) bool { return id == serverNameExtension || id == alpnExtension })
	f := Fingerprint{Suites: sorted(suites), Extensions: sorted(hashed)}
	text := strings.Join(f.Extensions, ",")
	if signatures := hexadecimal(genuine(h.signatures)); len(signatures) > 0 {
		text += "_" + strings.Join(signatures, ",")
	}
	f.JA4 = fmt.Sprintf("t%s%s%02d%02d%s_%s_%s", version(h.versions), name, min(len(suites), 99), min(len(extensions), 99), protocol,
		short(strings.Join(f.Suites, ",")), short(text))
	return f, nil
}

// genuine leaves out the values that are reserved so that servers learn to
// ignore what they do not know (RFC 8701).
func genuine(ids []uint16) []uint16 {
	return slices.DeleteFunc(slices.Clone(ids), func(id uint16) bool { return id&0x0f0f == 0x0a0a && id>>8 == id&0xff })
}

func version(supported []uint16) string {
	if versions := genuine(supported); len(versions) > 0 && slices.Max(versions) == 0x0304 {
		return "13"
	}
	return "12"
}

func hexadecimal(ids []uint16) []string {
	all := []string{}
	for _, id := range ids {
		all = append(all, fmt.Sprintf("%04x", id))
	}
	return all
}

func sorted(ids []uint16) []string {
	all := hexadecimal(ids)
	slices.Sort(all)
	return all
}

// short is the first 12 digits of a hash.
func short(text string) string {
	if text == "" {
		return strings.Repeat("0", 12)
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:6])
}
