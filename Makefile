# Everything here installs what it needs and says so. `make` alone shows what there is.

CARGO ?= cargo
ARGS ?=
# Of the simulation in `make soak`.
SEEDS ?= 2000
# With a Docker engine for all that a command does: the one that answers, or one of our own that ends with it.
WITH_DOCKER := tests/with-docker.sh
# Where cargo puts the programs.
BUILT := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/debug

.DEFAULT_GOAL := help
.PHONY: help man demo bench kills soak scenarios test lint lint-tools dependencies

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: dependencies ## Roll a real fleet back on this machine and watch (ARGS=--keep leaves it up)
	$(CARGO) build --workspace --bins
	ROLLBACK_BINARIES=$(BUILT) $(BUILT)/scenario run zekka $(ARGS)

bench: dependencies ## What users notice: failed requests, runbooks by hand against ours, downtime, answers for 1,000 hosts
	$(CARGO) build --workspace --bins
	ROLLBACK_BINARIES=$(BUILT) $(WITH_DOCKER) $(BUILT)/scenario run zero-downtime $(ARGS)
	ROLLBACK_BINARIES=$(BUILT) $(WITH_DOCKER) $(BUILT)/scenario run vs-runbook $(ARGS)
	ROLLBACK_BINARIES=$(BUILT) $(BUILT)/scenario run db-downtime $(ARGS)
	$(CARGO) build --release -p rollback-coordinator -p rollbackctl -p fleet-swarm
	ROLLBACK_BINARIES=$(dir $(BUILT))release $(BUILT)/scenario run thousand-hosts

kills: dependencies ## Back and forth, with a kill -9 in another phase every time (ARGS="--rounds 64")
	$(CARGO) build --workspace --bins
	ROLLBACK_BINARIES=$(BUILT) $(BUILT)/scenario run kill-sweep $(ARGS)

SCENARIO := ROLLBACK_BINARIES=$(BUILT) $(BUILT)/scenario run

soak: dependencies ## Everything that takes long: explorer, simulation, every kill point, failovers (an hour or two)
	$(CARGO) build --workspace --bins
	$(BUILT)/fleet-model all
	$(BUILT)/fleet-simulation run --seeds $(SEEDS)
	$(SCENARIO) ha-failover --rounds 20
	$(SCENARIO) handover --rounds 10
	$(SCENARIO) stale-leader --rounds 100
	$(SCENARIO) crash-matrix --rounds 0
	$(SCENARIO) store-restart --rounds 10
	$(SCENARIO) db-kill-matrix $(ARGS)

# What packages install beside the programs.
MANUALS ?= $(BUILT)/man
COMPLETIONS ?= $(BUILT)/completions

man: ## Manual pages and shell completions, for packages (MANUALS=DIR COMPLETIONS=DIR)
	$(CARGO) build --package rollbackctl
	$(BUILT)/rollbackctl man --out $(MANUALS)
	mkdir -p $(COMPLETIONS)
	$(BUILT)/rollbackctl completions bash > $(COMPLETIONS)/rollbackctl
	$(BUILT)/rollbackctl completions zsh > $(COMPLETIONS)/_rollbackctl
	$(BUILT)/rollbackctl completions fish > $(COMPLETIONS)/rollbackctl.fish

scenarios: ## List the scenarios; run one with: cargo run -p fleet-tests --bin scenario -- run NAME
	$(CARGO) run --quiet -p fleet-tests --bin scenario -- list

test: dependencies ## All tests: units, properties, and whole fleets on real servers
	$(CARGO) build --workspace --bins
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		set -x; ROLLBACK_BINARIES=$(BUILT) $(WITH_DOCKER) $(CARGO) nextest run --workspace $(ARGS); \
	else \
		set -x; ROLLBACK_BINARIES=$(BUILT) RUST_TEST_THREADS=1 $(WITH_DOCKER) $(CARGO) test --workspace $(ARGS); \
	fi

lint: lint-tools ## Formatting, clippy with warnings as errors, licences and sources of all dependencies
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) deny check bans licenses sources

lint-tools:
	@$(CARGO) fmt --version >/dev/null 2>&1 || { echo "Installing rustfmt"; rustup component add rustfmt; }
	@$(CARGO) clippy --version >/dev/null 2>&1 || { echo "Installing clippy"; rustup component add clippy; }
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "Installing cargo-deny"; $(CARGO) install cargo-deny --locked; }

dependencies:
	@tests/install-dependencies.sh
	@command -v $(CARGO) >/dev/null || { echo "A Rust toolchain (cargo) is missing: install one first" >&2; exit 1; }
