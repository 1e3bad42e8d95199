# make demo | test | test-slow | bench-train | clean; each installs what it needs into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp-install
# The networks are small: a second thread costs more than it gains. Processes run side by side.
export OMP_NUM_THREADS ?= 1
DEMO_ARGS ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=

.PHONY: demo test test-slow bench-train clean

demo: $(STAMP)
	$(BIN)/sbi-jeffreys demo $(DEMO_ARGS)

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy sbi_jeffreys tasks
	$(BIN)/pytest -n 2 -m "not slow" $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(BIN)/pytest -n 2 -m slow $(PYTEST_ARGS)

bench-train: $(STAMP)
	$(BIN)/sbi-jeffreys bench-train $(BENCH_ARGS)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 10) <= sys.version_info[:2] <= (3, 13) else "Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d: say make PYTHON=python3.11" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache sbi-logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
