# Two commands: `make test` makes the environment and passes the tests; `make lint` runs the linters.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: test lint format bench clean

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard cpp/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks fuzz
	$(BIN)/ruff format --check src tests benchmarks fuzz
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror cpp/*.cpp cpp/*.hpp

format: $(VENV)/.installed
	$(BIN)/ruff check --fix src tests benchmarks fuzz
	$(BIN)/ruff format src tests benchmarks fuzz
	$(BIN)/clang-format -i cpp/*.cpp cpp/*.hpp

clean:
	rm -rf $(VENV) build
