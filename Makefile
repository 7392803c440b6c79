# Every task of the project, each one command. `make` alone lists them.
# Needed beforehand: GNU make, bash, Python 3.11 with venv, and a Python package index.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:  # the steps of a task share two cores and one Spark: one after the other
.PHONY: help setup demo test test-s3 test-node test-emr emr-box lint lab run bench bench-s3 \
  bench-emr notebooks lock clean

# Many people export these for another Spark or Python; here they would replace what .venv holds.
unexport PYTHONHOME PYTHONPATH SPARK_HOME PYSPARK_PYTHON PYSPARK_DRIVER_PYTHON

BIN := .venv/bin
# The notebooks' own run on the sample lies among the temporary files: begin without an old one.
FRESH_SAMPLE := export TMPDIR="$$(mktemp -d)"; trap 'rm -rf "$$TMPDIR"' EXIT;
UV_VERSION := 0.13.8

help:
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Two stamps, so that an edit of pyproject.toml does not download everything again. A stamp is
# written last: an interrupted set-up has none, and starts afresh. pyspark comes as source only:
# the lock's own build tools, installed first, build it, whatever the index's newest may be.
.venv/.lock-stamp: requirements.lock
	python="$$(bash scripts/find-python.sh)"; rm -rf .venv; "$$python" -m venv .venv
	$(BIN)/python -m pip install --require-hashes \
	  -r <(awk '/^(packaging|setuptools|wheel)==/, /# via/' requirements.lock)
	$(BIN)/python -m pip install --require-hashes --no-build-isolation -r requirements.lock
	@touch $@

.venv/.stamp: .venv/.lock-stamp pyproject.toml
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/.stamp  ## Build .venv from the hashed lock (does nothing when it is up to date)

demo: setup  ## Run the whole pipeline on the embedded sample
	@$(BIN)/fruits demo

test: lint  ## Lint, unit tests, notebooks from end to end, committed outputs compared
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests
	$(FRESH_SAMPLE) $(BIN)/python -m pytest -p no:cacheprovider \
	  --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks/

test-s3: setup  ## The tests of buckets on a real S3 server, and its faults (builds MinIO, once, with Go)
	scripts/fetch-tools.sh
	$(BIN)/python -m pytest --s3 minio tests/test_s3.py tests/test_preflight.py tests/real_s3

test-node: setup  ## Prove bootstrap.sh in a fresh root (as root; needs mmdebstrap)
	$(BIN)/python -m pytest -rsP tests/node

test-emr: setup  ## Prove the notebooks in EMR in a box: YARN, Livy, JupyterHub, a browser (as root)
	$(BIN)/python -m pytest --durations=12 tests/emr_box

emr-box: setup  ## Start EMR in a box to play with, until Ctrl-C (as root)
	@PYTHONPATH=tests $(BIN)/python tests/emr_box/play.py

lint: setup  ## Check code, notebooks and shell scripts (a part of test)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find . -path ./.venv -prune -o -path ./runs -prune -o -name '*.sh' -print0 \
	  | xargs -0 $(BIN)/shellcheck .ci/run

lab: setup  ## Open JupyterLab on the notebooks (ARGS="--no-browser" adds options)
	@cd notebooks && ../$(BIN)/jupyter-lab $(ARGS)

run: require-data-and-run setup  ## Run on your photographs: DATA=folder RUN=folder [PARAMS="-p weights=random"]
	@$(BIN)/fruits run --data "$$DATA" --run-dir "$$RUN" $(PARAMS)

# Before the set-up, so that a slip is answered at once. Read by the shell from the environment:
# any character may stand in the names.
export DATA RUN
.PHONY: require-data-and-run
require-data-and-run:
	$(if $(and $(strip $(DATA)),$(strip $(RUN))),@:,$(error DATA or RUN is missing: make run DATA=/path/to/photographs RUN=/path/to/results))

bench: setup  ## Measure images per second (ARGS="..." adds options)
	@$(BIN)/python benchmarks/throughput.py $(ARGS)

bench-s3: setup  ## Measure a run from and to a bucket on this machine (ARGS="..." adds options)
	scripts/fetch-tools.sh
	@$(BIN)/python benchmarks/bucket.py $(ARGS)

bench-emr: setup  ## Measure in EMR in a box: executors, starts, memory (ARGS="..." adds options)
	@$(BIN)/python benchmarks/emr_box.py $(ARGS)

notebooks: setup  ## Execute the committed notebooks in place, on the sample, to refresh their outputs
	$(FRESH_SAMPLE) for notebook in notebooks/*.ipynb; do \
	  $(BIN)/jupyter-nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False "$$notebook"; \
	done

# A node may be x86_64 or Graviton: one lock serves both, and each package has a wheel for each. So
# it is with the hub of tests/emr_box, which knows no Kerberos (`pyspnego` without its extra), and
# whose s3contents wants an older boto3.
lock:  ## Resolve requirements*.in into the locks (ARGS="--upgrade" for newer versions)
	tools="$$(mktemp -d)"; trap 'rm -rf "$$tools"' EXIT; \
	python="$$(bash scripts/find-python.sh)"; "$$python" -m venv "$$tools"; \
	"$$tools/bin/python" -m pip install --quiet uv==$(UV_VERSION); \
	compile=("$$tools/bin/uv" pip compile --quiet --python-version 3.11 --python "$$python" \
	  --generate-hashes --no-emit-index-url --no-header); \
	"$${compile[@]}" requirements.in --python-platform x86_64-unknown-linux-gnu \
	  -o requirements.lock $(ARGS); \
	for arch in x86_64 aarch64; do \
	  "$${compile[@]}" requirements-node.in --python-platform "$$arch-unknown-linux-gnu" \
	    --only-binary :all: -o "$$tools/$$arch.lock"; \
	done; \
	cmp "$$tools/x86_64.lock" "$$tools/aarch64.lock"; \
	cp "$$tools/x86_64.lock" requirements-node.lock; \
	known() { grep -oE '^[a-z0-9-]+==[^ ]+' requirements.lock | grep -vE '^(boto3|botocore|s3transfer)='; }; \
	for arch in x86_64 aarch64; do \
	  "$${compile[@]}" tests/emr_box/hub.in --python-platform "$$arch-unknown-linux-gnu" \
	    --only-binary :all: -c <(known) --override <(echo pyspnego) -o "$$tools/$$arch-hub.lock"; \
	done; \
	cmp "$$tools/x86_64-hub.lock" "$$tools/aarch64-hub.lock"; \
	cp "$$tools/x86_64-hub.lock" tests/emr_box/hub.lock

clean:  ## Remove .venv, caches and build products (runs/ stays)
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +
