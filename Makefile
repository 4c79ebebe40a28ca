# holdfast: each target does its own set-up; cargo is all that has to be there. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: help demo test test-full soak bench bench-rxe deaths lint build install uninstall guest setup clean

# Where `make build` leaves the library, the names libibverbs wants it under, and the command.
OUT := $(CURDIR)/target/holdfast
# The private ABI numbers of libibverbs 33 to 65.
NUMBERS := 33 34 57 59 64 65

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
# Where the installed libibverbs looks for plug-ins and for driver files: it says so itself.
PROVIDERDIR ?= $(shell $(OUT)/holdfast where provider-dir)
CONFDIR ?= $(SYSCONFDIR)/libibverbs.d

CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
GUEST = $(CARGO) run --quiet --package holdfast-guests --

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## what building and testing need on this host (Debian packages), installed if it may be
	@tests/setup

build: ## target/holdfast: libholdfast.so, its six plug-in names, the holdfast command, the native bed
	@tests/setup build
	$(CARGO) build --release --features tools --package holdfast --package holdfast-sim
	CARGO_TARGET_DIR=$(TARGET)/provider $(CARGO) provider
	@mkdir -p $(OUT)
	@# Replaced, not overwritten: a program may have the old ones mapped.
	@install -m 755 -T $(TARGET)/provider/release/libholdfast.so $(OUT)/.new && mv -f $(OUT)/.new $(OUT)/libholdfast.so
	@install -m 755 -T $(TARGET)/release/libholdfast_sim.so $(OUT)/.new && mv -f $(OUT)/.new $(OUT)/libholdfast_sim.so
	@install -m 755 -T $(TARGET)/release/holdfast $(OUT)/.new && mv -f $(OUT)/.new $(OUT)/holdfast
	@for n in $(NUMBERS); do ln -sfn libholdfast.so $(OUT)/libholdfast-rdmav$$n.so; done
	@echo "Try it: $(OUT)/holdfast run -- ibv_devinfo"

$(OUT)/holdfast $(OUT)/libholdfast.so $(OUT)/libholdfast_sim.so &:
	$(MAKE) build

install: $(OUT)/holdfast $(OUT)/libholdfast.so $(OUT)/libholdfast_sim.so ## into DESTDIR, PREFIX (/usr/local), PROVIDERDIR (libibverbs's own), SYSCONFDIR (/etc)
	@providers='$(PROVIDERDIR)'; \
	if [ -z "$$providers" ]; then \
	    echo "make install: give the directory libibverbs loads plug-ins from: make install PROVIDERDIR=/usr/lib/.../libibverbs" >&2; exit 1; \
	fi; \
	install -d "$(DESTDIR)$$providers" "$(DESTDIR)$(CONFDIR)" "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(LIBDIR)" \
	    "$(DESTDIR)$(INCLUDEDIR)" "$(DESTDIR)$(MANDIR)/man1"; \
	put() { install -m "$$1" -T "$$2" "$(DESTDIR)$$3.holdfast-new"; mv -f "$(DESTDIR)$$3.holdfast-new" "$(DESTDIR)$$3"; }; \
	put 644 $(OUT)/libholdfast.so "$$providers/libholdfast.so"; \
	for n in $(NUMBERS); do ln -sfn libholdfast.so "$(DESTDIR)$$providers/libholdfast-rdmav$$n.so"; done; \
	ln -sfn "$$providers/libholdfast.so" "$(DESTDIR)$(LIBDIR)/libholdfast.so"; \
	put 644 $(OUT)/libholdfast_sim.so "$$providers/libholdfast_sim.so"; \
	put 755 $(OUT)/holdfast "$(BINDIR)/holdfast"; \
	put 644 tests/native/include/holdfast_sim.h "$(INCLUDEDIR)/holdfast_sim.h"; \
	put 644 include/holdfast.h "$(INCLUDEDIR)/holdfast.h"; \
	put 644 src/bin/holdfast/holdfast.1 "$(MANDIR)/man1/holdfast.1"; \
	driver="$(DESTDIR)$(CONFDIR)/holdfast.driver"; stage="$(DESTDIR)$(CONFDIR)/.holdfast-new"; install -d "$$stage"; \
	{ cat providers.d/holdfast.driver; if [ -e "$$driver" ]; then sed -n '/^# begin holdfast/,/^# end holdfast/p' "$$driver"; fi; } \
	    > "$$stage/file"; chmod 644 "$$stage/file"; mv -f "$$stage/file" "$$driver"; rmdir "$$stage"; \
	echo "Installed. Programs get the stock providers as before until you say otherwise: 'holdfast run -- CMD' for one,"; \
	echo "'holdfast enable' for all."

