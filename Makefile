# Any Python 3.11 or 3.12; everything else comes into .venv.
PYTHON ?= python3
# Each part of a test run, in seconds: a hang must end. Two times and more what it takes on two cores with nothing else
# running.
TEST_LIMIT ?= 2400
SLOW_LIMIT ?= 4000
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo quick test test-unit test-slow test-slurm test-observability lint sanitize bench clean

help:
	@echo "make setup      create .venv and install everything"
	@echo "make demo       the whole line on this machine: videos -> three stages -> policy -> fleet endpoint -> report"
	@echo "make quick      the same, smaller"
	@echo "make test       the tests: units, then the mini-cluster"
	@echo "make test-unit  those that need no cluster"
	@echo "make test-slow  the rest: kills, outages, and whatever else takes minutes"
	@echo "make test-slurm a stage on a real Slurm of two nodes (root; Debian: slurm-wlm, munge)"
	@echo "make test-observability  metrics, dashboards and alerts against a real Prometheus"
	@echo "make lint       ruff, mypy, and the pages of docs/ with their links"
	@echo "make sanitize   the compiled code under the address and undefined-behaviour sanitisers"
	@echo "make bench      how fast a policy acts on this machine"
	@echo "make clean      remove caches and build output"

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
# The client that many robots already have; it asks for numpy<2 but works with numpy 2.
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt openpi-client
	touch $@

demo: setup
	$(BIN)/gwp demo

quick: setup
	$(BIN)/gwp demo --quick

# Units run in two processes of one computing thread each; what starts clusters runs alone.
PYTEST = timeout --kill-after=30 $(1) $(BIN)/python -m pytest
UNITS := OMP_NUM_THREADS=1 $(call PYTEST,$(TEST_LIMIT)) -n 2 tests/unit tests/parity

test: test-unit
	$(call PYTEST,$(TEST_LIMIT)) -m "not slow" tests/cluster

test-unit: setup
	$(UNITS) -m "not slow"

test-slow: setup
	$(UNITS) -m slow
	$(call PYTEST,$(SLOW_LIMIT)) -m slow tests/cluster tests/chaos

# Nodes in namespaces of their own on this machine; skipped where there is no Slurm.
test-slurm: setup
	$(call PYTEST,$(TEST_LIMIT)) tests/slurm

# Debian's Prometheus is taken where this user may install it; without one those tests are skipped.
test-observability: setup
	command -v prometheus || ! command -v apt-get || [ "$$(id -u)" != 0 ] || \
		apt-get install -y -q --no-install-recommends prometheus
	$(call PYTEST,$(TEST_LIMIT)) tests/cluster/test_observability.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

# The tests that call compiled code, with code that watches its own memory. libasan must be loaded first, and libstdc++
# with it, or exceptions thrown elsewhere end the process. Leaks are Python's own business; a touched guard page must end
# the process by its signal, as without the sanitiser. Deselected: what watches the memory of the process, of which the
# sanitiser keeps some hundred MB after it was freed.
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
SANITIZED := native/test_sanitize model/inference/test_compiled model/inference/test_fused test_scale \
	policy/batching/test_engine policy/test_policy data/test_canvas data/video/test_decode
sanitize: setup
	GWP_NATIVE_FLAGS="$(SANITIZE)" $(BIN)/python -c 'from gwp.native.build import CODE, compiled; [compiled(name) for name in CODE]'
	GWP_NATIVE_FLAGS="$(SANITIZE)" OMP_NUM_THREADS=1 \
	ASAN_OPTIONS=detect_leaks=0:handle_segv=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	timeout --kill-after=30 $(TEST_LIMIT) $(BIN)/python -m pytest $(SANITIZED:%=tests/unit/gwp/%.py) \
		--deselect tests/unit/gwp/policy/batching/test_engine.py::test_thousands_of_ticks_allocate_nothing_that_stays

bench: setup
	$(BIN)/gwp bench act

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache build dist site *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf
