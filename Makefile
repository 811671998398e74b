# Every command works as the only one typed in a fresh clone: each installs what it needs into .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: help install demo test lint format bench bench-llm soak durability matrix clean

help:
	@echo "make demo     run a real agent against a local platform and show its record (KEEP=1 leaves the platform running)"
	@echo "make test     ruff, mypy and pytest; ARGS=... is handed to pytest"
	@echo "make lint     ruff and mypy only"
	@echo "make format   let ruff mend what it can"
	@echo "make bench    print what a span costs, beside other libraries"
	@echo "make bench-llm   print what an LLM call costs, beside other instrumentations"
	@echo "make soak     kill, cut off and fork for an hour; SEEDS=... FIRST=... OUTAGE=... choose what"
	@echo "make durability   print what arrives of 200 spans, whatever happens, beside other libraries"
	@echo "make matrix   run the tests of each SDK with the oldest and the newest version claimed; SDK=... for some"
	@echo "make install  a .venv with everything for development"

$(VENV)/.local: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once) ..."
	@$(PIP) -e '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.local
	@$(PIP) -e '.[local,dev]'
	@touch $@

install: $(VENV)/.dev

demo: $(VENV)/.local
	@$(BIN)/python examples/demo.py $(if $(KEEP),--keep)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Half of the time the tests wait, for servers that are silent and programs that end: three at once on two cores.
# The longest takes 15 s. One that hangs is named, with the stacks of its threads, and the others go on; should it not
# let itself be interrupted, its process is ended.
HANGS := --timeout 180 --timeout-method signal --max-worker-restart 1 \
	-o faulthandler_timeout=240 -o faulthandler_exit_on_timeout=true
test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile $(HANGS) $(ARGS)

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/span_overhead.py
	$(BIN)/python benchmarks/import_time.py

# Their versions of OpenTelemetry would fight with those of the tests.
.venv-llm/.ready: pyproject.toml
	@test -x .venv-llm/bin/python || $(PYTHON) -m venv .venv-llm
	@.venv-llm/bin/python -m pip install -qq --disable-pip-version-check -e . openai opentelemetry-sdk \
		opentelemetry-instrumentation-openai-v2 openinference-instrumentation-openai
	@touch $@

bench-llm: .venv-llm/.ready
	.venv-llm/bin/python benchmarks/llm_overhead.py $(ARGS)

SEEDS ?= 1000
FIRST ?= 0
OUTAGE ?= 180

soak: $(VENV)/.dev
	CHAOS_LONG=1 CHAOS_SEEDS=$(SEEDS) CHAOS_FIRST_SEED=$(FIRST) CHAOS_OUTAGE_SECONDS=$(OUTAGE) \
		$(BIN)/python -m pytest tests/chaos $(ARGS)

# The other libraries would fight over versions with what the tests need.
.venv-durability/.ready: pyproject.toml
	@test -x .venv-durability/bin/python || $(PYTHON) -m venv .venv-durability
	@.venv-durability/bin/python -m pip install -qq --disable-pip-version-check -e '.[local]' \
		langfuse langsmith logfire sentry-sdk opentelemetry-sdk opentelemetry-exporter-otlp-proto-http
	@touch $@

durability: .venv-durability/.ready
	.venv-durability/bin/python benchmarks/durability.py $(ARGS)

matrix:
	@$(PYTHON) tests/integrations/matrix.py $(SDK)

clean:
	rm -rf $(VENV) .venv-matrix .venv-durability .venv-llm dist build .mypy_cache .ruff_cache .hypothesis
