# make quickstart   install, then train, search, retrain and evaluate on the built-in data set
# make test         install, then run the tests, 6 to 15 minutes
# make test-all     the same, then the slow ones and those of the installation
# make doctor       install, then show versions and prove the operators
# make chaos        install, then the fault drills: kills, full disks, damage, malformed files (about a quarter of an hour)
# make lint         install, then check the style
# make docs         install, then build the documentation: output/docs/index.html
# make clean        remove caches, the quickstart's results and the generated data set (not .venv, not other results)
# make distclean    the same, and .venv
#
# with these, as in make PYTHON=python3.12 doctor:
# PYTHON=...          the Python that .venv is made with (default: the first supported one found)
# CHAOS_ARGS=...      of the drills, e.g. "--quick --only kill" (tools/chaos --help names all)
# TORCH_PIP_ARGS=...  e.g. "--index-url https://download.pytorch.org/whl/cpu" for torch without CUDA

SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	if $$p -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	>/dev/null 2>&1; then echo $$p; exit; fi; done; echo python3)
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -q -n 2 --dist worksteal
INSTALL := pyproject.toml tools/constraints.txt tools/setup_env.py $(wildcard tools/*detectron2*.py)

.PHONY: help quickstart test test-all doctor chaos lint docs clean distclean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile

quickstart: $(VENV)/.installed
	@AUTO_PANOPTIC_PARENT=$$PPID exec $(RUN) tools/quickstart.py

test: $(VENV)/.installed
	@$(PYTEST) -m "not slow and not install"

test-all: test
	@$(PYTEST) -m "slow or install"

doctor: $(VENV)/.installed
	@$(RUN) -m auto_panoptic.doctor

chaos: $(VENV)/.installed
	@$(RUN) tools/chaos $(CHAOS_ARGS)

lint: $(VENV)/.installed
	@$(VENV)/bin/ruff check .

docs: $(VENV)/.installed
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict
	@echo "output/docs/index.html   # with its search: python -m http.server -d output/docs"

clean:
	rm -rf output/quickstart output/docs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis datasets/shapes
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) $(VENV).lock $(VENV).log

$(VENV)/.installed: $(INSTALL)
	@command -v $(PYTHON) >/dev/null || { \
		echo "error: no Python found; install Python 3.11, 3.12 or 3.13, or name it: make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) tools/setup_env.py
	@touch $@
