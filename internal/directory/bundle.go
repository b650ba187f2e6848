package directory

import (
	"bytes"
	"compress/zlib"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// bundleType is the PEM type of a directory with everything that proves it.
	bundleType = "VEILOR DIRECTORY"
	// MaxPacket bounds the text that Unpack reads, in bytes, and maxUnpacked what
	// it unpacks to. A real one has 4 KiB, unpacked 20 KiB.
	MaxPacket   = 512 << 10
	maxUnpacked = 1 << 20
	// MaxPacketFiles is one of everything, and many roots.
	MaxPacketFiles = 16 + maxRotations
)

// Pack is files as one PEM block, the form in which a directory is stored,
// mailed and put into an image.
func Pack(files Files) ([]byte, error) {
	texts := map[string]string{} // as text they pack to half of what bytes do
	for name, data := range files {
		if !utf8.Valid(data) {
			return nil, fmt.Errorf("packing: %w: %s is no text", ErrDamaged, name)
		}
		texts[name] = string(data)
	}
	return pack(bundleType, texts)
}

func pack(kind string, v any) ([]byte, error) {
	z, err := squeeze(v)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: z}), nil
}

func squeeze(v any) ([]byte, error) {
	data, err := json.Marshal(v) // with sorted keys: the same bytes for the same files
	if err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, zlib.BestCompression)
	if err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("packing: %w", err)
	}
	return b.Bytes(), nil
}

// Packet is what can be imported: a directory, or reserve edges.
type Packet struct {
	// Files are those of a directory, or nil.
	Files Files
	// Reserve is a signed list of reserve edges, or nil.
	Reserve *Envelope
}

// Unpack reads the PEM text of Pack, or the text of one or more QR codes as
// QR wrote it, in any order. Nothing in it is verified yet.
func Unpack(text []byte) (*Packet, error) {
	if len(text) > MaxPacket {
		return nil, fmt.Errorf("reading the directory: %w: %d bytes, at most %d are read", ErrTooLarge, len(text), MaxPacket)
	}
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, errors.New("reading the directory: there is nothing; give the file directory.pem, or the text of the QR codes, one a line")
	}
	if bytes.HasPrefix(text, []byte(qrPrefix)) {
		kind, z, err := joinQR(string(text))
		if err != nil {
			return nil, err
		}
		return unsqueeze(kind, z)
	}
	block, rest := pem.Decode(text)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 || (block.Type != bundleType && block.Type != reserveType) {
		return nil, fmt.Errorf("reading the directory: %w: it is neither a %s nor a %s in PEM, nor the text of a veilor QR code", ErrDamaged, bundleType, reserveType)
	}
	return unsqueeze(block.Type, block.Bytes)
}

