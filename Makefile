# Everything that a contributor types. `make` alone lists it.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
  BIN := $(VENV)/Scripts
else
  BIN := $(VENV)/bin
endif
STAMP := $(VENV)/.installed-from
WORKERS ?= auto
# cpu, cuda or directml: which runtimes and which lock of constraints/ .venv gets
TARGET ?= cpu

.PHONY: help setup demo test check format generate lock clean
help:
	@echo "make setup     create .venv with the tested versions; TARGET=cuda or TARGET=directml for those"
	@echo "make demo      a real model: run its recipe, measure it, ask it something"
	@echo "make test      all tests"
	@echo "make check     format, lint, types, and that generated files are up to date"
	@echo "make format    format the code"
	@echo "make generate  write everything that is generated: recipes, schemas, docs"
	@echo "make lock      write constraints/cpu.txt from .venv"
	@echo "make clean     remove .venv, models/ and caches of tools"

setup:
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --extras $(TARGET),dev
	@touch $(STAMP)
$(STAMP): pyproject.toml constraints/$(TARGET).txt scripts/bootstrap.py
	@$(PYTHON) scripts/bootstrap.py --venv $(VENV) --extras $(TARGET),dev
	@touch $@

demo: $(STAMP)
	@$(BIN)/python scripts/demo.py

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/recipe render --check
	$(BIN)/recipe lint
	$(BIN)/recipe schema --check
	$(BIN)/python scripts/generate_docs.py --check

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: $(STAMP)
	$(BIN)/recipe render
	$(BIN)/recipe schema
	$(BIN)/python scripts/generate_docs.py

lock: $(STAMP)
	$(BIN)/python scripts/write_lock.py

clean:
	rm -rf $(VENV) models build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
