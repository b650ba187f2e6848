package workflows

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rhysd/actionlint"

	"github.com/veilor/veilor-os/internal/check"
	"github.com/veilor/veilor-os/internal/recipe"
)

// parse reads one of our workflows.
func parse(t *testing.T, file string) *actionlint.Workflow {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	w, errs := actionlint.Parse(data)
	for _, err := range errs {
		t.Fatal(err)
	}
	return w
}

// step returns the step of a job that has a name, and the steps before it.
func step(t *testing.T, w *actionlint.Workflow, job, name string) (*actionlint.Step, []*actionlint.Step) {
	t.Helper()
	j := w.Jobs[job]
	if j == nil {
		t.Fatalf("there is no job %s", job)
	}
	for i, s := range j.Steps {
		if s.Name != nil && s.Name.Value == name {
			return s, j.Steps[:i]
		}
	}
	t.Fatalf("the job %s has no step %q", job, name)
	return nil, nil
}

// script is what a step runs.
func script(t *testing.T, s *actionlint.Step) string {
	t.Helper()
	run, ok := s.Exec.(*actionlint.ExecRun)
	if !ok || run.Run == nil {
		t.Fatal("the step runs nothing")
	}
	return run.Run.Value
}

const (
	testImage = "registry.example/veilor/os"
	index     = "sha256:1d"
	amd64     = "sha256:a6"
	arm64     = "sha256:a7"
	oldAMD64  = "sha256:06"
)

// aRegistry are manifests by what follows the image's name. The new image shares
// one layer of two with the old one; the index also names an attestation, as
// buildx pushes them.
func aRegistry() map[string]string {
	manifest := func(layers ...string) string {
		return `{"layers": [` + strings.Join(layers, ", ") + `]}`
	}
	layer := func(digest, size string) string { return `{"digest": "` + digest + `", "size": ` + size + `}` }
	platform := func(digest, os, arch string) string {
		return `{"digest": "` + digest + `", "platform": {"os": "` + os + `", "architecture": "` + arch + `"}}`
	}
	return map[string]string{
		"@" + index:    `{"manifests": [` + platform(arm64, "linux", "arm64") + ", " + platform(amd64, "linux", "amd64") + ", " + platform("sha256:at", "unknown", "unknown") + `]}`,
		"@" + amd64:    manifest(layer("sha256:base", "1000"), layer("sha256:new", "30")),
		"@" + arm64:    manifest(layer("sha256:other", "7")),
		":44":          `{"manifests": [` + platform(oldAMD64, "linux", "amd64") + `]}`,
		"@" + oldAMD64: manifest(layer("sha256:base", "1000"), layer("sha256:old", "20")),
	}
}

// fakeSkopeo stands for the registry: its answers are files.
const fakeSkopeo = `#!/bin/sh
[ "$1 $2" = "inspect --raw" ] || exit 2
cat "$REGISTRY/$(echo "${3#docker://}" | tr / _)" || { echo "manifest unknown" >&2; exit 1; }
`

// fakeCosign has seen the signatures that are files, and writes down what it was
// asked.
const fakeCosign = `#!/bin/sh
while [ $# -gt 1 ]; do
	[ "$1" = --key ] && key=$2
	shift
done
echo "$key $1" >> "$REGISTRY/asked"
[ -e "$REGISTRY/$(basename "$key") ${1##*@}" ]
`

