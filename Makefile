# make demo   environment, demo data, three members, stacker, prediction, report
# make test   the tests          make check   format, lint, types, documentation, tests
# make docs   the documentation as a site in site/
# make simulate   400 data sets with known truth: does the printed number hold?
# make soak   an hour of random faults on two cores: kills, full disks, damaged files; MINUTES=10 for less
PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 60
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: demo test check docs simulate soak clean

demo: $(BIN)/.ready
	$(BIN)/thera demo

test: $(BIN)/.ready
	$(PYTEST)

check: $(BIN)/.ready
	$(BIN)/ruff format
	$(BIN)/ruff check
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(PYTEST)

docs: $(BIN)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

simulate: $(BIN)/.ready
	$(BIN)/python tests/simulations/label_files.py
	$(BIN)/python tests/simulations/coverage.py

soak: $(BIN)/.ready
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES)

$(BIN)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv checkpoints/demo site
