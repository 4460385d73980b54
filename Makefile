# Set-up, the main job and the checks: `make run` and `make test` need nothing else first.
#   PYTHON=...   the Python (3.10 to 3.13) that makes the environment
#   N=...        processes of `make run`; default: every GPU, or 2 without one
#   JOBS=...     test files run side by side (3); many tests wait for other processes
#   ARGS=...     of `make run`: a YAML and section.key=value; of `make test`: pytest's

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.installed
ARGS ?=
JOBS ?= 3

# Nothing here compiles DeepSpeed's operators or asks a hub during the tests.
export DS_BUILD_OPS = 0
OFFLINE = HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: run test test-fast test-gpu install lint format bench bench-gpu gpu-report gpu-evidence help

run: install
	@export PATH="$(abspath $(BIN)):$$PATH"; \
	gpus=$$(python -c "import torch; print(torch.cuda.device_count())") || exit 1; \
	n="$(N)"; \
	if [ -z "$$n" ] && [ "$$gpus" -gt 0 ]; then n=$$gpus; fi; \
	n=$${n:-2}; \
	if [ "$$gpus" -eq 0 ] && [ -z "$$OMP_NUM_THREADS" ]; then \
	    export OMP_NUM_THREADS=$$(python -c "import os; print(max(1, len(os.sched_getaffinity(0)) // $$n))"); \
	fi; \
	echo "deepspeed --num_gpus $$n train.py $(ARGS)"; \
	deepspeed --num_gpus $$n train.py $(ARGS)

test: install
	$(OFFLINE) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

# For the minutes between two edits: what trains no whole run, and the kernels against their references.
FAST = tests/unit tests/kernels/test_arguments.py tests/kernels/test_plain_path.py \
    tests/kernels/test_routing.py --ignore tests/unit/cli

test-fast: install
	$(OFFLINE) $(BIN)/python -m pytest $(FAST) -n $(JOBS) --dist loadfile $(ARGS)

# On a machine with a GPU; elsewhere each test says why it is skipped.
test-gpu: install
	HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 $(BIN)/python -m pytest tests/kernels tests/gpu -n $(JOBS) \
	    --dist loadfile $(ARGS)

install: $(STAMP)

# torch first, by itself: under the constraint pip takes the build that its index offers (the CPU
# one where there is one), and DeepSpeed's own set-up finds torch when it runs. --use-pep517: before
# 23.1 pip runs setup.py of packages without a wheel (seqeval), which may fetch what does not fit.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "make: no $(PYTHON); set PYTHON=..." >&2; exit 2; }
	@"$(PYTHON)" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))" || \
	    { echo "make: $(PYTHON) is $$("$(PYTHON)" -V 2>&1); needed: 3.10 to 3.13; set PYTHON=..." >&2; exit 2; }
	@echo "Making $(VENV) with the tested versions; this takes some minutes the first time."
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --use-pep517 -c constraints.txt -e ".[test,bench]"
	@touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=.:kernels $(BIN)/lint-imports

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/ds-moe-mtl bench $(ARGS)

bench-gpu: install
	$(BIN)/python kernels/benchmarks/bench_top1.py --device cuda --others --goals \
	    --out runs/bench_top1 $(ARGS)

# Without `make install` it takes PYTHON as it is: each part says which package it lacks.
gpu-report:
	@if [ -x $(BIN)/python ]; then python=$(BIN)/python; else python="$(PYTHON)"; fi; \
	PYTHONPATH=.:kernels "$$python" -m ds_moe_mtl.benchmark.gpu $(ARGS)

# The finals first, where earlier lines have tuned and screened the systems; then what else is left.
gpu-evidence: install
	@jobs=$$($(BIN)/python -c "import os, torch; \
	print(16 if torch.cuda.is_available() else len(os.sched_getaffinity(0)))") || exit 1; \
	$(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
	    echo "no GPU: $$jobs runs at a time on this CPU, about half an hour of a core each"; \
	study="$(BIN)/ds-moe-mtl study small --jobs $$jobs $(ARGS)"; \
	$$study --only final && $$study

help:
	@echo "run        train MT-TaG on the embedded tasks (ARGS: another YAML, section.key=value)"
	@echo "test       ruff, the import contracts and every test"
	@echo "test-fast  unit tests and the kernels' references alone"
	@echo "test-gpu   the kernels' tests and those of training on a GPU"
	@echo "install    make $(VENV) with the tested versions"
	@echo "lint       ruff and the import contracts alone"
	@echo "format     let ruff rewrite what it can"
	@echo "bench      whole model against the dense one of equal FLOPs"
	@echo "bench-gpu  the kernels on a GPU"
	@echo "gpu-report  checks and measurements on one GPU, in parts, in 10 minutes (ARGS: data.root=...)"
	@echo "gpu-evidence  the study 'small' on a GPU: sparse against dense over paired seeds (ARGS: data.root=...)"
