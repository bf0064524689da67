# Two commands: `make demo` trains a Vision Transformer on real digits; `make test` checks everything.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= -c constraints.txt
BIN := $(VENV)/bin

.PHONY: demo test lint types layers unit slow peers clean install help
.DEFAULT_GOAL := help

help:            ## what can be made
	@grep -E '^[a-z]+: .*##|^[a-z]+:  +##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: $(VENV)/installed          ## make .venv and install kawara into it

demo: $(VENV)/installed             ## train, evaluate and predict on 1,797 real digits (under 3 minutes)
	$(BIN)/kawara demo

test: lint types layers unit        ## style, types, import layers, tests (under 10 minutes)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(VENV)/installed-dev
	$(BIN)/lint-imports

unit: $(VENV)/installed-dev
	$(BIN)/pytest -n auto -m "not slow and not gpu"

slow: $(VENV)/installed-dev         ## the long tests: real training, minutes each
	$(BIN)/pytest -m "slow" --timeout 3600

peers: .venv-peers/installed         ## an environment of its own with timm, for benchmarks/

.venv-peers/installed: pyproject.toml constraints.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps timm==1.0.31 "torchvision==0.28.*"
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) "pillow<13" pyyaml huggingface_hub -e ".[fast,openvino]"
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"kawara needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[fast,hub]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[fast,hub,dev]"
	@touch $@

clean:           ## remove the environment and build leftovers (runs/ stays)
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .import_linter_cache
