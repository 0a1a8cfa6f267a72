# Everything a newcomer needs: `make run`, `make test`. Each does its own set-up on a machine with Python 3.11 to 3.13.
#   make run GPU=1     the GPU installation (cuDF, CuPy, TensorFlow for CUDA) instead of the CPU one
#   make run ARGS="--config acme.yaml"
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Used to install, never installed beside the project: a sync removes whatever the lock does not name.
UV_VERSION := 0.13.9
UV ?= .uv/bin/uv
own_uv := $(filter .uv/bin/uv,$(UV))

ifdef GPU
kind := gpu
groups := --no-group cpu --extra gpu
else
kind := cpu
groups :=
endif
installed := .venv/.installed-$(kind)
python := .venv/bin/python
sync := UV_PROJECT_ENVIRONMENT=.venv UV_PYTHON_DOWNLOADS=never $(UV) sync --locked --quiet $(groups)
# A file's tests share what they set up, so they stay in one process; a GPU is not shared at all. Files come in the order
# of tests/conftest.py, the longest first, or one process works on alone at the end.
parallel := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# Apart, since make's `or` would take its commas for its own.
whole_bench := all --events 20e6 --peers polars,duckdb,spark

.PHONY: help setup run test check format bench gpu-test retail lock clean

help:  ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(installed)  ## install into .venv what the lock file names (GPU=1: the GPU set)
	@echo "Ready: the $(kind) environment is in .venv"

run: $(installed)  ## the main job, end to end: a demo log to runs/demo/report.html (ARGS=... passes options on)
	$(python) -m pipeline.run $(ARGS)

# Two processes whose libraries take all cores each wait for one another, spinning: more than twice the CPU time.
test: export OMP_NUM_THREADS ?= 1
test: $(installed)  ## the tests (ARGS=... passes options on to pytest)
	$(python) -m pytest $(parallel) $(ARGS)

check: $(installed)  ## lint, format and types
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy

format: $(installed)  ## put the code into the project's format
	$(python) -m ruff check --fix-only --quiet .
	$(python) -m ruff format .

bench: .venv/.installed-bench  ## every workload beside Polars, DuckDB and Spark (ARGS=... replaces workloads and options)
	$(python) -m bench.run $(or $(ARGS),$(whole_bench))

gpu-test:  ## the tests that compare both backends; needs an NVIDIA GPU
	$(MAKE) GPU=1 test parallel=-n0 ARGS="-m gpu -rs $(ARGS)"

retail: .venv/.installed-retail  ## the grocery example: build its event log and run the main job on it
	$(python) examples/retail/make_events.py
	$(python) -m pipeline.run --config examples/retail/retail.yaml $(ARGS)

lock: $(own_uv)  ## resolve the dependencies again, within pyproject.toml's ranges
	$(UV) lock

clean:  ## remove the environment, caches and the demo's results
	rm -rf .venv .uv runs/demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: an installation is made again when the project's files that define it are newer.
$(installed): pyproject.toml uv.lock | $(own_uv)
	@rm -f .venv/.installed-*
	@echo "Installing the $(kind) environment into .venv (the first time: a few minutes)" >&2
	@$(sync) --python "$$(sh .ci/find-python)"
	@touch $@

# Added to what is there, not in its place: one may have both.
.venv/.installed-retail: $(installed)
	@$(sync) --inexact --group retail
	@touch $@

.venv/.installed-bench: $(installed)
	@$(sync) --inexact --group bench
	@touch $@

.uv/bin/uv:
	@sh .ci/get-uv $(UV_VERSION) .uv
