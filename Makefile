# All commands make the environment themselves; see README.md.
PYTHON ?= python3.11
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install install-prepare demo test test-lab check lint package package-starter gpu-check gpu-wheels clean

install: .venv/.installed

# For scans as the scanner made them.
install-prepare: .venv/.prepare

demo: .venv/.installed
	$(BIN)/python -m scripts.lab.demo

# Two processes, one for each of two cores. Tests of one group stay together; conftest.py says why, and orders all tests.
PYTEST := $(BIN)/pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder $(if $(TIMES),--times $(TIMES))

test: lint .venv/.interoperability .venv/.prepare
	$(PYTEST) -m "not lab"

# What takes long and rarely breaks: benchmarks, studies, the GPU check, the demonstration, learning from a real case.
test-lab: .venv/.interoperability .venv/.prepare
	$(PYTEST) -m lab

# For whoever works here: what can be known in two minutes.
check: lint
	$(PYTEST) -m "not slow and not lab"

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

package: .venv/.installed
	$(BIN)/python -m scripts.lab.package dist

package-starter: .venv/.installed
	$(BIN)/python -m scripts.lab.package dist --starter

# Where a GPU is lent for a short while there may be no package index: `make gpu-wheels`, here, brings into wheels/ what a
# Python with PyTorch, SciPy, TensorBoard, rich, matplotlib and pytest lacks; carry the folder along.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
GPU_PYTHON_VERSION ?= 3.12
GPU_RESULTS ?= runs/gpu_check
gpu-check:
	rm -rf .gpu
	test ! -d wheels || $(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --target .gpu wheels/*.whl
	PYTHONPATH="$(CURDIR)/.gpu:$$PYTHONPATH" $(GPU_PYTHON) -m scripts.lab.gpu_check --output_dir $(GPU_RESULTS) \
		$(if $(GPU_STEPS),--steps $(GPU_STEPS))

gpu-wheels: .venv/.installed
	rm -rf wheels
	grep -E '^(monai|pytorch-ignite|nibabel|fire|jsonschema)==' requirements.txt > .venv/gpu-wheels.txt
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version $(GPU_PYTHON_VERSION) \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest wheels -r .venv/gpu-wheels.txt \
		termcolor attrs referencing rpds-py jsonschema-specifications typing_extensions

# torch first and alone: beside other packages pip may take another build of it.
.venv/.installed: requirements.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

.venv/.dev: requirements-dev.txt .venv/.installed
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

.venv/.prepare: requirements-prepare.txt | .venv/.installed
	$(BIN)/pip install --quiet --no-deps -r requirements-prepare.txt
	touch $@

# For tests that are skipped where these cannot be had.
.venv/.interoperability: requirements-interop.txt | .venv/.dev
	rm -rf .venv/interoperability
	-$(BIN)/pip install --quiet --no-deps --target .venv/interoperability -r requirements-interop.txt
	touch $@

clean:
	rm -rf .venv .gpu wheels runs dist
