package admission

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// MaxHello bounds a hello. Version 0.5 has 119 bytes; the format allows more
// fields, and 64 KiB of them, which nobody sends.
const MaxHello = 1 << 10

// The hello of yggdrasil-go v0.5.14, src/core/version.go: "meta", the length of
// the rest, fields of (type, length, value), an Ed25519 signature. All numbers
// are big-endian and of 16 bits.
const (
	helloMagic     = "meta"
	helloHead      = len(helloMagic) + 2
	helloPublicKey = 2
)

// ErrShort means that more bytes must come before a hello can be read.
var ErrShort = errors.New("the hello is not complete")

// HelloKey reads whose hello b begins with, and how long that hello is. It
// checks no signature; the library does, and its signature is the same every
// time, which is why a token comes before it.
func HelloKey(b []byte) (key ed25519.PublicKey, n int, err error) {
	if got := b[:min(len(b), len(helloMagic))]; string(got) != helloMagic[:len(got)] {
		return nil, 0, errors.New("reading the hello: it does not begin as Yggdrasil's does")
	}
	if len(b) < helloHead {
		return nil, 0, ErrShort
	}
	size := int(binary.BigEndian.Uint16(b[len(helloMagic):]))
	switch {
	case size < ed25519.SignatureSize:
		return nil, 0, fmt.Errorf("reading the hello: %d bytes have no room for a signature", size)
	case size > MaxHello-helloHead:
		return nil, 0, fmt.Errorf("reading the hello: %d bytes; it has at most %d", size, MaxHello-helloHead)
	case len(b) < helloHead+size:
		return nil, 0, ErrShort
	}
	n = helloHead + size
	for fields := b[helloHead : n-ed25519.SignatureSize]; len(fields) > 0; {
		if len(fields) < 4 {
			return nil, 0, errors.New("reading the hello: half a field")
		}
		what, length := binary.BigEndian.Uint16(fields), int(binary.BigEndian.Uint16(fields[2:]))
		if fields = fields[4:]; len(fields) < length {
			return nil, 0, errors.New("reading the hello: a field is longer than what is left")
		}
		if what == helloPublicKey {
			// The library takes the last one; two are no honest hello.
			if key != nil || length != ed25519.PublicKeySize {
				return nil, 0, errors.New("reading the hello: it has not one public key")
			}
			key = slices.Clone(fields[:length])
		}
		fields = fields[length:]
	}
	if key == nil {
		return nil, 0, errors.New("reading the hello: it has no public key")
	}
	return key, n, nil
}
