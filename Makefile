# make demo   build forge and run the example: candidates of a small model, and what each costs in quality
# make test   all tests; those against llama.cpp's own tools build them first (once), or say loudly that they could not
# make lint   format, clippy and documentation, as CI checks them
# make bench  the figures of docs/benchmarks.md

SHELL := bash
READY := . scripts/ready.sh
TARGET = $${CARGO_TARGET_DIR:-target}

.PHONY: demo build test lint bench

build:
	@$(READY) && cargo build --release

demo: build
	@$(TARGET)/release/forge build examples/quickstart/recipe.toml
	@echo; echo '$$ forge build examples/quickstart/recipe.toml    # again'
	@$(TARGET)/release/forge build examples/quickstart/recipe.toml

test:
	@$(READY) && \
	if bin=$$(sh tests/peers/build-llama-cpp.sh); then export FORGE_PEER_BIN="$$bin"; \
	else sh tests/peers/missing.sh llama.cpp 'no llama.cpp tools, so nothing is compared with them'; fi && \
	if bin=$$(sh tests/peers/install-incumbents.sh); then export FORGE_INCUMBENTS_BIN="$$bin"; \
	else sh tests/peers/missing.sh build-tools 'no other build tools, so forge is not compared with them'; fi && \
	cargo test

lint:
	@$(READY) && cargo fmt --check && cargo clippy --all-targets -- -D warnings && \
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --lib

bench: build
	@$(READY) && bash benches/run.sh
