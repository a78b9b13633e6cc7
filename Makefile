# make demo    a light environment, a synthesised clip and pictures, translated, in demo/
# make quick   the development environment and the quick tier of the tests, under a minute
# make test    the same and the whole suite
# make soak    the long runs: memory over 5,000 frames, large jobs that are killed again and again
# make check   formatting, lint, types, and which promised behaviours have a test
# make clean   remove what the above made
#
# VENV=… and PYTHON=… choose the environment's folder and the interpreter that makes it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# setuptools warns about every editable install whose root is a package folder: nothing to act on here.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check

# The files with the most tests for their time, some of every room.
QUICK := tests/job tests/models tests/media/images tests/media/test_pattern.py tests/media/test_first_frame.py \
  tests/media/demux/test_probe.py tests/media/video/test_colour.py tests/media/mux/test_streams.py \
  tests/backends/test_choice.py tests/backends/test_common.py tests/backends/test_onnxruntime.py \
  tests/cli/test_progress.py tests/cli/test_reference.py \
  tests/train/test_settings.py tests/train/test_data.py \
  $(filter-out %_memory.py %_examples.py %_needs.py, $(wildcard tests/test_*.py))

.DEFAULT_GOAL := help
.PHONY: help demo quick test soak check clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

# A stamp says that an environment is whole; the folder alone would not, if making it was cut short.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cyclegan-batch needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1); try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.light: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[cpu]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(VENV)/.light $@

demo: $(VENV)/.light
	$(BIN)/cyclegan-batch demo demo

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow and not corpus' -n 2 --dist worksteal $(QUICK) $(PYTEST_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal $(PYTEST_ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rA $(PYTEST_ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/behaviours.py
	$(BIN)/python -m tests.behaviours

clean:
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
