# `make demo` explains the sample scenes (and PHOTOS="a.jpg b.jpg"); `make test` runs the tests that are not slow.
# Both make .venv and install what they need.
PYTHON ?= python3
PHOTOS ?=
BIN := .venv/bin

.PHONY: demo test check figures clean

demo: .venv/.installed
	$(BIN)/gradlight demo $(PHOTOS) --out out

test: .venv/.dev
	$(BIN)/python -m pytest -n auto -m "not slow"

check: .venv/.dev
	bash .ci/run

figures: .venv/.dev
	$(BIN)/python benchmarks/scenes_map.py
	$(BIN)/gradlight evaluate caption_truth
	$(BIN)/gradlight evaluate word_pointing

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ .venv/.installed

clean:
	rm -rf .venv out build *.egg-info
