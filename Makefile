# Two commands: `make demo` and `make test`. Each makes .venv on the first run (python 3.11 or newer; the
# libraries take a few GB and some minutes once) and starts at once after that.

PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	then echo $$python; break; fi; done)
EXTRAS ?= onnxruntime,coreml,executorch,ethosu,dev
HOURS ?= 3
BIN := .venv/bin
READY := .venv/.installed
EDGEDIFF := $(BIN)/edgediff
AARCH64_PACKAGES := g++ g++-aarch64-linux-gnu nlohmann-json3-dev qemu-user-static adb
DEMO := demo
BUNDLE := $(DEMO)/glyph-balanced.edgediff

.PHONY: help demo test readers kotlin-runner runner test-slow test-aarch64 test-optimum train clean
.DEFAULT_GOAL := help

help:
	@echo "make demo            build, verify, run, measure and report one bundle in $(DEMO)/"
	@echo "make test            ruff, mypy and the quick tests; the Kotlin tests where a JDK and Maven are"
	@echo "make readers         the readers of bundles (Python, C++, Kotlin) against each other, 100,000 mutations"
	@echo "make test-slow       the tests that take minutes"
	@echo "make test-optimum    that optimum draws our pictures (in .venv-optimum, a few GB more)"
	@echo "make test-aarch64    the C++ runner here and for aarch64 under qemu, adb from end to end; on Debian first"
	@echo "                     apt install $(AARCH64_PACKAGES)"
	@echo "make runner          the C++ runner for phones and boards, for edgediff profile --device adb"
	@echo "make kotlin-runner   the command-line runner of android_demo (JDK 17, Maven)"
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
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile
	@PYTHON=$(BIN)/python bash android_demo/test.sh

# Another seed, or other readers: make readers READERS="--seed 7 --count 1000000"
readers: $(READY)
	@if command -v mvn >/dev/null; then $(MAKE) --no-print-directory kotlin-runner; fi
	$(BIN)/python -m tests.readers $(READERS)

# The bundle runner for any JDK 17: java -jar android_demo/runner/target/edgediff-run.jar BUNDLE "prompt" out.png
kotlin-runner:
	mvn -B -ntp -q -f android_demo/pom.xml -pl runner -am package -DskipTests

# For aarch64, from ExecuTorch's wheel, into ~/.cache/edgediff/runners: needs a compiler, no executorch here.
runner: $(READY)
	$(BIN)/python -m edgediff.links._build_runner

test-aarch64: $(READY)
	@for tool in g++ aarch64-linux-gnu-g++ qemu-aarch64-static adb; do command -v $$tool >/dev/null || \
		{ echo "there is no $$tool: apt install $(AARCH64_PACKAGES)" >&2; exit 1; }; done
	@$(BIN)/python -c "import executorch.runtime" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS),executorch]"
	$(BIN)/python -m pytest -m aarch64

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# optimum-onnx asks for older versions of diffusers and transformers than edgediff does.
.venv-optimum/.installed: Makefile | $(READY)
	rm -rf .venv-optimum
	$(PYTHON) -m venv .venv-optimum
	.venv-optimum/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.1.3 \
		onnxruntime==1.32.0 diffusers==0.39.0 transformers==4.57.6 optimum-onnx==0.1.0
	@touch $@

test-optimum: $(READY) .venv-optimum/.installed
	EDGEDIFF_OPTIMUM_PYTHON=$(CURDIR)/.venv-optimum/bin/python $(BIN)/python -m pytest -m optimum

demo: $(READY)
	@mkdir -p $(DEMO)
	$(EDGEDIFF) build glyph --recipe balanced --target host --out $(BUNDLE) --overwrite
	$(EDGEDIFF) verify $(BUNDLE)
	$(EDGEDIFF) run $(BUNDLE) "red heart" $(DEMO)/red-heart.png --seed 0
	$(EDGEDIFF) run $(BUNDLE) "grinning cat" $(DEMO)/grinning-cat.png --seed 0
	$(EDGEDIFF) run $(BUNDLE) "rocket" $(DEMO)/rocket.png --seed 0
	$(EDGEDIFF) profile $(BUNDLE)
	$(EDGEDIFF) evaluate $(BUNDLE) --prompts 16 --out $(DEMO)/evaluation.json
	$(EDGEDIFF) report $(BUNDLE) --evaluation $(DEMO)/evaluation.json --out $(DEMO)/report.html
	@echo
	@echo "bundle    $(BUNDLE)"
	@echo "pictures  $(DEMO)/red-heart.png $(DEMO)/grinning-cat.png $(DEMO)/rocket.png"
	@echo "report    $(DEMO)/report.html"

train: $(READY)
	$(BIN)/python -m edgediff.embedded.train all --work build/training --hours $(HOURS)

clean:
	rm -rf .venv .venv-* $(DEMO) .mypy_cache .ruff_cache .pytest_cache build/kotlin android_demo/*/target
