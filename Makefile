# kvmlet: what one types. Everything a target needs it installs or builds itself.
#   HOSTS=n   how many KVM hosts `make cluster` starts (1)
#   FILTER=s  only end-to-end tests whose name contains s
#   MINUTES=n how long `make fuzz` takes (10)

HOSTS ?= 1
FILTER ?=
MINUTES ?= 10
CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)
# Built together: apart, cargo would settle on other features of what they share and build it twice.
E2E = $(CARGO) build --release --workspace && $(TARGET)/release/kvmlet-e2e

.PHONY: help demo test conformance bench deb image fuzz lint book ansible cluster cluster-down
.DEFAULT_GOAL := help

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

cluster: ## a cluster with HOSTS=n KVM hosts; it stays until cluster-down
	@$(E2E) up --hosts $(HOSTS)

cluster-down: ## the end of that cluster
	@$(E2E) down

demo: ## one pod through the whole path, in one screen
	@$(E2E) demo

test: ## all tests, ending with one line; with FILTER=s end-to-end ones only
	@$(E2E) test $(if $(FILTER),"$(FILTER)",--all)

conformance: ## Kubernetes' own specifications of a node; with FILTER=s those whose name contains s
	@$(E2E) conformance --slow $(if $(FILTER),"$(FILTER)")

bench: ## speed and memory, beside peers
	@$(E2E) bench

deb: ## a Debian package with program, guest and systemd unit, in target/deb
	@$(E2E) deb $(TARGET)/deb

image: ## the image that hosts are installed with by a DaemonSet, as an OCI layout in target/image; the last line is its digest
	@$(E2E) image $(TARGET)/image

fuzz: ## what guests can say, made up by libFuzzer for MINUTES=n in all
	@.ci/fuzz "$(MINUTES)"

book: ## the documents as a book, in target/book
	@.ci/book

ansible: ## the Ansible role, by its own tools and on a cluster that runs; not part of CI's run
	@.ci/ansible

lint: ## formatting, lints, licences and sources of what is linked
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings
	@.ci/deny
