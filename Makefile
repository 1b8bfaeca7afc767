# The one list of what people and CI run. `make` alone prints it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CARGO ?= cargo

# The photographs of the demo, and where it leaves its output (a temporary directory that it removes, if empty).
PHOTOS ?= examples/photographs
OUT ?=

# The small examples: all but `photos`, which is the demo.
EXAMPLES ?= $(filter-out photos,$(sort $(basename $(notdir $(wildcard examples/*.rs rust/examples/*.rs)))))

# One benchmark of the suite by its name (all, if empty).
BENCH ?=

# A file; anything in /dev/shm that is younger counts as left behind.
SINCE ?=

.PHONY: help
help: ## list what one can run
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: tools ## photographs made smaller by a pool: a plain run, then one with a broken file and a worker killed
	$(CARGO) run --release -p procession --example photos -- "$(PHOTOS)" --broken $(if $(OUT),--out "$(OUT)/plain")
	$(CARGO) run --release -p procession --example photos -- "$(PHOTOS)" --broken $(if $(OUT),--out "$(OUT)/kill") --kill

.PHONY: test
test: tools ## all tests
	$(CARGO) test --workspace

.PHONY: check
check: tools ## formatting, lints and documentation, without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

.PHONY: fmt
fmt: tools ## format everything
	$(CARGO) fmt --all

.PHONY: faults
faults: tools ## kill a process at every store of every operation, and print the table
	$(CARGO) test --release -p procession-core --test faults -- --nocapture

.PHONY: storm
storm: tools ## the long form of the random kills
	PROCESSION_STORM=long $(CARGO) test -p procession-core --test it storm -- --nocapture

.PHONY: bench
bench: tools ## the benchmarks; BENCH=name runs one
	$(CARGO) bench -p procession-benches $(if $(BENCH),--bench "$(BENCH)")

.PHONY: bench-count
bench-count: tools ## instructions and system calls of one put and one get, counted one by one (x86_64)
	$(CARGO) bench -p procession-benches --bench count

.PHONY: examples
examples: tools ## build and run each small example
	$(CARGO) build --release -p procession --examples
	@for name in $(EXAMPLES); do \
		echo "── $$name"; \
		timeout --kill-after=10 120 $(CARGO) run --release -q -p procession --example "$$name"; \
	done
	@echo "examples: $(words $(EXAMPLES)) run"

.PHONY: doc
doc: tools ## the documentation of the crates, in target/doc
	$(CARGO) doc --workspace --no-deps

.PHONY: deny
deny: tools ## licences, advisories and sources of the dependencies; installs cargo-deny if it is missing
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

.PHONY: leftovers
leftovers: ## look for memory, files and processes that a run left behind
	@.ci/leftovers $(if $(SINCE),--since "$(SINCE)")

.PHONY: tools
tools: ## look whether cargo, gcc and make are here, and say how to get them
	@if ! command -v $(CARGO) >/dev/null; then \
		echo "cargo not found: install Rust with rustup, see https://www.rust-lang.org/tools/install" >&2; \
		echo "if it is installed already, open a new shell or run: . \"\$$HOME/.cargo/env\"" >&2; \
		exit 1; \
	fi
	@if ! command -v cc >/dev/null; then \
		echo "cc not found: install a C compiler, for example: apt-get install gcc" >&2; \
		exit 1; \
	fi

.PHONY: clean
clean: tools ## remove what was built
	$(CARGO) clean
