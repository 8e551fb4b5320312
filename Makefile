# On a machine with git, make and Python >= 3.11:
#   make demo   install into .venv, quantize the embedded network in three ways, print the table
#   make test   install what is missing, Paddle too (Python 3.11, 3.12), then ruff, mypy --strict and pytest
#   make core   the tests once more in .venv-core: without Paddle, on the newest onnx
#   make docs   install what is missing, then build the documentation into site/
#   make bench  speed and memory beside the peers, which get environments of their own in .bench/;
#               options in BENCH, as in make bench BENCH='--quick --group calibration'

PYTHON ?= python3
VENV ?= .venv
CORE_VENV ?= .venv-core
SITE ?= site
BIN := $(VENV)/bin
INSTALL := -m pip install --quiet --disable-pip-version-check

# Two workers: tests wait for processes half of the time, and onnxruntime has threads of its own.
# A file stays in one worker, since its tests share models that take long to make.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test lint types unit core docs bench clean

demo: $(VENV)/.installed
	$(BIN)/onnxq demo

test: lint types unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

unit: $(VENV)/.installed-dev
	ONNXQ_REQUIRE_PADDLE=1 $(BIN)/python $(PYTEST)

core: $(CORE_VENV)/.installed-dev
	$(CORE_VENV)/bin/python $(PYTEST)

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir "$(abspath $(SITE))"

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.bench $(BENCH)

$(VENV)/.installed: pyproject.toml constraints/common.txt constraints/paddle.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) -c constraints/paddle.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python $(INSTALL) -c constraints/paddle.txt -e '.[dev,paddle]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python $(INSTALL) -c constraints/paddle.txt -e '.[docs]'
	touch $@

$(CORE_VENV)/.installed-dev: pyproject.toml constraints/common.txt constraints/core.txt
	$(PYTHON) -m venv $(CORE_VENV)
	$(CORE_VENV)/bin/python $(INSTALL) -c constraints/core.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(CORE_VENV) site .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
