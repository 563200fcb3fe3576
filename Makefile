# `make demo` and `make test` set up everything that they need in .venv.
VENV ?= .venv
PYTHON ?= python3
RUN ?= runs/demo
EPOCHS ?= 8

BIN := $(VENV)/bin
# onnxruntime and onnxruntime-gpu overwrite each other: the second only where a driver is.
RUNTIME := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
CPP = $(shell find deploy/cpp -name '*.[ch]pp' -o -name '*.h' -o -name '*.cu')
SOURCES := deploy models calibration tests benchmarks

.PHONY: demo test docs cpp fuzz bench lint format typecheck clean

$(VENV)/.ready: pyproject.toml constraints.txt tests/mmsegmentation.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[torch,$(RUNTIME),rtx,openvino,dev]'
	@# TensorRT's own libraries are too large, and need a GPU; its bindings show its API to a test.
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/tensorrt-10 tensorrt_cu13_bindings==10.14.1.48.post1
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/tensorrt-11 tensorrt_cu13_bindings==11.4.0.106
	@# The C++ library is compiled with headers of another family than the TensorRT-RTX above.
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/tensorrt-rtx-1.4 tensorrt-rtx-cu13-libs==1.4.0.76
	@# TensorRT's real runtime without a builder: how it fails where CUDA cannot start is tested.
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/tensorrt-lean-10 tensorrt-lean-cu13-libs==10.16.1.11 tensorrt-lean-cu13-bindings==10.16.1.11
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/tensorrt-lean-11 tensorrt-lean-cu13-libs==11.4.0.106 tensorrt-lean-cu13-bindings==11.4.0.106
	@# Triton's protobuf messages; the client that they come with wants an older protobuf than onnx's.
	$(BIN)/pip install --quiet --no-deps tritonclient==2.73.0
	@# mmsegmentation, apart: other tests are of machines that do not have it.
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/mmsegmentation --requirement tests/mmsegmentation.txt
	touch $@

demo: $(VENV)/.ready
	PATH="$(abspath $(BIN)):$$PATH" RUN="$(RUN)" DATA="$(DATA)" EPOCHS="$(EPOCHS)" docs/demo.sh

test: $(VENV)/.ready
	@# Two processes on two cores: threads inside each would only wait for the other's.
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

# The site of docs/, with the command line and the Python interface: build/site/index.html.
docs: $(VENV)/.ready build/package
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# The C++ library. Its headers come from package registries, unless ONNXRUNTIME_ROOT is set.
cpp:
	test -n "$(ONNXRUNTIME_ROOT)" || deploy/cpp/fetch_headers.sh build/cpp-headers
	cmake -S deploy/cpp -B build/cpp -DONNXRUNTIME_ROOT="$(ONNXRUNTIME_ROOT)" -DTENSORRT_ROOT="$(TENSORRT_ROOT)" -DCMAKE_PREFIX_PATH=$(CURDIR)/build/cpp-headers/usr
	cmake --build build/cpp --parallel

# A thousand damaged files for each parser, instead of the suite's two hundred.
fuzz: $(VENV)/.ready
	SEGDEPLOY_FUZZ_FILES=1000 $(BIN)/pytest tests/test_fuzz.py -k mutated

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/start_up.py
	$(BIN)/python benchmarks/data_loading.py
	$(BIN)/python benchmarks/preprocessing.py
	$(BIN)/python benchmarks/exact_rewrites.py
	$(BIN)/python benchmarks/checkpointing.py

lint: $(VENV)/.ready
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.ready
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/clang-format -i $(CPP)

typecheck: $(VENV)/.ready build/package
	cd build/package && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml --package segdeploy

# mypy and mkdocs cannot follow the folder mapping of an editable install: here is the package as one folder.
build/package: FORCE
	@rm -rf $@ && mkdir -p $@/segdeploy
	@ln -s $(addprefix $(CURDIR)/,$(wildcard deploy/*) models calibration) $@/segdeploy/
FORCE:

clean:
	rm -rf $(VENV) build dist runs *.egg-info
