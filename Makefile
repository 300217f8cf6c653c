# Pförtner. `make run` shows it on this machine; `make check test` is what CI runs.

GO      ?= go
BIN     := bin
TOOLS   := .tools
DIST    := dist
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# grpcnotrace leaves gRPC's tracing pages out: 3 MB of every program.
BUILD   := CGO_ENABLED=0 $(GO) build -trimpath -tags grpcnotrace -ldflags '$(LDFLAGS)'
# How long each fuzz target runs in `make test`: FUZZTIME=10m make fuzz digs deeper.
FUZZTIME ?= 10s

.PHONY: all run smoke test check bench dist build generate fuzz needs tools clean
all: check build

build:
	@mkdir -p $(BIN)
	$(BUILD) -o $(BIN)/pfoertner-agent ./agent
	$(BUILD) -o $(BIN)/pfoertner-collector ./collector
	$(BUILD) -o $(BIN)/pfoertner-gate ./collector/gate
	$(BUILD) -o $(BIN)/trial ./internal/trial

# The main job on this machine, until Ctrl-C: any user, nothing to configure.
run: build
	@$(BIN)/trial -bin $(BIN)

# The same, once: exit 0 only if real evidence was judged, stored and decided on.
smoke: build
	@$(BIN)/trial -bin $(BIN) -once

test: needs
	@.ci/test ./...
	@.ci/fuzz $(FUZZTIME)

fuzz:
	@.ci/fuzz $(FUZZTIME)

# What the tests need from the distribution. Without root, the tests that need
# it say so and are skipped.
needs:
	@.ci/needs

check: tools
	@test -z "$$(gofmt -l agent collector internal proto)" || { echo "not formatted:"; gofmt -l agent collector internal proto; exit 1; }
	GOOS=linux   GOARCH=amd64 $(GO) vet ./...
	GOOS=linux   GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./...
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 $(GO) vet ./agent/... ./internal/... ./proto/...
	GOOS=windows GOARCH=arm64 CGO_ENABLED=0 $(GO) vet ./agent/... ./internal/... ./proto/...
	$(TOOLS)/staticcheck ./...
	GOOS=windows $(TOOLS)/staticcheck ./agent/...
	$(GO) test -count=1 ./internal/archtest
	@.ci/generated $(TOOLS)

# Linter and generators, in the versions go.mod pins.
tools: $(TOOLS)/.stamp
$(TOOLS)/.stamp: go.mod
	@mkdir -p $(TOOLS)
	$(GO) build -o $(TOOLS)/ tool
	@touch $@

generate: tools
	cd proto && PATH="$(CURDIR)/$(TOOLS):$$PATH" buf generate

bench: needs
	@.ci/bench

# Programs, packages, bills of materials and checksums, reproducible.
dist:
	@.ci/dist $(DIST) $(VERSION)

clean:
	rm -rf $(BIN) $(DIST) $(TOOLS)
