# Each target first installs what it needs and finds missing (.ci/setup); nothing asks a question.
#
#   make            builds the release binary, target/release/socktap
#   make demo       the Redis filter on real traffic between two namespaces
#   make test       all tests; those on real traffic need root
#   make bench      what each station of a frame costs; then side by side with HAProxy and a bare bridge
#   make programs   compiles the shipped filters to tap-engine/programs/NAME.bpf.o
#   make lint       format and lints, as in .ci/run
#   make setup      installs what any of these needs

CARGO ?= cargo
CARGO_TARGET_DIR ?= target
# Namespaces, XDP and BPF need root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -n)

.DEFAULT_GOAL := build
.PHONY: build setup demo test bench programs lint

build:
	@.ci/setup build
	$(CARGO) build --release --bin socktap

setup:
	@.ci/setup

programs:
	@.ci/setup build
	$(MAKE) --no-print-directory -C tap-engine/programs

demo:
	@.ci/setup build demo
	$(CARGO) build --release --bin socktap
	@$(MAKE) --no-print-directory -C tap-engine/programs
	@$(SUDO) examples/demo.sh $(CARGO_TARGET_DIR)/release/socktap

test:
	@.ci/setup build test
	$(CARGO) test --workspace

bench:
	@.ci/setup build bench
	$(CARGO) build --release --bin socktap
	@$(MAKE) --no-print-directory -C tap-engine/programs
	$(CARGO) bench -p benches
	@$(SUDO) benches/side-by-side.sh $(CARGO_TARGET_DIR)/release/socktap

lint:
	@.ci/setup build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
