# Two commands do everything: `make demo` and `make test`. Each builds .venv by itself when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.medsis-installed
INSTALL := $(VENV)/bin/pip install --quiet --no-compile --no-deps

.PHONY: demo test test-fast lint count clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version) found; set PYTHON=..." >&2; exit 2; }
	@echo "building $(VENV) (about three minutes, once)"
	@$(PYTHON) -m venv $(VENV)
# pip installs and compiles one package after the other: the half that is torch beside the rest, then all modules on all cores.
	@awk 'BEGIN { part = "rest" } /^[A-Za-z]/ { part = /^(nvidia|torch|triton)/ ? "torch" : "rest" } { print > ("$(VENV)/" part ".txt") }' constraints.txt
	@printf 'torch\nrest\n' | xargs -P 2 -I{} sh -c '$(INSTALL) --require-hashes --requirement $(VENV)/{}.txt > $(VENV)/{}.log 2>&1 || { cat $(VENV)/{}.log >&2; exit 1; }'
	@$(INSTALL) --no-build-isolation --editable . > $(VENV)/install.log 2>&1 || { cat $(VENV)/install.log >&2; exit 1; }
	@$(PY) -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true  # templates among the modules do not compile
	@$(PY) -c 'import torch, torchvision, nibabel, dipy, nilearn, lpips, tyro, pytest'
	@touch $(STAMP)

demo: $(STAMP)  ## prepare, train, test and compare on embedded data; ends with a report
	@$(PY) scripts/demo.py

# One process more than cores: some tests wait for a Slurm, a signal, a lock.
test: $(STAMP)  ## all tests, on as many cores as there are
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $$(($$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP)  ## the quick tests alone, for the inner loop
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile -m "not slow"

lint: $(STAMP)  ## style and types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

count:  ## lines of code by folder
	@$(PYTHON) benchmarks/count_code.py

clean:  ## remove the environment, caches and the demo's output
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
