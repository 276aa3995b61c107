# The two commands of the README, and what they are made of.
VENV := .venv
BIN := $(VENV)/bin

# A worker that is done takes tests over from another. Many slow tests only wait, so more of them than two cores can
# carry run beside each other. WORKERS=0 runs all in one process.
WORKERS := 4
PYTEST = $(BIN)/pytest -n $(WORKERS) --dist worksteal
# `make quick` shuffles the tests each time; what decides over a change does the same each time.
ORDER := -p no:randomly

# The tests start hundreds of processes, and each would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo quick test lint types tests torture bench clean

demo: $(VENV)/installed  ## sample events -> DuckDB -> Dagster -> a local Amplitude, and what arrived
	@$(BIN)/nami-amp demo

quick: WORKERS := 2
quick: $(VENV)/installed-dev  ## the tests that take no more than a moment each: about two minutes on two cores
	$(PYTEST) -m "not slow"

# mypy has one core to itself for as long as it takes, and the first tests wait; what it finds is said before their end.
test: $(VENV)/installed-dev lint  ## everything that CI checks
	@$(MAKE) --no-print-directory -j2 types tests

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed-dev
	$(BIN)/mypy

tests: $(VENV)/installed-dev  ## in the same order each time; make tests ORDER= for a random one
	$(PYTEST) $(ORDER)

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
