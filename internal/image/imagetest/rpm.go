package imagetest

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"errors"
	"os"
	"path"
	"path/filepath"

	_ "modernc.org/sqlite" // the driver that writes the database
)

// RPM is a package of a test's database.
type RPM struct {
	Name, Version string
	Files         []string // absolute
}

// RPMPath is where [Base] has its package database.
const RPMPath = "usr/share/rpm/rpmdb.sqlite"

// RPMDB is the content of an RPM database as rpm 4.16 and later write it.
func RPMDB(packages ...RPM) (content string, err error) {
	dir, err := os.MkdirTemp("", "rpmdb-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file := filepath.Join(dir, "rpmdb.sqlite")
	db, err := sql.Open("sqlite", file)
	if err != nil {
		return "", err
	}
	if _, err := db.Exec("CREATE TABLE Packages (hnum INTEGER PRIMARY KEY AUTOINCREMENT, blob BLOB NOT NULL)"); err != nil {
		return "", errors.Join(err, db.Close())
	}
	for _, p := range packages {
		if _, err := db.Exec("INSERT INTO Packages (blob) VALUES (?)", p.header()); err != nil {
			return "", errors.Join(err, db.Close())
		}
	}
	if err := db.Close(); err != nil {
		return "", err
	}
	data, err := os.ReadFile(file)
	return string(data), err
}

// header encodes p as rpm's database does: big-endian counts of entries and of
// bytes, the entries (tag, type, offset, count), the data.
func (p RPM) header() []byte {
	const (
		int32Type, stringType, stringsType = 4, 6, 8

		name, version, release, license, arch, dirIndexes, baseNames, dirNames = 1000, 1001, 1002, 1014, 1022, 1116, 1117, 1118
	)
	var entries, data bytes.Buffer
	add := func(tag, typ, count int, value []byte) {
		for _, n := range []int{tag, typ, data.Len(), count} {
			entries.Write(binary.BigEndian.AppendUint32(nil, uint32(n)))
		}
		data.Write(value)
	}
	// Numbers first: they stand at multiples of four.
	var indexes, bases, dirs []byte
	for i, f := range p.Files {
		indexes = binary.BigEndian.AppendUint32(indexes, uint32(i))
		bases = append(append(bases, path.Base(f)...), 0)
		dirs = append(append(dirs, path.Dir(f)+"/"...), 0)
	}
	n := len(p.Files)
	if n > 0 {
		add(dirIndexes, int32Type, n, indexes)
	}
	for _, t := range []struct {
		tag  int
		text string
	}{{name, p.Name}, {version, p.Version}, {release, "1.fc44"}, {license, "BSD-3-Clause"}, {arch, "x86_64"}} {
		add(t.tag, stringType, 1, append([]byte(t.text), 0))
	}
	if n > 0 {
		add(baseNames, stringsType, n, bases)
		add(dirNames, stringsType, n, dirs)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(entries.Len()/16))
	head = binary.BigEndian.AppendUint32(head, uint32(data.Len()))
	return append(append(head, entries.Bytes()...), data.Bytes()...)
}
