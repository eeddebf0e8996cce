# Needs Python >= 3.10 with venv and pip, nothing else: the first target that is made sets up $(VENV).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
# Tests run side by side; threads of their own would only get in each other's way.
WORKERS ?= 2
# The study that `make study` runs.
NAME ?= trade_off
# What `make constraints` makes its pins with, and the one version that it does not choose itself. torch pins the
# libraries for its accelerators by itself, so they are left out.
UV := uv==0.13.9
TORCH := torch==2.13.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo run test check bench scaling overhead methods study docs constraints clean

help:  ## say what there is
	@awk -F ':.*  ## ' '/^[a-z]+:.*  ## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed-plots  ## teacher, then students with and without DOT: a table and plots, in minutes
	$(BIN)/dotkd demo

# A torchvision built for CUDA does not import beside a CPU build of torch; tests/cpu_torchvision makes it.
run: $(VENV)/installed-dev  ## one dotkd command with every extra: make run ARGS='train digits student=timm:resnet18'
	PYTHONPATH=$(CURDIR)/tests/cpu_torchvision$${PYTHONPATH:+:$$PYTHONPATH} $(BIN)/dotkd $(ARGS)

test: check  ## everything: format, lint, types, tests and doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q

check: $(VENV)/installed-dev  ## format, lint and types alone
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/installed-plots  ## what DOT costs on this machine; figures also in runs/bench.json
	mkdir -p runs
	$(BIN)/dotkd bench --json runs/bench.json

scaling: $(VENV)/installed-plots  ## how the time of a step grows with batch, parameters and images; also in runs/scaling.csv
	mkdir -p runs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/scaling.py --csv runs/scaling.csv

overhead: $(VENV)/installed-plots  ## measure where a step's time and memory go; renew the figures of docs/overhead.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py

methods: $(VENV)/installed-plots  ## every method by SGD and by DOT: make methods DATA=tiny-imagenet-200
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/methods.py '$(DATA)'

study: $(VENV)/installed-dev  ## one study and its page of docs/results/: make study NAME=trade_off ARGS='--jobs 2'
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/tests/cpu_torchvision:$(CURDIR) $(BIN)/python studies/$(NAME).py $(ARGS)

docs: $(VENV)/installed-plots  ## renew docs/methods.md
	$(BIN)/dotkd methods --markdown > docs/methods.md

constraints: $(VENV)/pyvenv.cfg  ## renew the pins of constraints.txt from pyproject.toml
	$(BIN)/python -m pip install -qq --disable-pip-version-check $(UV)
	echo '$(TORCH)' | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev \
		--no-header --no-annotate --output-file $(VENV)/pins.txt pyproject.toml -
	{ echo '# The versions that are tested, for every Python >= 3.10. Made by: make constraints'; \
		grep -Ev '^(cuda|nvidia|triton)' $(VENV)/pins.txt; } > constraints.txt

clean:  ## remove the environment and what tools leave behind; runs stay
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit("dotkd needs Python >= 3.10, this is " + sys.version.split()[0] if sys.version_info < (3, 10) else 0)'
	@echo 'setting up $(VENV): a minute or two'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-plots: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) --editable '.[plots]'
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/pyvenv.cfg
	$(INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/installed-plots
