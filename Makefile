# PYTHON=python3.12 make … chooses the interpreter (3.11 or newer) of the virtual environment.
PYTHON ?= python3
BIN    := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help install demo lab check lint types test faults format notebooks bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: .venv/.have-dev ## set up .venv with all that development needs

demo: .venv/.have-demo ## run the quickstart notebook with a real kernel, server and workers
	$(BIN)/python notebooks/run.py notebooks/quickstart.ipynb build/quickstart.ipynb

lab: .venv/.have-lab ## open the quickstart in JupyterLab
	$(BIN)/jupyter lab notebooks/quickstart.ipynb

check: lint types test ## all that CI runs

lint: .venv/.have-dev ## style and the house's monopolies
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: .venv/.have-dev ## mypy, strict
	$(BIN)/mypy

test: .venv/.have-dev ## every test (one file: make test ARGS=tests/unit/test_x.py)
	$(BIN)/pytest $(ARGS)

faults: .venv/.have-dev ## the whole fault suite, half an hour: goal, target, figure; into docs/faults.md
	$(BIN)/pytest tests/faults --faults -p no:randomly $(ARGS)
	$(BIN)/python docs/faults.py

format: .venv/.have-dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

notebooks: .venv/.have-demo ## execute every notebook into build/
	for n in notebooks/*.ipynb; do $(BIN)/python notebooks/run.py $$n build/$$(basename $$n) || exit 1; done

.SECONDEXPANSION:
bench: $$(BENCH)/.ready ## measure qnb beside its peers into docs/performance.md (a minute: ARGS=--quick)
	$(BENCH)/ours/bin/python benchmarks/run.py --peers $(BENCH)/peers/bin/python $(ARGS)

docs: .venv/.have-dev ## write docs/reference.md from the code
	$(BIN)/python docs/reference.py

clean: ## remove what was built, .venv too
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp for each set of extras, so that a second run is immediate.
.venv/.have-%: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing qnb[$*] into .venv ..."
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

.venv/bin/pip:
	@bash .ci/venv '$(PYTHON)' .venv

# The benchmarks have environments of their own: the peers want other versions of what we use. The
# newest Python there is, unless one is named: ArdiQ needs 3.12.
NEWEST = $(shell for v in 13 12 11; do python3.$$v -c '' 2>/dev/null && echo python3.$$v && exit; done; echo python3)
BENCHED = $(if $(filter file,$(origin PYTHON)),$(NEWEST),$(PYTHON))
BENCH = build/bench/$(notdir $(BENCHED))
build/bench/%/.ready: pyproject.toml constraints.txt benchmarks/peers/requirements.txt
	@bash .ci/venv '$(BENCHED)' $(@D)/ours
	@bash .ci/venv '$(BENCHED)' $(@D)/peers
	@echo "Installing qnb and its peers into $(@D) ..."
	@$(@D)/ours/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@$(@D)/peers/bin/pip install -qq --disable-pip-version-check -r benchmarks/peers/requirements.txt
	@touch $@
