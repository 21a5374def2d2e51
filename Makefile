# dims: `make` builds ./dims, `make help` lists the rest.
#
# What a target needs beyond git and make, it installs from Debian's packages
# when it is missing (test/packages); what dims links statically is built once
# by vendor/recipe. When all of that is there, nothing touches apt or a network.

VERSION := 0.1.0
PREFIX  := /usr/local
SECONDS := 120
PYTHON  := /usr/bin/python3

NATIVE := $(shell dpkg --print-architecture 2>/dev/null || uname -m)
ARCH   := $(NATIVE)
BIN    := dims$(if $(filter-out $(NATIVE),$(ARCH)),-$(ARCH))

# CPPFLAGS, CFLAGS and LDFLAGS come after these and so win over them.
# _FORTIFY_SOURCE is for glibc's headers only: musl's have no checked variants.
# RELRO, immediate binding and static-pie are in the specs of vendor's cc.
SOURCES := dims.c dims.h Makefile
DEFINES := -DDIMS_VERSION='"$(VERSION)"'
HARDEN  := -fstack-protector-strong -fstack-clash-protection -Wformat \
           -Werror=format-security
COMMON  := -std=gnu11 -O2 $(HARDEN) $(DEFINES)
STATIC  := $(COMMON) -ffunction-sections -fdata-sections -Wl,--gc-sections -s
SYSTEM  := $(COMMON) -D_FORTIFY_SOURCE=2 -fPIE -pie -Wl,-z,relro,-z,now
ASAN    := -std=gnu11 -O1 -g -fno-omit-frame-pointer $(DEFINES) \
           -fsanitize=address,undefined -fno-sanitize-recover=all
LIBS    := -lbearssl -pthread

VENDOR := vendor/build/$(ARCH)
UNIT   := $(patsubst test/%.c,build/%,$(wildcard test/unit/test_*.c))
FUZZ   := $(patsubst test/%.c,build/%,$(wildcard test/fuzz/fuzz_*.c))
PYTEST := $(PYTHON) -m pytest -p no:cacheprovider
JOBS   := -j$(shell nproc)

export PYTHONDONTWRITEBYTECODE := 1
.DELETE_ON_ERROR:
.PHONY: all run system asan unit lint room fuzz fuzz-run fuzz-replay e2e \
        e2e-asan test test-all heavy crash smoke-arm conformance bench \
        install uninstall clean distclean help

all: $(BIN)

help:
	@sed -n 's/^#: //p' Makefile

# --- the binaries ---------------------------------------------------------

#: make                   ./dims: static, against musl, stripped
#: make ARCH=arm64        ./dims-arm64, likewise; or ARCH=armhf
#: make system            ./dims-system: glibc and Debian's shared libraries
#: make asan              ./dims-asan: the same under ASan and UBSan
#: make run ARGS=...      build and serve

$(VENDOR)/done: vendor/recipe vendor/checksums
	@test/packages build-$(ARCH)
	@vendor/recipe $(ARCH)

$(BIN): $(SOURCES) $(VENDOR)/done
	$(VENDOR)/cc $(STATIC) -I$(VENDOR)/include $(CPPFLAGS) $(CFLAGS) \
	    -o $@ dims.c -L$(VENDOR)/lib $(LIBS) $(LDFLAGS)

run: dims
	./dims $(ARGS)

system: dims-system
dims-system: $(SOURCES)
	@test/packages system
	$(CC) $(SYSTEM) $(CPPFLAGS) $(CFLAGS) -o $@ dims.c $(LIBS) $(LDFLAGS)

asan: dims-asan
dims-asan: $(SOURCES)
	@test/packages system
	gcc $(ASAN) -o $@ dims.c $(LIBS)

# --- the tests ------------------------------------------------------------

#: make test              lint, unit, fuzz-replay, e2e, e2e-asan
#: make test-all          the same unless just done; heavy, conformance, crash,
#:                        smoke-arm

# The stamp is as old as the start of the tests that passed, all of them (T= in
# `make test` selects nothing), so test-all repeats them only if a file is newer.
TESTED := $(shell find $(SOURCES) vendor test -type f -not -name '*.pyc' \
          -not -path '*/build/*' -not -path '*/cache/*' 2>/dev/null)

test:
	@mkdir -p build
	@touch build/tested.start
	@test/packages build-$(NATIVE) system lint unit fuzz e2e
	@$(MAKE) --no-print-directory $(JOBS) dims dims-asan $(UNIT) $(FUZZ)
	@$(MAKE) --no-print-directory T= \
	    lint unit fuzz-replay e2e e2e-asan
	@mv build/tested.start build/tested

build/tested: $(TESTED)
	@$(MAKE) --no-print-directory test

test-all: build/tested
	@$(MAKE) --no-print-directory heavy conformance crash smoke-arm

#: make lint              the house rules; clang's and cppcheck's opinion
lint:
	@test/packages system lint e2e
	$(PYTHON) test/lint.py --compile --cflags="$(subst ",\",$(DEFINES))"
	$(PYTEST) -q test/test_lint.py

