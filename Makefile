# make demo · make test · make check · make bench · make faults: each sets up .venv first, when it is missing or stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check bench faults clean

demo: $(STAMP)
	$(BIN)/perceiver-vl demo --out demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/perceiver-vl bench all --out bench

faults: $(STAMP)
	$(BIN)/python tests/faults/kills.py --kills 30
	$(BIN)/python tests/faults/kills.py --kills 30 --processes 2
	$(BIN)/python tests/faults/injected.py
	$(BIN)/python tests/faults/index_kills.py --kills 30

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
