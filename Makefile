# Two commands: `make reproduce` (the paper's main experiment at the quick scale) and `make test`.
# Each does only what is left to do, and needs Python 3.11 or newer, make, and a package index.

PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || echo 2)
# A name in config/scales; empty: what config/config.yaml says.
SCALE ?=

# Recipes run in the project's environment, wherever the project lies (spaces in its path are fine).
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

CONFIG := $(if $(SCALE),--config scale=$(SCALE))
# Where the scale's results go.
RESULTS = $$(python -c 'import sys, yaml; c = yaml.safe_load(open("config/config.yaml")); \
	print(c["results"] + "/" + (sys.argv[1] or c["scale"]))' "$(SCALE)")

.PHONY: help setup reproduce report test check lock clean

help:
	@echo "make reproduce   install, run the workflow on CORES ($(CORES)) cores, write the report; SCALE=tiny: another scale"
	@echo "make test        install, run all tests"
	@echo "make report      tables, figures and the report of what was run, again"
	@echo "make check       formatting, lint, types"
	@echo "make setup       install alone"
	@echo "make lock        resolve the pinned requirements anew (needs uv)"
	@echo "make clean       remove the environment; data and results stay"

setup: .venv/installed

.venv/installed: requirements.lock requirements-nodeps.lock pyproject.toml
	@echo "==> Creating .venv with $$("$(PYTHON)" --version) and installing pinned requirements (about 3 minutes)"
	@"$(PYTHON)" -c 'import sys; sys.exit("sabr needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	"$(PYTHON)" -m venv .venv
	.venv/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --require-hashes --no-deps --requirement requirements-nodeps.lock
	.venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch .venv/installed

reproduce: setup
	@echo "==> Running the workflow on $(CORES) cores"
	snakemake --cores $(CORES) $(CONFIG)
	@echo "==> Done: $(RESULTS)/report.html"

# Tables, figures and the report of what was run, again.
report: setup
	snakemake --cores $(CORES) "$(RESULTS)/report.html" $(CONFIG)
	@echo "==> Done: $(RESULTS)/report.html"

test: setup
	@echo "==> Running all tests, on $(CORES) cores"
	pytest -n $(CORES) --dist loadfile --no-loadscope-reorder

check: setup
	ruff format --check .
	ruff check .
	snakefmt --check .
	mypy sabr
	snakemake --lint

# Resolve the lock files anew from the ranges in pyproject.toml (needs uv).
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--all-extras --constraint constraints.txt --output-file requirements.lock pyproject.toml
	printf 'auto-LiRPA==0.3\n' | uv pip compile --quiet --universal --python-version 3.11 --no-deps --generate-hashes \
		--no-annotate --no-header --output-file requirements-nodeps.lock -

clean:
	rm -rf .venv
