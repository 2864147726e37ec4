# Every target makes its own environment: a fresh machine needs make, git and Python 3.11-3.13 with pip.
#   make train ARGS="--train.epochs 3"     make test ARGS="tests/unit -k config"
#   make test JOBS=0                       in one process, as a debugger wants it
#   make train EXTRA=gpu CONFIG=configs/gpu.yaml                 CUDA instead of CPU (Linux)
#   make venv PYTHON=python3.12            a certain interpreter

EXTRA ?= cpu
VENV ?= .venv
PYTHON ?=
ARGS ?=
JOBS ?= 2
CONFIG ?= configs/fashion_mnist.yaml

ifeq ($(filter $(EXTRA),cpu gpu),)
$(error EXTRA is $(EXTRA); it may be cpu or gpu)
endif

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' distml/__init__.py)
BIN := $(VENV)/bin
STAMP := $(VENV)/.$(EXTRA)
CLUSTER := PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m distml cluster
BENCH_STAMP := $(VENV)/.$(EXTRA)-bench
PEERS := $(VENV)-peers
COMPILE := PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	--no-annotate --python-version 3.11 -c requirements/constraints.in

# Set in many containers. Every process of Ray and each of pytest's would compile distml and the tests anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help venv train serve test check docs faults bench monitor image cluster-up cluster-down cluster-status requirements clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(STAMP) ## Make the environment in .venv

$(STAMP): requirements/$(EXTRA).txt requirements/uv.txt pyproject.toml requirements/install
	sh requirements/install venv "$(VENV)" "$(EXTRA)" "$(PYTHON)"
	@touch $@

train: $(STAMP) ## Train Fashion-MNIST on this machine
	$(BIN)/python -m distml.train --config $(CONFIG) $(ARGS)

serve: $(STAMP) ## Serve the champion at http://127.0.0.1:8000 until Ctrl-C
	$(BIN)/python -m distml.serve --config $(CONFIG) $(ARGS)

test: $(STAMP) ## Run the tests (minutes), JOBS at a time
	$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

check: $(STAMP) ## Format, lint, types and the documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

docs: $(STAMP) ## Serve the documentation at http://127.0.0.1:8090 until Ctrl-C
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8090 $(ARGS)

faults: $(STAMP) ## Run the slow tests that kill, fill and freeze things
	$(BIN)/python -m pytest -m "fault or slow" $(ARGS)

bench: $(BENCH_STAMP) $(PEERS)/.ready ## Measure every headline figure beside its peer
	$(BIN)/python -m benchmarks $(ARGS)

# Legacy Keras asks for the distribution called `tensorflow`, which would overwrite tensorflow-cpu.
$(BENCH_STAMP): $(STAMP) requirements/bench.txt
	sh requirements/install add "$(VENV)" requirements/bench.txt "$(PYTHON)"
	@touch $@

monitor: ## Prometheus and Grafana for what runs on this machine (where they are installed)
	sh kuberay/monitoring/laptop

image: ## Build the container images (needs Docker)
	docker build --target $(EXTRA) -t distml$(if $(filter gpu,$(EXTRA)),-gpu):$(VERSION) .
	docker build -t distml-postgres:$(VERSION) kuberay/postgres

cluster-up: $(STAMP) ## Bring up a Kubernetes cluster with everything on it (needs Docker and k3d)
	$(CLUSTER) up $(ARGS)

cluster-status: $(STAMP) ## Look at its pods
	$(CLUSTER) status $(ARGS)

cluster-down: $(STAMP) ## Take it down
	$(CLUSTER) down $(ARGS)

# The peers of the endpoint want other versions of much that we pin.
$(PEERS)/.ready: requirements/peers.txt requirements/install
	sh requirements/install env "$(PEERS)" peers "$(PYTHON)"
	@touch $@

requirements: $(STAMP) ## Resolve and pin the requirements again
	$(COMPILE) pyproject.toml --extra cpu --extra dev -o requirements/cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --extra dev -o requirements/gpu.txt
	$(COMPILE) pyproject.toml --extra cpu --extra s3 --extra server -c requirements/cpu.txt -o requirements/image-cpu.txt
	$(COMPILE) pyproject.toml --extra gpu --extra s3 --extra server -c requirements/gpu.txt -o requirements/image-gpu.txt
	echo hatchling | $(COMPILE) -c requirements/cpu.txt - -o requirements/image-build.txt
	echo 'bentoml==1.4.* litserve==0.2.* mlserver==1.7.* keras==3.15.* tensorflow-cpu==2.21.* datasets==5.2.* ai-edge-litert==2.3.* pillow' | tr ' ' '\n' | \
		$(COMPILE) - -o requirements/peers.txt
	echo 'uv==0.13.*' | $(COMPILE) - -o requirements/uv.txt
	echo 'tf-keras==2.21.*' | $(COMPILE) --no-deps - -o requirements/bench.txt

clean: ## Remove the environment and the caches; data and runs stay
	rm -rf "$(VENV)" "$(PEERS)" .mypy_cache .ruff_cache .pytest_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
