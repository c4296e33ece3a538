# `make demo` and `make test` make the environment first; `make lint` runs the linters.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

TRANSFORMERS ?= 5.0.0
PEERS ?= hqq bitsandbytes torchao gptqmodel llama_cpp nncodec zipnn
PACKAGES_llama_cpp := llama-cpp-python gguf
PACKAGES_nncodec := h5py opencv-python-headless pandas pillow scikit-learn
APART_nncodec := nncodec==2.1.3 torchvision==0.28.0

.PHONY: demo test test-transformers lint format fuzz bench bench-peers clean

$(VENV)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard cpp/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/trueaxis demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The tests of loading with another release of transformers: make test-transformers TRANSFORMERS=5.4.0
test-transformers: $(VENV)/.installed
	$(BIN)/pip install --quiet --upgrade --target build/transformers-$(TRANSFORMERS) transformers==$(TRANSFORMERS)
	PYTHONPATH=build/transformers-$(TRANSFORMERS) $(BIN)/python -m pytest tests/runtime

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests tools benchmarks fuzz
	$(BIN)/ruff format --check src tests tools benchmarks fuzz
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror cpp/*.cpp cpp/*.hpp fuzz/*.cpp fuzz/*.hpp

format: $(VENV)/.installed
	$(BIN)/ruff check --fix src tests tools benchmarks fuzz
	$(BIN)/ruff format src tests tools benchmarks fuzz
	$(BIN)/clang-format -i cpp/*.cpp cpp/*.hpp fuzz/*.cpp fuzz/*.hpp

# Fuzz targets of the C++ that reads files, side by side; needs clang and no Python. make fuzz SECONDS=600
SECONDS ?= 60
fuzz:
	fuzz/build run $(SECONDS)

# Every model, recipe and installed peer: benchmarks/RESULTS.md and the README's first table. A run that was cut short
# goes on where it ended; make bench BENCH="--models src/trueaxis/demo/model" limits it.
bench: $(VENV)/.installed
	$(BIN)/python benchmarks/bench.py $(BENCH)

# Other people's quantizers for `trueaxis compare`, each in an environment of its own, since their pins differ. What is
# APART comes without what it depends on, whose pins would bring other versions than ours.
bench-peers: $(PEERS:%=build/peers/%)

build/peers/%:
	$(PYTHON) -m venv $@
	$@/bin/pip install --quiet -c constraints.txt $(or $(PACKAGES_$*),$*) torch transformers safetensors numpy && \
		$(if $(APART_$*),$@/bin/pip install --quiet --no-deps -c constraints.txt $(APART_$*),true) || \
		{ rm -rf $@; exit 1; }

clean:
	rm -rf $(VENV) build