uninstall: $(OUT)/holdfast ## undoes `holdfast enable` and `make install` (same variables)
	@providers='$(PROVIDERDIR)'; \
	if [ -z "$$providers" ]; then \
	    echo "make uninstall: give the directory it was installed to: make uninstall PROVIDERDIR=/usr/lib/.../libibverbs" >&2; exit 1; \
	fi; \
	$(OUT)/holdfast disable --root "$(or $(DESTDIR),/)" --config-dir "$(CONFDIR)"; \
	for n in $(NUMBERS); do rm -f "$(DESTDIR)$$providers/libholdfast-rdmav$$n.so"; done; \
	rm -f "$(DESTDIR)$$providers/libholdfast.so" "$(DESTDIR)$(LIBDIR)/libholdfast.so" "$(DESTDIR)$(BINDIR)/holdfast" \
	    "$(DESTDIR)$$providers/libholdfast_sim.so" "$(DESTDIR)$(INCLUDEDIR)/holdfast_sim.h" "$(DESTDIR)$(INCLUDEDIR)/holdfast.h" "$(DESTDIR)$(MANDIR)/man1/holdfast.1" "$(DESTDIR)$(CONFDIR)/holdfast.driver"; \
	if [ -n "$(DESTDIR)" ] && [ -d "$(DESTDIR)" ]; then find "$(DESTDIR)" -mindepth 1 -depth -type d -empty -delete; fi

lint: ## format, clippy and documentation, without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features tools -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --features tools --document-private-items

test: ## everything: lint, unit tests, install and enable, four real kernels
	@tests/run

bench: build ## stock against holdfast on the native bed, taking turns (ROWS='post* recv', ROUNDS=120, BARE=no): target/bench/bench.md
	@tests/setup native
ifneq ($(BARE),no)
	@# Once more, without what the death of a device takes: to know what that costs.
	CARGO_TERM_QUIET=true RUSTFLAGS='--cfg holdfast_bare' CARGO_TARGET_DIR=$(TARGET)/bare $(CARGO) provider
	@mkdir -p $(TARGET)/bench/bare && install -m 755 $(TARGET)/bare/release/libholdfast.so $(TARGET)/bench/bare
	@for n in $(NUMBERS); do ln -sfn libholdfast.so $(TARGET)/bench/bare/libholdfast-rdmav$$n.so; done
endif
	$(CARGO) run --quiet --package holdfast-bench -- run --out $(TARGET)/bench \
	    $(if $(filter no,$(BARE)),,--bare $(TARGET)/bench/bare/libholdfast.so) $(if $(ROWS),--rows '$(ROWS)') $(if $(ROUNDS),--rounds $(ROUNDS))

bench-rxe: ## the same for soft-RoCE, in one guest (SUITE=bookworm, ROUNDS=7): target/bench/rxe-SUITE.md
	@tests/setup
	@$(GUEST) bench --suite $(or $(SUITE),bookworm) --rounds $(or $(ROUNDS),7)

deaths: build ## how long a dead device keeps its program waiting, over a thousand deaths of the native bed: target/bench/deaths.md
	@tests/deaths $(DEATHS)

test-full: ## the same, with the long runs (every cell of the matrix, sanitizers, valgrind)
	@tests/run full

soak: build ## threads, queue pairs and doorbells under load on the native bed, for twenty minutes (SECONDS=1200); then sanitizers
	@tests/setup native
	@tests/system/soak $(or $(SECONDS),1200)

demo: ## boots one guest, runs traffic through holdfast and pulls a device out under it (SUITE=bookworm)
	@tests/demo

# The command goes by the environment, so that its quotes arrive.
guest: export HOLDFAST_GUEST_CMD = $(CMD)
guest: ## SUITE=bookworm HCA=N CMD='...': runs CMD as root in a guest, here; a shell without CMD; N virtual ConnectX
	@tests/setup build
	@if [ -n "$$HOLDFAST_GUEST_CMD" ]; then \
	    $(GUEST) run --suite $(or $(SUITE),bookworm) $(if $(HCA),--hca $(HCA)) -- "$$HOLDFAST_GUEST_CMD"; \
	else \
	    $(GUEST) run --suite $(or $(SUITE),bookworm) $(if $(HCA),--hca $(HCA)); \
	fi

clean: ## removes what was built here (the guests' roots are cached elsewhere; `guest clean` is for those)
	$(CARGO) clean
	rm -rf $(OUT)
