# `make run` and `make test` need python3 (3.11 or newer), make and pip; they set up everything else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export OMP_NUM_THREADS := 1

.PHONY: run test test-slow lint bench clean
.DEFAULT_GOAL := run

run: $(STAMP)
	$(BIN)/rtb train configs/experiments/digits_half.yaml

# Files side by side on the cores; those with processes of Ray, which take all cores, after them.
test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile --ignore tests/system/distributed
	$(BIN)/python -m pytest tests/system/distributed

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks.digits_half --short
	$(BIN)/python -m benchmarks.toy_25_to_9 --short
	$(BIN)/python -m benchmarks.gaussian_linear --short
	$(BIN)/python -m benchmarks.path_search --short
	$(BIN)/python -m benchmarks.replay --short

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by itself: any other way of asking for it may bring gigabytes of CUDA.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rtb needs Python 3.11 or newer, got " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
