# All commands make the environment themselves; see README.md.
PYTHON ?= python3.11
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test package clean

demo: .venv/.installed
	$(BIN)/python -m scripts.demo

test: .venv/.installed .venv/.interoperability
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

package: .venv/.installed
	$(BIN)/python -m scripts.package dist

# torch first and alone: beside other packages pip may take another build of it.
.venv/.installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.txt)"
	$(BIN)/pip install --quiet -r requirements.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# For tests that are skipped where these cannot be had.
.venv/.interoperability: requirements-interop.txt | .venv/.installed
	rm -rf .venv/interoperability
	-$(BIN)/pip install --quiet --no-deps --target .venv/interoperability -r requirements-interop.txt
	touch $@

clean:
	rm -rf .venv runs dist
