# Everything a newcomer needs: `make demo` and `make test` do their own set-up. `make help` lists the rest.
#
#   TORCH    what to install as torch (default torch==2.13.0; for instance TORCH='torch==2.13.0+cpu')
#   PYTHON   the interpreter the environment is made with (default: the first Python 3.10+ found)
#   MAX_JOBS compilers run at once (default 2)

SHELL   := /bin/sh
VENV    ?= .venv
TORCH   ?= torch==2.13.0
MAX_JOBS ?= 2
export MAX_JOBS
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet
# Native code is built at install, so whatever goes into it makes the install stale.
BUILD_INPUTS := pyproject.toml setup.py fastdiff/_build.py $(shell find csrc -type f 2>/dev/null)
PYTEST_ARGS ?=

.PHONY: help demo test lint format env bench speed clean distclean
.DEFAULT_GOAL := help

help:
	@echo 'make demo     set up and draw out/demo.png, a sheet of pictures of every class'
	@echo 'make test     set up and run the tests (PYTEST_ARGS="-k name" selects)'
	@echo 'make lint     ruff, mypy and clang-format, changing nothing'
	@echo 'make format   let ruff and clang-format rewrite the sources'
	@echo 'make bench    the CPU benchmark and the convergence table'
	@echo 'make speed    the ops against their own times of the last run here (fails where one got 25 % slower)'
	@echo 'make env      what is built and which backend each op uses'
	@echo 'make clean    remove what was built; make distclean also removes $(VENV)'

demo: $(VENV)/.installed
	$(BIN)/fastdiff generate --label all --count 2 --steps 20 --seed 0 --zoom 2 --out out/demo.png --overwrite

test: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest $(PYTEST_ARGS)

env: $(VENV)/.installed
	$(BIN)/fastdiff env

bench: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python benchmarks/cpu.py
	$(BIN)/python benchmarks/convergence.py

speed: $(VENV)/.installed $(VENV)/.test-tools
	$(BIN)/python -m pytest -o addopts= -q benchmarks/test_speed.py --benchmark-only --benchmark-autosave \
		--benchmark-columns=min,median \
		$(if $(wildcard .benchmarks/*/*.json),--benchmark-compare --benchmark-compare-fail=min:25%)

CXX_SOURCES = $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

# The adapters are checked against the packages they adapt, which are among the tests' tools.
lint: $(VENV)/.installed $(VENV)/.test-tools $(VENV)/.lint-tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fastdiff
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: $(VENV)/.lint-tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Set-up: one stamp a stage, so that a second run starts at once.

$(VENV)/.torch:
	@test -n "$(PYTHON)" || { echo 'fastdiff needs Python 3.10 or newer with venv: install it (Debian: apt install' \
		'python3-venv python3-dev) or name it: make PYTHON=/path/to/python3' >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON) (torch is a large download; this happens once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install '$(TORCH)' numpy
	@touch $@

# The install runs without build isolation, so that it sees the torch that is there.
$(VENV)/.installed: $(VENV)/.torch $(BUILD_INPUTS)
	@echo 'building and installing fastdiff'
	$(PIP) install --group build
	PYTHONWARNINGS=ignore $(PIP) install --no-build-isolation -e '.[images]'
	@touch $@

$(VENV)/.test-tools: $(VENV)/.torch pyproject.toml
	@echo 'installing what the tests need'
	$(PIP) install --group test
	$(PIP) install --no-deps k-diffusion==0.1.1.post1
	@touch $@

$(VENV)/.lint-tools: $(VENV)/.torch pyproject.toml
	$(PIP) install --group lint
	@touch $@

clean:
	rm -rf build dist *.egg-info out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fastdiff kernels csrc -name '*.so' -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.installed

distclean: clean
	rm -rf $(VENV)
