# pathkit: everything starts with `make help`. Needs Python 3.11 or later; nothing else is installed system-wide.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Without a screen, or inside SSH, JupyterLab prints its address instead of opening a browser; root needs its consent.
LAB_FLAGS := $(if $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(filter Darwin,$(shell uname))),,--no-browser) \
             $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help lab demo notebooks test lint bench clean
.DEFAULT_GOAL := help

help:  ## show this list
	@echo "pathkit: machine learning for pathology on whole-slide images, in JupyterLab"
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

lab: $(INSTALLED) demo  ## install, prepare the demo slides, open JupyterLab on notebook 00
	@echo "== Opening JupyterLab on notebooks/00_start_here.ipynb (end it with Ctrl-C)"
	$(BIN)/jupyter lab $(LAB_FLAGS) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

demo: $(INSTALLED)  ## prepare the demo slides (made once, then kept in the cache)
	@$(BIN)/pathkit demo

notebooks: $(INSTALLED) demo  ## execute the notebooks that changed and store their outputs (FORCE=1: all)
	@echo "== Executing the notebooks whose cells, package or versions changed"
	$(BIN)/python tests/notebooks/execute.py $(if $(FORCE),--force)

test: $(INSTALLED) demo  ## run all tests; browser tests are skipped where Chromium is absent
	@echo "== Testing (about 25 minutes on two cores, most of it the notebooks; pytest options in ARGS)"
	$(BIN)/python -m pytest $(ARGS)

lint: $(INSTALLED)  ## ruff, import layers, types
	@echo "== Checking style, import layers and types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Longer ones (synthetic, transfer, lung_patches, nuclei, notebooks, viewer) are run by name.
bench: $(INSTALLED)  ## run the benchmarks of speed and memory (4 minutes); one table of ratios and goals (options in ARGS)
	$(BIN)/python benchmarks/run.py $(ARGS)

clean:  ## remove .venv and caches of tools (not the demo slides: `pathkit demo --remove` does that)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pathkit needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "== Installing pathkit and its tested versions into $(VENV) (about 2 GB, 2 to 5 minutes, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[lab,test]'
	@cp pathkit/view/config/pathkit.json $(VENV)/etc/jupyter/jupyter_server_config.d/ # an editable install places no data files
	@touch $@