#: make room R=store      one room of dims.c
room:
	@$(PYTHON) test/lint.py --room $(R)

#: make unit              test/unit under ASan and UBSan
build/unit/%: test/unit/%.c $(SOURCES) $(wildcard test/unit/*.h)
	@test/packages system unit
	@mkdir -p $(@D)
	gcc $(ASAN) -DDIMS_TEST -o $@ $< -lcmocka $(LIBS)

unit: $(UNIT)
	@[ -n "$(UNIT)" ] || { echo "unit: there are none"; exit 1; }
	@failed=; for t in $(UNIT); do echo "== $$t"; $$t || failed="$$failed $$t"; \
	done; [ -z "$$failed" ] || { echo "unit: failed:$$failed"; exit 1; }

#: make e2e               test/e2e with the binary that is shipped
#: make e2e-asan          test/e2e with ./dims-asan
#:                        T=... goes to pytest, as for heavy: T='-k range'
e2e: dims
	@test/packages e2e
	DIMS_BIN=./dims $(PYTEST) $(T) test/e2e

e2e-asan: dims-asan
	@test/packages e2e
	DIMS_BIN=./dims-asan $(PYTEST) $(T) test/e2e

#: make heavy             real clients, with the binary that is shipped
heavy: dims
	@test/packages e2e heavy
	DIMS_BIN=./dims $(PYTEST) $(T) test/heavy

#: make crash             kills and power cuts (CRASH_KILLS=20, CRASH_CUTS=10)
crash: dims
	@test/packages e2e crash
	DIMS_BIN=./dims $(PYTEST) $(T) test/crash

#: make conformance       the OCI's own program, if it is here (CONFORMANCE=)
conformance: dims dims-asan
	DIMS_BIN=./dims $(PYTHON) test/conformance.py
	DIMS_BIN=./dims-asan $(PYTHON) test/conformance.py --workers 2

#: make smoke-arm         push and pull with the ARM binaries, under qemu
smoke-arm:
	@test/packages e2e qemu
	@$(MAKE) --no-print-directory ARCH=arm64
	@$(MAKE) --no-print-directory ARCH=armhf
	$(PYTEST) test/arm

#: make bench             beside nginx and docker-registry (BENCH_ONLY=, _ROUNDS=)
bench: dims
	@test/packages bench
	DIMS_BIN=./dims $(PYTHON) test/bench/bench.py

# --- fuzzing --------------------------------------------------------------

#: make fuzz              build test/fuzz with libFuzzer
#: make fuzz-replay       each file of the corpora once
#: make fuzz-run          each target for SECONDS=120, finds in build/fuzz/
build/fuzz/%: test/fuzz/%.c $(SOURCES) $(wildcard test/fuzz/*.h)
	@test/packages system fuzz
	@mkdir -p $(@D)
	clang $(ASAN) -fsanitize=fuzzer -DDIMS_TEST -o $@ $< $(LIBS)

fuzz: $(FUZZ)

fuzz-replay: $(FUZZ)
	@[ -n "$(FUZZ)" ] || { echo "fuzz-replay: there are none"; exit 1; }
	@for t in $(FUZZ); do \
	    corpus=test/fuzz/corpus/$${t##*/fuzz_}; set -- $$corpus/*; \
	    $$t "$$@" > $$t.log 2>&1 || { cat $$t.log; exit 1; }; \
	    echo "fuzz-replay: $$corpus: $$# inputs"; \
	done

fuzz-run: $(FUZZ:%=%.run)
%.run: %
	@mkdir -p $*.found
	@echo "$(@F): $(SECONDS) s"
	@$* -max_total_time=$(SECONDS) -timeout=10 -print_final_stats=1 \
	    -artifact_prefix=$*. $*.found test/fuzz/corpus/$(*F:fuzz_%=%) \
	    > $*.log 2>&1 || { tail -60 $*.log; exit 1; }
	@grep -E 'executed_units|new_units' $*.log

# --- installing -----------------------------------------------------------

#: make install           PREFIX=/usr/local, DESTDIR; uninstall keeps the data
ETC   := $(DESTDIR)/etc
UNITS := $(DESTDIR)$(PREFIX)/lib/systemd/system
MAN   := $(DESTDIR)$(PREFIX)/share/man/man8

install: dims
	install -D -m 755 dims $(DESTDIR)$(PREFIX)/bin/dims
	install -d $(UNITS)
	sed 's,/usr/local/bin,$(PREFIX)/bin,' dist/dims.service \
	    > $(UNITS)/dims.service
	install -m 644 dist/dims.socket $(UNITS)/dims.socket
	[ -e $(ETC)/dims.conf ] || install -D -m 644 dist/dims.conf $(ETC)/dims.conf
	[ ! -e dist/dims.8 ] || install -D -m 644 dist/dims.8 $(MAN)/dims.8

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/dims $(MAN)/dims.8 \
	    $(UNITS)/dims.service $(UNITS)/dims.socket

#: make clean             distclean removes what vendor/recipe built, too
clean:
	rm -rf dims dims-system dims-asan dims-arm64 dims-armhf dims-amd64 build

distclean: clean
	rm -rf vendor/build
