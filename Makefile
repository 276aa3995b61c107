# The two commands of the README, and what they are made of.
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types tests torture bench clean

demo: $(VENV)/installed  ## sample events -> DuckDB -> Dagster -> a local Amplitude, and what arrived
	@$(BIN)/nami-amp demo

test: $(VENV)/installed-dev lint types tests  ## everything that CI checks

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy

tests: $(VENV)/installed-dev
	$(BIN)/pytest

torture: $(VENV)/installed-dev  ## simulated histories for as long as told: make torture MINUTES=60
	$(BIN)/python -m nami_amp_pipeline_tests.tools.torture --minutes $(or $(MINUTES),10)

bench: $(VENV)/installed-dev  ## measures everything of docs/benchmarks.md, or one part: make bench PART=history
	$(BIN)/python -m bench $(PART)

$(VENV)/installed: pyproject.toml scripts/install.sh
	@scripts/install.sh $(VENV)
	@touch $@

$(VENV)/installed-dev: pyproject.toml scripts/install.sh
	@scripts/install.sh $(VENV) dev
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) .nami-amp
