# Two commands: `make run` and `make test`. Everything lives in .venv; nothing else of the machine is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test lint install clean

run: $(READY)
	@$(BIN)/trimtab demo

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

install: $(READY)

# The lock is complete, so --no-deps installs exactly it. Where only a CUDA build of torch is on offer, that build does
# not start without its own companions: then, and only then, torch is installed again together with them.
$(READY): requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Trimtab needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Trimtab's packages into $(VENV) (a few minutes the first time)"
	@$(PIP) install -qq --no-deps -r requirements/cpu.txt
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install -qq --force-reinstall "$$(grep '^torch==' requirements/cpu.txt)"
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/trimtab
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info reports
