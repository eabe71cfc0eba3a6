# `make demo` explains the sample scenes (and PHOTOS="a.jpg b.jpg"); `make test` runs the tests that are not slow.
# Both create .venv and install what they need.
PYTHON ?= python3
PHOTOS ?=
BIN := .venv/bin

.PHONY: demo test check bench figures screenshots notebooks browser clean

demo: .venv/.installed
	$(BIN)/gradlight demo $(PHOTOS) --out out

test: .venv/.dev
	$(BIN)/python -m pytest -n auto -m "not slow"

check: .venv/.dev
	bash .ci/run

# About twenty-five minutes on two idle cores; `.venv/bin/python benchmarks/bench.py NAME` runs one benchmark.
bench: .venv/.bench
	$(BIN)/python benchmarks/bench.py

# The numbers of the bundled networks in docs/results.md.
figures: .venv/.dev
	$(BIN)/python benchmarks/scenes_map.py
	$(BIN)/gradlight evaluate caption_truth
	$(BIN)/gradlight evaluate word_pointing

screenshots: .venv/.dev browser
	$(BIN)/python benchmarks/screenshots.py

notebooks: .venv/.dev
	$(BIN)/python notebooks/execute.py

# A browser (Debian) and the packages for the tests of the viewer; without a browser these tests are skipped.
browser: tests/widgets/node_modules
	command -v chromium >/dev/null || { apt-get -qq update && apt-get -qq install --yes chromium >/dev/null; }

tests/widgets/node_modules: tests/widgets/package.json
	cd tests/widgets && npm install --no-package-lock --no-audit --no-fund --silent
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ .venv/.installed

.venv/.bench: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[bench]"
	touch $@ .venv/.installed

clean:
	rm -rf .venv out build *.egg-info tests/widgets/node_modules
