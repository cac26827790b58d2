# Any Python 3.11 or 3.12; everything else comes into .venv.
PYTHON ?= python3
# Each half of the test run, in seconds: a hang must end. Five times what it takes on two cores with nothing else running.
TEST_LIMIT ?= 2400
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo quick test test-unit lint bench clean

help:
	@echo "make setup      create .venv and install everything"
	@echo "make demo       the whole line on this machine: videos -> three stages -> policy -> fleet endpoint -> report"
	@echo "make quick      the same, smaller"
	@echo "make test       every test: units, then the mini-cluster, then kills"
	@echo "make test-unit  the tests that need no cluster"
	@echo "make lint       ruff, mypy, and the pages of docs/ with their links"
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

test: test-unit
	timeout --kill-after=30 $(TEST_LIMIT) $(BIN)/python -m pytest tests/cluster tests/chaos

# Two processes of one computing thread each; what starts clusters runs alone, above.
test-unit: setup
	OMP_NUM_THREADS=1 timeout --kill-after=30 $(TEST_LIMIT) $(BIN)/python -m pytest -n 2 tests/unit tests/parity

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/gwp bench act

clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache build dist site *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0r rm -rf
