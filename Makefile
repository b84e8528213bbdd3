# Two commands: `make demo` and `make test`.  Each sets up what it needs on a machine that has python3 (3.11 or newer) and make.
# PIP_ARGS goes to pip as it is: for a CPU build of torch, or an index of your own (see the README).
PYTHON ?= python3
PIP_ARGS ?=
MAKEFLAGS += --no-print-directory

# The stamp carries the folder's name: an editable install points there, so a checkout that was moved is installed again.
STAMP := .venv/.installed-$(shell pwd | cksum | cut -d ' ' -f 1)
PY := .venv/bin/python

# The tests of other hosts start an sshd of their own, and are skipped where there is none.  RUNLEVEL: Debian is not to start one by itself.
SSHD = [ -x /usr/sbin/sshd ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null || { \
    echo "installing openssh-server, for the tests of other hosts" >&2; \
    { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends openssh-server; } >&2 || \
    echo "could not: those tests are skipped" >&2; }

.PHONY: demo test parity slow matrix
.DELETE_ON_ERROR:

# exec: make itself is the parent of the demo, which ends with it, however it ends
demo: $(STAMP)
	@exec $(PY) -m ifmesh demo --out demo

test: $(STAMP)
	@$(SSHD)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy --strict ifmesh services tests
	$(PY) -m pytest -q -rs -n 3 --dist loadfile --no-loadscope-reorder

# every case against diffusers' own pipelines, of which `make test` runs a selection; says how long it took
parity: $(STAMP)
	$(PY) -m pytest -q -m parity tests/services

# what `make test` leaves out for its length: compilers, large files, peaks of memory, crowds
slow: $(STAMP)
	$(PY) -m pytest -q -m slow tests

# the whole failure matrix: simulated, real processes, and hosts in network namespaces (as root; skipped elsewhere); says how many ran
matrix: $(STAMP)
	@$(SSHD)
	$(PY) -m pytest -q -rs -m "" $(wildcard tests/matrix tests/hosts tests/fuzz)

$(STAMP): pyproject.toml deploy/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "ifmesh needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo "installing python3-venv, which Debian keeps apart from python3" >&2; \
	    become=; [ "$$(id -u)" = 0 ] || become=sudo; \
	    { command -v apt-get && { [ -z "$$become" ] || command -v sudo; }; } >/dev/null && \
	    $$become apt-get update -qq >&2 && \
	    $$become env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >&2 || \
	    { echo "could not: install Python's venv and ensurepip by hand (Debian: apt-get install python3-venv), then run make again" >&2; \
	      exit 1; }; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "installing ifmesh into .venv (the first time takes minutes: torch is large; CPU only: see the README)" >&2
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c deploy/constraints.txt -e ".[services,dev]"
	@rm -f .venv/.installed-*
	@touch $@
