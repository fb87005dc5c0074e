# Two commands are enough on a fresh machine: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed.lock
PYTEST := $(BIN)/python -m pytest
# One thread for each of the $(JOBS) test processes: torch's own threads would fight over the cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: help setup demo demo-llm test test-all lint format bench tools lock clean

help:
	@echo 'make demo      compress a trained vision-language model, verify it, and write the report (runs/demo)'
	@echo 'make test      the tests'
	@echo 'make demo-llm  the same as demo on a real 135M language model, which it downloads first (runs/demo-llm)'
	@echo 'make setup     the environment in $(VENV), from requirements.lock'
	@echo 'make lint      ruff, mypy and import-linter;  make format  applies ruff'
	@echo 'make test-all  the tests with the slow ones'
	@echo 'make bench     every benchmark, then the table in README.md'
	@echo 'make tools     Debian packages for optional checks (a browser, more hardware tools, an emulated ARM)'
	@echo 'make lock      requirements.lock anew, from the ranges in pyproject.toml'
	@echo 'make clean     removes caches and build products; keeps runs/ and $(VENV)'

setup: $(STAMP)

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Gossamer needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "Python's venv module is missing: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -r requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m gossamer.engine.native
	@cp requirements.lock $@

demo: $(STAMP)
	$(BIN)/gossamer optimize tiny-vlm --ratio 0.18 --max-loss 2% --effort quick --seed 0 --out runs/demo
	@echo 'Report: runs/demo/report.html'

demo-llm: $(STAMP)
	$(BIN)/python benchmarks/models.py smollm2
	$(BIN)/gossamer optimize .cache/models/smollm2-135m --ratio 0.3 --task text --data heldout --effort quick --seed 0 --out runs/demo-llm
	@echo 'Report: runs/demo-llm/report.html'

test: $(STAMP)
	$(ONE_THREAD) $(PYTEST) -n $(JOBS)

test-all: $(STAMP)
	$(ONE_THREAD) $(PYTEST) -n $(JOBS) -m 'slow or not slow'

# no cache: a file's imports are judged by which other files exist, which ruff's cache does not follow
lint: $(STAMP)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One script per claim; the files named here are shared by the scripts, or fill in the README.
BENCH_PARTS := $(addprefix benchmarks/,__init__.py environments.py models.py readme_table.py)
bench: $(STAMP)
	@for script in $(filter-out $(BENCH_PARTS),$(sort $(wildcard benchmarks/*.py))); do \
	  echo "== $$script"; $(BIN)/python $$script || exit 1; done
	$(BIN)/python benchmarks/readme_table.py

# Optional programs. Installed where this can be done (root and apt-get), otherwise named.
TOOL_PACKAGES := chromium iverilog qemu-user g++-aarch64-linux-gnu
TOOL_PROGRAMS := chromium iverilog qemu-aarch64 aarch64-linux-gnu-g++
tools:
	@missing=''; for tool in $(TOOL_PROGRAMS); do command -v $$tool >/dev/null || missing="$$missing $$tool"; done; \
	if [ -z "$$missing" ]; then echo 'Everything is there: $(TOOL_PROGRAMS)'; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update && apt-get install -y --no-install-recommends $(TOOL_PACKAGES); \
	else echo "Missing:$$missing. As root on Debian or Ubuntu: apt-get install $(TOOL_PACKAGES)" >&2; exit 1; fi

LOCK_VENV := build/lock-venv
lock:
	rm -rf $(LOCK_VENV)
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install --disable-pip-version-check --quiet '.[dev]' 'setuptools>=77'
	{ sed -n '/^#/p;/^[^#]/q' requirements.lock; \
	  $(LOCK_VENV)/bin/python -m pip freeze --all | sed 's/+[a-z0-9.]*$$//' | \
	  grep -Ev '^(nvidia-|cuda-|triton|gossamer|pip=)'; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf $(LOCK_VENV)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests training benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
