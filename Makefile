# veilor-os. `make help` lists what there is.
#
# Everything is installed from package registries; nothing is fetched by hand.
# Programs are static (CGO_ENABLED=0), so that they run on any distribution.

export CGO_ENABLED := 0
GO ?= go

# Results go here; CACHE holds what later runs re-use (roots, images, builds).
OUT   ?= out
CACHE ?= $(OUT)/cache

.PHONY: help build test demo demo-short bluebuild evidence evidence-tiers evidence-revocation evidence-edge bench fuzz lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: need ## the product's programs, into bin/
	$(GO) build -trimpath -buildvcs=false -o bin/ ./cmd/...

.PHONY: need
need:
	@./lab/need.sh $(abspath $(CACHE))

# One package of the lab at a time: they measure, and they boot machines.
test: need lint ## every test there is; those of the lab need root and say so
	$(GO) test ./...
	cd lab && VEILOR_LAB_CACHE=$(abspath $(CACHE)) $(GO) test -p 1 -timeout 60m ./...

lint: need ## formatting and vet, for both modules
	@bad=$$(gofmt -l cmd internal lab); [ -z "$$bad" ] || { echo "not formatted (run gofmt -w): $$bad" >&2; exit 1; }
	$(GO) vet ./...
	cd lab && $(GO) vet ./...

demo: need ## the whole path, from the recipe to a laptop that stays reachable
	cd lab && $(GO) build -buildvcs=false -o ../bin/demo ./cmd/demo
	@./bin/demo --out $(OUT) --cache $(CACHE)

demo-short: need ## the same without the long waits
	cd lab && $(GO) build -buildvcs=false -o ../bin/demo ./cmd/demo
	@./bin/demo --out $(OUT) --cache $(CACHE) --short

# Outside of CI: it compiles BlueBuild, ten minutes the first time.
bluebuild: need ## what the real BlueBuild CLI makes of the recipe: out/Containerfile
	cd lab && $(GO) build -buildvcs=false -o ../bin/bluebuild ./cmd/bluebuild
	@./bin/bluebuild --out $(OUT) --cache $(CACHE)

evidence: need ## every condition of the network, three times: docs/evidence/ (an hour)
	cd lab && $(GO) build -buildvcs=false -o ../bin/evidence ./cmd/evidence
	@./bin/evidence --cache $(CACHE) --rounds 2 --part --out $(OUT)/floors-busy.json
	@./bin/evidence --cache $(CACHE) --rounds 1 --idle 65s --gaps 5 --part --out $(OUT)/floors-idle.json
	@./bin/evidence --merge $(OUT)/floors-busy.json,$(OUT)/floors-idle.json --out docs/evidence/floors.json

# Not while anything else runs: these are figures.
evidence-tiers: need ## what is forbidden, in every condition: docs/evidence/tiers.json (an hour)
	cd lab && VEILOR_LAB_CACHE=$(abspath $(CACHE)) $(GO) test -count=1 -timeout 90m -v -run '^TestForbidden$$' ./forbidden -evidence $(abspath docs/evidence/tiers.json)

evidence-revocation: need ## 200 revocations: docs/evidence/revocation.json (half an hour)
	cd lab && VEILOR_LAB_CACHE=$(abspath $(CACHE)) VEILOR_REVOCATIONS=200 $(GO) test -count=1 -timeout 90m -v -run '^TestRevocation$$' ./revocation -evidence $(abspath docs/evidence/revocation.json)

evidence-edge: need ## 50 guests of an edge while 20 come and go: none notices
	VEILOR_YGG_GUESTS=50 VEILOR_YGG_CHURN=20 $(GO) test -count=1 -timeout 30m -v -run '^TestChurn$$' ./internal/yggdrasil

bench: need ## what being reachable costs: docs/evidence/bench.json (half an hour)
	cd lab && $(GO) build -buildvcs=false -o ../bin/bench ./cmd/bench
	@./bin/bench --cache $(CACHE)

# Each target for this long.
FUZZTIME ?= 10s
fuzz: need ## every fuzz target of both modules for FUZZTIME
	@for m in . lab; do \
		for p in $$(cd $$m && $(GO) list ./...); do \
			for f in $$(cd $$m && $(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
				echo "$$p $$f"; (cd $$m && $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p) || exit 1; \
			done; \
		done; \
	done

clean: ## remove results and cache
	rm -rf bin $(OUT)
