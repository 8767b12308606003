# The two commands of a newcomer are `make up` and `make test`; the others are their parts.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
CARGO ?= cargo
SKEP := target/release/skep

.PHONY: help up down build test test-more check fmt bench soak-kill soak-disk soak-kills soak-power soak-deletes soak-two-servers soak-away soak-versions soak-import soak-histories soak-fuzz soak-neighbours soak-terminal soak-terminal-hour soak-terminals soak-detached soak-files soak-metrics soak-inside

help:
	@echo 'make up      install what is missing, build, start a server with a first workspace'
	@echo 'make down    stop workspaces, server and containerd; deletes nothing'
	@echo 'make build   target/release/skep, the one file to copy to a host'
	@echo 'make test    install what the tests need and run them (root)'
	@echo 'make test-more  what takes longer: other releases of containerd, generated requests'
	@echo 'make check   format, lints, licences and duplicate versions, walls between the crates'
	@echo 'make soak-…  long forms of tests that kill, delete and pull the plug (docs/development.md)'
	@echo 'make bench   Skep beside the same done by hand, as a table (root; ROWS="exec pull" for some)'

up: build
	$(SKEP) up

down:
	@test -x $(SKEP) || { echo 'nothing to stop: $(SKEP) has not been built' >&2; exit 1; }
	$(SKEP) down

build:
	scripts/install up
	$(CARGO) build --release --locked --package skep

test:
	scripts/install test
	scripts/test

test-more:
	scripts/install test-more
	scripts/test-more

check:
	scripts/install check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) deny --all-features --offline --locked check bans licenses sources
	$(CARGO) test --locked --package walls

# The long forms of tests that `make test` runs in a short one. Each says its seed; SKEP_SEED gives it again.
soak-kills: SOAK := kills::
soak-power: SOAK := power::
soak-deletes: SOAK := deletes::
soak-two-servers: SOAK := two_roots::
soak-away: SOAK := away::
soak-versions: SOAK := versions::
soak-import: SOAK := transfers::
soak-neighbours: SOAK := neighbours::
soak-terminal: SOAK := windows::a_terminal
soak-terminal-hour: SOAK := windows::a_terminal_with_traffic
soak-terminal-hour: export SKEP_TERMINAL_SECONDS := 3600
soak-terminals: SOAK := windows::many
soak-detached: SOAK := detached::
soak-files: SOAK := files::
soak-inside: SOAK := inside::what_agents
soak-metrics: SOAK := metrics::
# Two thousand answers a second: more than a build without optimisation gives on two processors.
soak-metrics: SOAK_PROFILE := --release
soak-kills soak-power soak-deletes soak-two-servers soak-away soak-versions soak-import soak-neighbours soak-terminal soak-terminal-hour soak-terminals soak-detached soak-files soak-metrics soak-inside:
	scripts/install test
	SKEP_SOAK=1 $(CARGO) test $(SOAK_PROFILE) --locked --workspace --test end_to_end -- --nocapture --test-threads 1 $(SOAK)

soak-kill: soak-kills

# A backup and an import on a disk that is full at every 4 KiB of them.
soak-disk:
	scripts/install test
	SKEP_SOAK=1 $(CARGO) test --locked --package skep-core --test full_disk -- --nocapture

# Random histories of a workspace with steps that fail and servers that die, on the fake runtime.
soak-histories:
	scripts/install test
	SKEP_SOAK=1 $(CARGO) test --locked --package skep-core --test histories -- --nocapture

# The reader of archives on bytes that are made up, for ten minutes; what it finds is tried again by every test.
soak-fuzz:
	scripts/install fuzz
	scripts/fuzz

fmt:
	$(CARGO) fmt --all

bench: build
	scripts/install bench
	$(CARGO) run --release --locked --package skep-bench -- $(SKEP) $(ROWS)
