# Every task is one command; `make` alone lists them.
# Needed: GNU make, bash, Python 3.11 with venv, and a Python package index.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:  # the targets share the cores and one Spark
.PHONY: help setup demo test test-networks test-faults test-s3 test-node test-emr emr-box lint \
  lab run bench bench-backbones bench-s3 bench-emr notebooks lock clean

# Often exported for another Spark or Python; here they would take the place of .venv's.
unexport PYTHONHOME PYTHONPATH SPARK_HOME PYSPARK_PYTHON PYSPARK_DRIVER_PYTHON

BIN := .venv/bin
# By default the notebooks use a run folder in TMPDIR: start without an old one.
FRESH_SAMPLE := export TMPDIR="$$(mktemp -d)"; trap 'rm -rf "$$TMPDIR"' EXIT;
UV_VERSION := 0.13.8

help:
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Two stamps, so that an edit of pyproject.toml does not download everything again. A stamp is
# written last, so an interrupted set-up starts over. pyspark has no wheel: the build tools of the
# lock are installed first and build it.
.venv/.lock-stamp: requirements.lock
	python="$$(bash scripts/find-python.sh)"; rm -rf .venv; "$$python" -m venv .venv
	$(BIN)/python -m pip install --require-hashes \
	  -r <(awk '/^(packaging|setuptools|wheel)==/, /# via/' requirements.lock)
	$(BIN)/python -m pip install --require-hashes --no-build-isolation -r requirements.lock
	@touch $@

.venv/.stamp: .venv/.lock-stamp pyproject.toml
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/.stamp  ## Build .venv from the hashed lock, if it is not up to date

demo: setup  ## Run all notebooks on the embedded sample; the report is runs/demo/report.html
	@$(BIN)/fruits demo

test: lint  ## Lint, unit tests, notebooks from end to end, their committed outputs (20 min)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder tests
	$(FRESH_SAMPLE) $(BIN)/python -m pytest -p no:cacheprovider \
	  --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg notebooks/

test-networks: setup  ## Compare the exported file of every network with Keras (2 min)
	$(BIN)/python -m pytest tests/networks

test-faults: setup  ## Test kills, damage and two runs at once (FRUITS_ROUNDS=10 for twenty pairs of runs)
	scripts/fetch-tools.sh
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --s3 minio --durations=12 tests/faults

test-s3: setup  ## Test buckets on a real S3 server and its faults (9 min; builds MinIO once, with Go)
	scripts/fetch-tools.sh
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder \
	  --s3 minio --durations=12 tests/real_s3 tests/test_s3.py tests/test_storage.py tests/test_preflight.py

test-node: setup  ## Test bootstrap.sh in a fresh Debian (7 min; as root, needs mmdebstrap)
	$(BIN)/python -m pytest -rsP tests/node

test-emr: setup  ## Test the notebooks on YARN, Livy and JupyterHub (12 min; as root)
	$(BIN)/python -m pytest --durations=12 tests/emr_box

emr-box: setup  ## Start EMR in a box to try out, until Ctrl-C (as root)
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python tests/emr_box/play.py

lint: setup  ## Check code, notebooks, shell scripts and infrastructure.yaml (a part of test)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	find . -path ./.venv -prune -o -path ./runs -prune -o -name '*.sh' -print0 \
	  | xargs -0 $(BIN)/shellcheck .ci/run
	$(BIN)/cfn-lint infrastructure.yaml

lab: setup  ## Open the notebooks in JupyterLab (ARGS="--no-browser" adds options)
	@export FRUITS_START="$$PWD"; cd notebooks && ../$(BIN)/jupyter-lab $(ARGS)

run: require-data-and-run setup  ## Run on your photographs: DATA=folder RUN=folder [PARAMS="-p weights=random"]
	@$(BIN)/fruits run --data "$$DATA" --run-dir "$$RUN" $(PARAMS)

# Checked before the set-up, which takes minutes. The shell reads both from the environment, so that
# their names may contain any character.
export DATA RUN
.PHONY: require-data-and-run
require-data-and-run:
	$(if $(and $(strip $(DATA)),$(strip $(RUN))),@:,$(error DATA or RUN is missing: make run DATA=/path/to/photographs RUN=/path/to/results))

# The first word of ARGS is a script, the others are its options.
bench: setup  ## Measure speed and quality (an hour; ARGS="studies --photographs 3936" runs one)
	@set -- $(ARGS); for script in $${1:-whole_runs studies throughput others moments decoding growth sizes}; do \
	  PYTHONPATH=$(CURDIR)/tests $(BIN)/python "benchmarks/$$script.py" "$${@:2}"; \
	done

bench-backbones: setup  ## Measure all backbones side by side (ARGS="..." adds options)
	@$(BIN)/python benchmarks/backbones.py $(ARGS)

bench-s3: setup  ## Measure a run that reads and writes a bucket (ARGS="..." adds options)
	scripts/fetch-tools.sh
	@$(BIN)/python benchmarks/bucket.py $(ARGS)
	@PYTHONPATH=$(CURDIR)/tests $(BIN)/python benchmarks/s3_requests.py

bench-emr: setup  ## Measure executors, starts and memory in EMR in a box (ARGS="..." adds options)
	@$(BIN)/python benchmarks/emr_box.py $(ARGS)

# Their outputs name the run folder: as one that is nobody's.
notebooks: setup  ## Execute the notebooks in place, on the sample, to refresh their outputs
	$(FRESH_SAMPLE) for notebook in notebooks/*.ipynb; do \
	  $(BIN)/jupyter-nbconvert --to notebook --execute --inplace \
	    --ExecutePreprocessor.record_timing=False "$$notebook"; \
	  $(BIN)/jupyter-nbconvert --to notebook --inplace --coalesce-streams "$$notebook"; \
	  sed -i "s#$$TMPDIR/fruits-$$(id -un)#/tmp/fruits-you#g" "$$notebook"; \
	done

# Nodes are x86_64 or aarch64 (Graviton): one lock serves both, from wheels only. The lock of the hub
# in tests/emr_box leaves out Kerberos (`pyspnego` without its extra) and has an older boto3, which
# s3contents needs.
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
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +
