package overlay

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
)

// scriptsDir holds, in the overlay directory, what the recipe's script modules run
// in the image while it is built. It is not part of the image.
const scriptsDir = "scripts/"

// CeilingsFile lists the services that may be more exposed than others, and why. It
// is in the overlay directory but not in the image; see internal/check.
const CeilingsFile = "ceilings.yaml"

// ComponentsScript is the name of the script that [Components] makes, as the recipe
// calls it.
const ComponentsScript = "veilor-components.sh"

// Scripts are all scripts that the recipe may call, by their names: those of src,
// the overlay directory, and those that are made of list and t, the whole tree.
func Scripts(src fs.FS, list []Undo, t Tree) (Tree, error) {
	made := Tree{
		{Path: UndoScript, Exec: true, Data: Script(list)},
		{Path: ComponentsScript, Exec: true, Data: Components(t)},
	}
	names, err := fs.Glob(src, scriptsDir+"*")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		data, err := fs.ReadFile(src, n)
		if err != nil {
			return nil, fmt.Errorf("reading the overlay: %w", err)
		}
		if !bytes.HasPrefix(data, []byte("#!")) {
			return nil, fmt.Errorf("reading the overlay: %s: its first line names no interpreter; write #!/bin/sh", n)
		}
		made = append(made, Entry{Path: strings.TrimPrefix(n, scriptsDir), Exec: true, Data: data})
	}
	return made.Join()
}

// Components is a POSIX shell script that marks every file of ours with the layer
// in which it belongs (user.component, user.update-interval). chunkah, which
// packs what GitHub ships, keeps what bears one name together; without the mark
// our files would lie in the layer of everything that is in no package, and that
// changes with every build. $VEILOR_ROOT is put before every path.
func Components(t Tree) []byte {
	var b strings.Builder
	b.WriteString(`#!/bin/sh
# Made by veilor-forge of the overlay; see internal/overlay/scripts.go.
set -eu

root=${VEILOR_ROOT-}

command -v setfattr >/dev/null || {
    echo "veilor-components: there is no setfattr; install the package attr before this script" >&2
    exit 1
}

# component NAME INTERVAL: marks the files that stdin lists.
component() {
    while read -r file; do
        setfattr -n user.component -v "$1" -- "$root/$file"
        setfattr -n user.update-interval -v "$2" -- "$root/$file"
    done
}
`)
	for _, g := range Groups {
		var files []string
		for _, e := range t {
			// Links have no user attributes (xattr(7)).
			if e.Group == g && e.Link == "" {
				files = append(files, e.Path)
			}
		}
		if len(files) > 0 {
			fmt.Fprintf(&b, "\ncomponent veilor-%s %s <<'FILES'\n%s\nFILES\n", g, g.interval(), strings.Join(files, "\n"))
		}
	}
	return []byte(b.String())
}

// interval is how often the group changes, as chunkah reads it.
func (g Group) interval() string {
	switch g {
	case Programs, Site:
		return "weekly"
	}
	return "monthly"
}
