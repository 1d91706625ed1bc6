# `make` lists what there is. Every command is plain `.venv/bin/iis-finetune VERB ...`, and works without make.
# make setup ACCEL=cpu|cuda|rocm TORCH=keep ARCH=gfx906 PYTHON=python3.12 : see scripts/setup.py
# make setup EXTRA='bitsandbytes deepspeed gguf lm_eval swanlab tensorboard wandb' : each adds one package, and none is taken away

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
RUN ?= last
KIT := .venv/bin/iis-finetune
STAMP := .venv/iis-finetune-setup.json
SETUP = $(PYTHON) scripts/setup.py $(if $(ACCEL),--accel $(ACCEL)) $(if $(TORCH),--torch $(TORCH)) \
	$(if $(ARCH),--arch $(ARCH)) $(foreach each,$(EXTRA),--extra $(each))
# Through the environment, so that a name with a space or a quote arrives as it is.
export RECIPE RUN
# Set-up leaves bytecode to the first import (half a minute less): without it each child would compile torch again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help need-recipe models setup setup-ppo train check plan download recipes runs status watch logs stop resume evaluate export chat serve report \
	doctor schema lint test test-slow test-all clean

help:  ## this list
	@echo "make TARGET [RECIPE=name-or-file] [RUN=number-or-name] [ARGS='key=value --flag ...']"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup:  ## make .venv: torch for this machine, LLaMA-Factory, the kit (ACCEL=auto|cpu|cuda|rocm TORCH=keep)
	@$(SETUP)

setup-ppo:  ## make .venv-ppo, the second environment, which stage ppo alone runs in
	@$(SETUP) --ppo

$(STAMP): constraints.txt pyproject.toml $(wildcard scripts/setup*.py) iis_finetune/tables/wheels.toml
	@$(SETUP)

need-recipe:
	@test -n "$$RECIPE" || { echo "say which recipe: make $(firstword $(MAKECMDGOALS)) RECIPE=quickstart (make recipes lists them)" >&2; exit 2; }

train: need-recipe $(STAMP)  ## RECIPE=... train; BACKGROUND=1 returns at once
	@$(KIT) train "$$RECIPE" $(if $(BACKGROUND),--background) $(ARGS)

check plan: need-recipe $(STAMP)
	@$(KIT) $@ "$$RECIPE" $(ARGS)
check:  ## RECIPE=... every problem before anything starts
plan:  ## RECIPE=... arguments, environment, memory, and why

download: RECIPE := $(or $(MODEL),$(RECIPE))
download: need-recipe $(STAMP)  ## RECIPE=... or MODEL=owner/name fetch a base model
	@$(KIT) $@ "$$RECIPE" $(ARGS)

recipes runs models doctor schema: $(STAMP)
	@$(KIT) $@ $(ARGS)
recipes:  ## the recipes here
runs:  ## the runs here
models:  ## the base models on disk
doctor:  ## this machine, and what to mend
schema:  ## the JSON schema of recipes

status watch logs stop resume evaluate export chat serve report: $(STAMP)
	@$(KIT) $@ "$$RUN" $(ARGS)
status:  ## RUN=... where a run is (RUN is the last one if not given)
watch:  ## RUN=... follow a run
logs:  ## RUN=... what LLaMA-Factory printed
stop:  ## RUN=... stop a run at the end of its step
resume:  ## RUN=... go on from the last good checkpoint
evaluate:  ## RUN=... base against tuned
export:  ## RUN=... merge the adapter and check the result
chat:  ## RUN=... talk to the tuned model
serve:  ## RUN=... an OpenAI-style server
report:  ## RUN=... one page about a run

lint: $(STAMP)  ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

test: lint  ## lint, then the tests a newcomer runs
	@.venv/bin/python -m pytest $(ARGS)

test-slow: EXTRA := deepspeed bitsandbytes
test-slow: setup  ## the tests that really train for minutes
	@.venv/bin/python -m pytest -m slow $(ARGS)

test-all: EXTRA := deepspeed bitsandbytes gguf lm_eval
test-all: setup  ## everything, hours of it included
	@.venv/bin/python -m pytest -m "slow or extended or not slow" $(ARGS)

clean:  ## remove both environments and every cache; models/ and runs/ stay
	@rm -rf .venv .venv-ppo .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
