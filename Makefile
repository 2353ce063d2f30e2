# `make demo` and `make test` do all set-up themselves, in .venv. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGE := $(VENV)/.package
INSTALLED := $(VENV)/.installed
LINTERS := $(VENV)/.linters
SITE := $(VENV)/.site
LOWEST := .venv-lower-bounds
SOURCES := $(wildcard csrc/*.cpp csrc/*.hpp kernels/cuda/*.cpp kernels/cuda/*.cu kernels/cuda/*.cuh)
TEST_SOURCES := $(wildcard tests/host_device/*.cpp tests/host_device/*.hpp)
# Compiler warnings are errors where CI is set. The long form of -C: pip before 23.1 knows no other.
BUILD_OPTIONS := --config-settings=cmake.define.PYMTG_WERROR=$(if $(CI),ON,OFF)

.PHONY: help setup demo test test-long lint docs pictures check-dist test-lower-bounds bench tables clean

help:
	@echo "make demo        train, group and compare on scikit-learn's digits; results in runs/digits"
	@echo "make test        all tests"
	@echo "make test-long   the same, and those that are marked slow"
	@echo "make lint        ruff, mypy, clang-format"
	@echo "make docs        the documentation as a site, in build/site"
	@echo "make pictures    the documentation's pictures, by the code that stands beside them"
	@echo "make check-dist  build sdist and wheel, install the wheel, try it outside the repository"
	@echo "make test-lower-bounds  the tests with the lowest versions allowed, in a virtual environment of their own"
	@echo "make bench       benchmarks, results in benchmarks/results (takes long: scikit-learn is measured too)"
	@echo "make tables      README's and docs' tables from benchmarks/results"

setup: $(INSTALLED)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(PACKAGE): $(BIN)/python pyproject.toml constraints.txt CMakeLists.txt kernels/cuda/CMakeLists.txt $(SOURCES)
	$(BIN)/python -m pip install -c constraints.txt $(BUILD_OPTIONS) -e '.[all]'
	@touch $@

# The package is there: this adds what its tests need.
$(INSTALLED): $(PACKAGE)
	$(BIN)/python -m pip install -c constraints.txt 'pymtg[test,triton]'
	@touch $@

$(LINTERS): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt ruff mypy clang-format pandas-stubs
	@touch $@

$(SITE): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -c constraints.txt mkdocs mkdocs-material 'mkdocstrings[python]'
	@touch $@

demo: $(PACKAGE)
	$(BIN)/pymtg stg --data digits --groups 3 --seed 0 --out runs/digits

# A process a core, one thread each, a file of tests at a time, in the order that tests/conftest.py gives them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(INSTALLED)
	$(PYTEST)

test-long: $(INSTALLED)
	PYMTG_TEST_LONG=1 $(PYTEST)

lint: $(INSTALLED) $(LINTERS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror -style=file:csrc/.clang-format $(SOURCES) $(TEST_SOURCES)

docs: $(INSTALLED) $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

pictures: $(INSTALLED)
	$(BIN)/python docs/make_pictures.py

check-dist: $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt build
	$(BIN)/python tests/check_dist.py

# TESTS chooses among them. On Linux torch comes with CUDA here, some gigabytes.
test-lower-bounds:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -c lower-bounds.txt -e '.[test]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist loadfile $(TESTS)

bench: $(INSTALLED)
	sh benchmarks/run.sh

tables: $(INSTALLED)
	$(BIN)/python benchmarks/make_tables.py

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
