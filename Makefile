# What a newcomer types. The work is in scripts/ and xtask/; this file only names it.
# ARGS is passed on: make up ARGS="--port 8001", make test ARGS="-p gateway".

.DEFAULT_GOAL := help
.PHONY: help up test ci bench bench-generate bench-streams fmt lint setup
MAKEFLAGS += --no-print-directory

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The script ends in exec, so the mesh is make's direct child and gets Ctrl-C (or SIGTERM) exactly once.
up: ## install what is missing, build, run the mesh in the foreground
	@scripts/up.sh $(ARGS)

test: ## install what the tests need and run them all
	@scripts/setup.sh --tools-only
	@cargo xtask test $(ARGS)

ci: ## the tests, then format, lints, tidy rules, licences, documents
	@scripts/setup.sh --tools-only
	@cargo xtask ci $(ARGS)

bench: ## measure the mesh and its baselines in one run, print ratios
	@scripts/setup.sh --tools-only
	@cargo xtask bench $(ARGS)

bench-generate: ## compare generation on the CPU with llama.cpp (compiles it on first use)
	@scripts/engine/bench_generate.sh $(ARGS)

bench-streams: ## measure how even 64 streams are while a long prompt joins
	@scripts/setup.sh --tools-only
	@cargo xtask bench-streams $(ARGS)

fmt: ## format every crate
	@cargo fmt --all

lint: ## clippy with warnings denied
	@cargo clippy --workspace --all-targets --locked -- -D warnings

setup: ## install nats-server, the model and the test tools into .portalis/
	@scripts/setup.sh --tests