// runStep runs a step's script in dir as GitHub does, with programs in front of
// the machine's.
func runStep(t *testing.T, dir, text string, registry, programs map[string]string) (string, error) {
	t.Helper()
	for _, p := range []string{"bash", "jq"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("SKIPPED, NOT TESTED: the scripts of the workflows. %s is missing; install it with: apt-get install %s", p, p)
		}
	}
	bin, answers := t.TempDir(), filepath.Join(dir, "registry")
	if err := os.MkdirAll(answers, 0o755); err != nil {
		t.Fatal(err)
	}
	for at, manifest := range registry {
		if err := os.WriteFile(filepath.Join(answers, strings.ReplaceAll(testImage+at, "/", "_")), []byte(manifest), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range programs {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "REGISTRY="+answers, "IMAGE="+testImage, "DIGEST="+index,
		"RELEASE=44", "GITHUB_REPOSITORY=veilor/veilor-os", "GITHUB_STEP_SUMMARY="+filepath.Join(dir, "summary"), "GITHUB_OUTPUT="+filepath.Join(dir, "output"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// What a laptop pulls is measured against the image before, and the first image of
// a release has none.
func TestMeasureThePull(t *testing.T) {
	watch(t)
	s, _ := step(t, parse(t, ours+"/build-bluebuild.yml"), "promote", "Measure the pull")
	for _, c := range []struct {
		name   string
		change func(map[string]string)
		pulled int
		fails  bool
	}{
		{"the tag is there", func(map[string]string) {}, 30, false},
		{"the tag is absent", func(r map[string]string) { delete(r, ":44") }, 1030, false},
		{"half of the old image is gone", func(r map[string]string) { delete(r, "@"+oldAMD64) }, 1030, false},
		{"nothing changed", func(r map[string]string) { r["@"+oldAMD64] = r["@"+amd64] }, 0, false},
		{"the candidate is absent", func(r map[string]string) { delete(r, "@"+index) }, 0, true},
		{"half of the candidate is gone", func(r map[string]string) { delete(r, "@"+amd64) }, 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, registry := t.TempDir(), aRegistry()
			c.change(registry)
			out, err := runStep(t, dir, script(t, s), registry, map[string]string{"skopeo": fakeSkopeo})
			if (err != nil) != c.fails {
				t.Fatalf("%v, want a failure: %v\n%s", err, c.fails, out)
			}
			if c.fails {
				return
			}
			data, err := os.ReadFile(filepath.Join(dir, "pull.json"))
			if err != nil {
				t.Fatal(err)
			}
			var got struct{ Bytes, Pulled int }
			if err := json.Unmarshal(data, &got); err != nil || got.Bytes != 1030 || got.Pulled != c.pulled {
				t.Errorf("%s, want %d of 1030 (%v)\n%s", data, c.pulled, err, out)
			}
		})
	}
}

// Each image that the recipe has built gets a list of what is in it: its own.
func TestEachArchitectureIsListed(t *testing.T) {
	watch(t)
	w := parse(t, ours+"/build-bluebuild.yml")
	r, err := recipe.Load("../../bluebuild/recipes/recipe.yml")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, v := range w.Jobs["sbom"].Strategy.Matrix.Rows["arch"].Values {
		listed = append(listed, "linux/"+strings.Trim(v.String(), `"'`))
	}
	if !slices.Equal(listed, r.Platforms) {
		t.Errorf("of %q, and the recipe builds %q", listed, r.Platforms)
	}
	s, _ := step(t, w, "sbom", "Say which image")
	for arch, want := range map[string]string{"amd64": amd64, "arm64": arm64, "riscv64": ""} {
		dir := t.TempDir()
		t.Setenv("ARCH", arch)
		out, err := runStep(t, dir, script(t, s), aRegistry(), map[string]string{"skopeo": fakeSkopeo})
		if (err == nil) != (want != "") {
			t.Errorf("%s: %v\n%s", arch, err, out)
		}
		if want == "" {
			continue
		}
		if got, err := os.ReadFile(filepath.Join(dir, "output")); err != nil || string(got) != "digest="+want+"\n" {
			t.Errorf("%s: %q, %v", arch, got, err)
		}
	}
	if s, _ := step(t, w, "sbom", "Attest it"); !strings.Contains(script(t, s), `"$IMAGE@$ONE"`) {
		t.Errorf("what one image has in it is attached to all:\n%s", script(t, s))
	}
}

// What a laptop will pull is asked for by digest, for each platform, and each group
// must have signed it: with the key of now or the next one.
func TestCheckWhatClientsCheck(t *testing.T) {
	watch(t)
	s, _ := step(t, parse(t, ours+"/build-bluebuild.yml"), "promote", "Check what clients check")
	signed := func(skip ...string) []string {
		var all []string
		for _, key := range []string{"ci.pub", "release.pub"} {
			for _, digest := range []string{index, amd64, arm64} {
				if s := key + " " + digest; !slices.Contains(skip, s) {
					all = append(all, s)
				}
			}
		}
		return all
	}
	for _, c := range []struct {
		name   string
		signed []string
		want   string // part of the complaint
		change func(map[string]string)
	}{
		{"all", signed(), "", nil},
		{"the next key", append(signed("release.pub "+arm64), "release-next.pub "+arm64), "", nil},
		{"a platform", signed("release.pub " + amd64), "no key of release has signed " + testImage + "@" + amd64, nil},
		{"the index", signed("ci.pub " + index), "no key of ci has signed " + testImage + "@" + index, nil},
		{"no platform", signed(), "names no image for Linux", func(r map[string]string) { r["@"+index] = `{"manifests": []}` }},
		{"no index", signed(), "names no image for Linux", func(r map[string]string) { r["@"+index] = r["@"+amd64] }},
		{"no answer", signed(), "manifest unknown", func(r map[string]string) { delete(r, "@"+index) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, registry := t.TempDir(), aRegistry()
			if c.change != nil {
				c.change(registry)
			}
			keep(t, dir, "registry", c.signed...)
			keep(t, dir, "site/keys", "ci.pub", "ci-next.pub", "release.pub", "release-next.pub", "authority.pem")
			keep(t, dir, "bin")
			if err := os.WriteFile(filepath.Join(dir, "bin/veilor-forge"), []byte("#!/bin/sh\n[ \"$1 $2\" = 'image verify' ]\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			out, err := runStep(t, dir, script(t, s), registry, map[string]string{"skopeo": fakeSkopeo, "cosign": fakeCosign})
			if (err != nil) != (c.want != "") || !strings.Contains(out, c.want) {
				t.Fatalf("%v, want %q\n%s", err, c.want, out)
			}
			if c.want != "" {
				return
			}
			asked, err := os.ReadFile(filepath.Join(dir, "registry/asked"))
			if err != nil {
				t.Fatal(err)
			}
			for _, digest := range []string{index, amd64, arm64} {
				if !strings.Contains(string(asked), "@"+digest+"\n") {
					t.Errorf("nobody asked for %s:\n%s", digest, asked)
				}
			}
		})
	}
}

// keep makes empty files in a directory below dir.
func keep(t *testing.T, dir, sub string, names ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, sub, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Before the release key signs, the CI's key and its provenance must have.
func TestCheckBeforeTheReleaseKeySigns(t *testing.T) {
	watch(t)
	w := parse(t, ours+"/build-bluebuild.yml")
	_, before := step(t, w, "promote", "Sign with the release key")
	var s *actionlint.Step
	for _, b := range before {
		if b.Name != nil && b.Name.Value == "Check what is about to be signed" {
			s = b
		}
	}
	if s == nil {
		t.Fatal("the release key signs before anything is checked")
	}
	const verifier = "#!/bin/sh\n[ \"$*\" = \"verify-image $IMAGE@$DIGEST --source-uri github.com/veilor/veilor-os --source-branch main\" ] && [ -e provenance ]\n"
	for _, c := range []struct {
		name   string
		signed []string
		built  bool
		good   bool
	}{
		{"both", []string{"ci.pub " + index}, true, true},
		{"by the next key", []string{"ci-next.pub " + index}, true, true},
		{"not signed", []string{"release.pub " + index}, true, false},
		{"without provenance", []string{"ci.pub " + index}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			keep(t, dir, "registry", c.signed...)
			keep(t, dir, "site/keys", "ci.pub", "ci-next.pub", "release.pub")
			if c.built {
				keep(t, dir, ".", "provenance")
			}
			out, err := runStep(t, dir, script(t, s), nil, map[string]string{"cosign": fakeCosign, "slsa-verifier": verifier})
			if (err == nil) != c.good {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// Started by hand on a branch, nothing reaches the tags that clients follow.
func TestOnlyMainIsBuilt(t *testing.T) {
	watch(t)
	w := parse(t, ours+"/build-bluebuild.yml")
	for _, job := range []string{"build", "promote"} {
		if c := w.Jobs[job].If; c == nil || c.Value != "github.ref == 'refs/heads/main'" {
			t.Errorf("%s runs on any branch: %v", job, c)
		}
	}
}

// Where signatures are made, cosign asks nobody whom the egress list blocks.
func TestCosignSignsTheOldWay(t *testing.T) {
	watch(t)
	signs := 0
	for _, j := range parse(t, ours+"/build-bluebuild.yml").Jobs {
		for _, s := range j.Steps {
			run, ok := s.Exec.(*actionlint.ExecRun)
			if !ok {
				continue
			}
			text := strings.ReplaceAll(run.Run.Value, "\\\n", "")
			for line := range strings.Lines(text) {
				if !strings.Contains(line, "cosign sign ") && !strings.Contains(line, "cosign attest ") {
					continue
				}
				signs++
				for _, flag := range []string{" --new-bundle-format=false ", " --use-signing-config=false "} {
					if !strings.Contains(line, flag) {
						t.Errorf("%s lacks %s", strings.TrimSpace(line), flag)
					}
				}
			}
		}
	}
	if signs != 2 {
		t.Errorf("%d signatures, want one of the image and one of what is in it", signs)
	}
}

// What veilor promises is checked before anything is built, and once more, with
// nothing left open, of the image that is released; with every tool that is asked.
func TestPromisesAreChecked(t *testing.T) {
	watch(t)
	for _, c := range []struct{ file, job, step, command string }{
		{"build-bluebuild.yml", "render", "Check what veilor promises", "bin/veilor-forge check'"},
		{"release.yml", "gates", "Check what veilor promises, and leave nothing open", "bin/veilor-forge check --strict --image oci:out/image "},
	} {
		s, _ := step(t, parse(t, ours+"/"+c.file), c.job, c.step)
		text := script(t, s)
		if !strings.Contains(text, c.command) {
			t.Errorf("%s does not run %s:\n%s", c.file, c.command, text)
		}
		words := strings.Fields(text)
		for _, p := range check.Packages() {
			if !slices.Contains(words, p) {
				t.Errorf("%s does not install %s", c.file, p)
			}
		}
	}
}

// GitHub's shell has pipefail only if it is named.
func TestShellIsNamed(t *testing.T) {
	watch(t)
	for _, file := range files(t, ours) {
		if d := parse(t, file).Defaults; d == nil || d.Run == nil || d.Run.Shell == nil || d.Run.Shell.Value != "bash" {
			t.Errorf("%s: a failure left of a pipe is not seen; write defaults: run: shell: bash", file)
		}
	}
}
