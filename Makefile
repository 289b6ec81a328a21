# make demo, make test: the two to begin with. Each installs what it lacks and says so.
SHELL := /bin/bash
.DELETE_ON_ERROR:

# Outside the tree, so that clones share one build.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/poundlock/target
VENV := $(HOME)/.cache/poundlock/venv
export POUNDLOCK_PYTHON ?= $(VENV)/bin/python

.PHONY: help demo test test-all lint bench bench-peers bench-growth bench-adhoc bench-elasticsearch bench-flame bench-instructions bench-parts bench-binary prerequisites services clean

help:
	@echo 'make demo      the whole pipeline on this machine for a minute, with no service at all'
	@echo 'make test      everything, on a real Kafka, PostgreSQL with a replica, Elasticsearch, schema registry and S3 server that it starts and stops'
	@echo 'make test-all  the same, with a kill campaign ten times as long, and the budget of instructions'
	@echo 'make lint      clippy and rustfmt'
	@echo 'make bench     how fast it is on this machine; make bench-peers: beside Spark and Flink (docs/performance.md)'
	@echo '               more of the kind: bench-growth bench-adhoc bench-elasticsearch bench-parts bench-instructions bench-flame (benches/README.md)'
	@echo 'make services  Kafka, PostgreSQL and Elasticsearch to play with, until Ctrl-C'
	@echo 'make clean     removes what was built'

# The dev profile: optimised a little, built in half the time of a release. Its speed says nothing of the real one.
demo: prerequisites
	cargo run --locked -- demo

# The tests that need servers are #[ignore]d, so that a plain `cargo test` passes anywhere; here none is left out. So are
# those that stop the program at fail points, which only this build has. Of the dependencies it changes one small crate:
# all else is built once for this and for `make demo`.
# Where there is no Go for its server, those on S3 are left out, and it says so.
test: prerequisites
	s3=s3; skip=; tests/services/go >/dev/null || { s3=; skip='--skip s3'; echo 'no Go 1.25 or newer: the tests on S3 are left out'; }; \
	tests/services/with kafka postgres replica elasticsearch registry $$s3 -- cargo test --locked --features failpoints -- --include-ignored $$skip

# The budget wants a release build and valgrind: it fails beyond 1.05 times of benches/instructions.json.
test-all: export POUNDLOCK_KILLS ?= 200
test-all: test bench-instructions

lint:
	cargo fmt --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

# Figures on stdout, all else on stderr. CASES, RUNS, BENCH_EVENTS and more: benches/README.md.
bench: bench-binary
	@benches/run ours

bench-peers: bench-binary
	@benches/run peers

# What a thousand times more keys, partitions, bytes, … cost; SQL over the lake beside DuckDB.
bench-growth: bench-binary
	@benches/run growth

bench-adhoc: bench-binary
	@benches/run adhoc

# The Elasticsearch sink beside a bare bulk loader.
bench-elasticsearch: bench-binary
	@benches/run elasticsearch

# Instructions of the whole job, against a stored budget; and our parts one by one, by criterion.
bench-instructions: bench-binary
	@tests/services/prerequisites bench
	@benches/run instructions

bench-parts: prerequisites
	cargo bench --locked -p poundlock-parts

# Where the time of one case goes, by perf. DOCS=1 stores the drawing in docs/, too.
bench-flame: bench-binary
	@benches/run flame $(or $(CASES),whole)

# POUNDLOCK names another binary to be measured.
bench-binary: prerequisites
ifndef POUNDLOCK
	cargo build --release --locked
endif

prerequisites:
	@tests/services/prerequisites

services:
	@INTERRUPT_ENDS=1 tests/services/with kafka postgres elasticsearch -- bash -c 'echo "export KAFKA_BROKER=$$KAFKA_BROKERS DATABASE_URL=$$DATABASE_URL ES_URL=$$ELASTICSEARCH_URL"; echo "Ctrl-C stops them"; sleep infinity'

clean:
	cargo clean
