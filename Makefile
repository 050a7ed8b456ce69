# Two commands: `make demo` and `make test`. Each makes .venv on the first run (python 3.11 or newer; the
# libraries take a few GB and some minutes once) and starts at once after that.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)
EXTRAS ?= onnxruntime,dev
HOURS ?= 3
BIN := .venv/bin
READY := .venv/.installed
EDGEDIFF := $(BIN)/edgediff
DEMO := demo
BUNDLE := $(DEMO)/glyph-balanced.edgediff

.PHONY: help demo test test-slow test-full-size train clean
.DEFAULT_GOAL := help

help:
	@echo "make demo            build, verify, run, measure and report one bundle in $(DEMO)/"
	@echo "make test            ruff, mypy and the quick tests"
	@echo "make test-slow       the tests that take minutes"
	@echo "make test-full-size  the tests at Stable Diffusion 1.5 sizes (over 8 GB of memory)"
	@echo "make train HOURS=3   train the embedded model again, in build/training"
	@echo "make clean           remove what the commands above made, .venv included"

$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "edgediff needs Python 3.11 or newer; give its path: make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || { rm -rf .venv; $(PYTHON) -m venv .venv; } || \
		{ echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }
	@echo "installing edgediff[$(EXTRAS)] into .venv (the first time takes minutes and a few GB)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-full-size: $(READY)
	$(BIN)/python -m pytest -m full_size

demo: $(READY)
	@mkdir -p $(DEMO)
	$(EDGEDIFF) build glyph --recipe balanced --target host --out $(BUNDLE) --overwrite
	$(EDGEDIFF) verify $(BUNDLE)
	$(EDGEDIFF) run $(BUNDLE) "red heart" $(DEMO)/red-heart.png --seed 0
	$(EDGEDIFF) run $(BUNDLE) "grinning cat face" $(DEMO)/cat.png --seed 0
	$(EDGEDIFF) run $(BUNDLE) "hot beverage" $(DEMO)/coffee.png --seed 0
	$(EDGEDIFF) profile $(BUNDLE)
	$(EDGEDIFF) evaluate $(BUNDLE) --prompts 16 --out $(DEMO)/evaluation.json
	$(EDGEDIFF) report $(BUNDLE) --evaluation $(DEMO)/evaluation.json --out $(DEMO)/report.html
	@echo
	@echo "bundle    $(BUNDLE)"
	@echo "pictures  $(DEMO)/red-heart.png $(DEMO)/cat.png $(DEMO)/coffee.png"
	@echo "report    $(DEMO)/report.html"

train: $(READY)
	$(BIN)/python -m edgediff.embedded.train all --work build/training --hours $(HOURS)

clean:
	rm -rf .venv .venv-* $(DEMO) .mypy_cache .ruff_cache .pytest_cache
