# make demo    the embedded study, from raw text to the table
# make test    linters, types and tests
# make lock    the locks anew, from envs/*.in (needs uv)
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo test lint lock

demo: .venv/installed
	snakemake --profile local
	colbert-zero table --directory local

test: .venv/installed lint
	pytest -n auto --maxprocesses 4 --dist loadfile

lint: .venv/installed
	ruff check workflow tests
	ruff format --check workflow tests
	mypy
	snakefmt --check Snakefile workflow/rules
	snakemake --profile local --lint

# The marker is touched last, so an interrupted installation is taken up again.
.venv/installed: envs/local.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} found; 3.11 to 3.13 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes -r envs/local.txt
	.venv/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	cd envs && for name in local host; do \
	  uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-header \
	    $$([ $$name = local ] || echo "--constraint local.txt") $$name.in --output-file $$name.txt; done