func unsqueeze(kind string, z []byte) (*Packet, error) {
	r, err := zlib.NewReader(bytes.NewReader(z))
	if err != nil {
		return nil, fmt.Errorf("reading the directory: %w: %w", ErrDamaged, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxUnpacked+1))
	if err != nil {
		return nil, fmt.Errorf("reading the directory: %w: %w", ErrDamaged, err)
	}
	if len(data) > maxUnpacked {
		return nil, fmt.Errorf("reading the directory: %w: more than %d bytes unpacked", ErrTooLarge, maxUnpacked)
	}
	var p Packet
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if kind == reserveType {
		p.Reserve = new(Envelope)
		err = d.Decode(p.Reserve)
	} else {
		var texts map[string]string
		err = d.Decode(&texts)
		p.Files = Files{}
		for name, text := range texts {
			p.Files[name] = []byte(text)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the directory: %w: %w", ErrDamaged, err)
	}
	if len(p.Files) > MaxPacketFiles {
		return nil, fmt.Errorf("reading the directory: %w: %d files", ErrTooLarge, len(p.Files))
	}
	for name := range p.Files {
		if !knownFile(name) {
			return nil, fmt.Errorf("reading the directory: %w: a file %q does not belong there", ErrDamaged, name)
		}
	}
	return &p, nil
}

// The text of a QR code: VEILOR:KIND/PART/PARTS:BASE45. Only characters of QR's
// alphanumeric mode, in which base45 (RFC 9285) is as dense as bytes are and
// survives every scanner.
const (
	qrPrefix = "VEILOR:"
	// maxQRParts bounds how many codes a person scans in a row.
	maxQRParts = 12
	// qrText is how much text goes into one code: version 22 with the low level
	// of correction, which a phone shows and a laptop's camera reads (ISO/IEC
	// 18004 table 7: 1429 characters).
	qrText = 1400
)

// qrKinds are the letters for what a code holds.
var qrKinds = map[string]string{"D": bundleType, "R": reserveType}

// QR is the PEM text of Pack or of Reserve as the text of QR codes, one each.
func QR(packed []byte) ([]string, error) {
	block, _ := pem.Decode(packed)
	if block == nil {
		return nil, fmt.Errorf("making QR codes: %w: not PEM", ErrDamaged)
	}
	kind := ""
	for k, t := range qrKinds {
		if t == block.Type {
			kind = k
		}
	}
	if kind == "" {
		return nil, fmt.Errorf("making QR codes: a %s is nothing that veilor imports", block.Type)
	}
	text := base45(block.Bytes)
	parts := (len(text) + qrText - 1) / qrText
	if parts > maxQRParts {
		return nil, fmt.Errorf("making QR codes: %w: %d codes, and nobody scans more than %d; hand the file over instead", ErrTooLarge, parts, maxQRParts)
	}
	var codes []string
	for i := range parts {
		codes = append(codes, fmt.Sprintf("%s%s/%d/%d:%s", qrPrefix, kind, i+1, parts, text[i*qrText:min((i+1)*qrText, len(text))]))
	}
	return codes, nil
}

// joinQR puts the parts together.
func joinQR(text string) (kind string, data []byte, err error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("reading the QR codes: %w: "+format, append([]any{ErrDamaged}, args...)...)
	}
	var parts []string
	letter := ""
	for _, line := range strings.Split(text, "\n") {
		line = strings.Trim(line, "\r")
		if line == "" {
			continue
		}
		rest, ok := strings.CutPrefix(line, qrPrefix)
		head, body, ok2 := strings.Cut(rest, ":")
		f := strings.Split(head, "/")
		if !ok || !ok2 || len(f) != 3 || qrKinds[f[0]] == "" {
			return "", nil, bad("a line is not VEILOR:…/PART/PARTS:…")
		}
		part, err1 := strconv.Atoi(f[1])
		count, err2 := strconv.Atoi(f[2])
		if err1 != nil || err2 != nil || count < 1 || count > maxQRParts || part < 1 || part > count {
			return "", nil, bad("part %s of %s", f[1], f[2])
		}
		if parts == nil {
			parts, letter = make([]string, count), f[0]
		}
		if count != len(parts) || f[0] != letter {
			return "", nil, bad("the codes are not of one set")
		}
		if parts[part-1] != "" && parts[part-1] != body {
			return "", nil, bad("there are two different codes %d", part)
		}
		parts[part-1] = body
	}
	for i, p := range parts {
		if p == "" {
			return "", nil, fmt.Errorf("reading the QR codes: code %d of %d is missing; scan it as well", i+1, len(parts))
		}
	}
	data, err = unbase45(strings.Join(parts, ""))
	if err != nil {
		return "", nil, err
	}
	return qrKinds[letter], data, nil
}

// alphabet45 is RFC 9285's.
const alphabet45 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ $%*+-./:"

func base45(data []byte) string {
	var b strings.Builder
	for len(data) > 0 {
		n, digits := int(data[0]), 2
		if len(data) > 1 {
			n, digits = n<<8|int(data[1]), 3
		}
		for range digits {
			b.WriteByte(alphabet45[n%45])
			n /= 45
		}
		data = data[min(2, len(data)):]
	}
	return b.String()
}

func unbase45(text string) ([]byte, error) {
	bad := fmt.Errorf("reading the QR codes: %w: a character is wrong", ErrDamaged)
	var out []byte
	for len(text) > 0 {
		n := min(3, len(text))
		value, weight := 0, 1
		for i := range n {
			digit := strings.IndexByte(alphabet45, text[i])
			if digit < 0 {
				return nil, bad
			}
			value += digit * weight
			weight *= 45
		}
		switch {
		case n == 3 && value < 1<<16:
			out = append(out, byte(value>>8), byte(value))
		case n == 2 && value < 1<<8:
			out = append(out, byte(value))
		default:
			return nil, bad
		}
		text = text[n:]
	}
	return out, nil
}
