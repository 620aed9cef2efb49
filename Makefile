# make demo    the main job on the bundled adapters: comparison table on the screen, figures and tables in out/
# make test    ruff, pyright, import-linter, pytest
# make bench   the performance targets, with ratios against a peer (installs it into an environment of its own)
# Every install goes through constraints.txt; running a target twice reinstalls nothing.

PYTHON ?= python3
BIN := .venv/bin
ADAPTERS := $(patsubst %/adapter_config.json,%,$(sort $(wildcard data/*/adapter_config.json)))
FIGURES := figure4 spectra heatmap threshold_sweep

.PHONY: demo test bench clean

demo: .venv/.installed
	$(BIN)/bora-analysis compare $(ADAPTERS)
	$(BIN)/bora-analysis analyze $(ADAPTERS) --format csv -o out/tables
	@for name in $(FIGURES); do for suffix in pdf png; do \
		$(BIN)/bora-analysis figure $$name $(ADAPTERS) -o out/figures/$$name.$$suffix 2>/dev/null || exit 1; \
	done; done
	@echo && echo "Tables: out/tables   Figures: out/figures"

test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest

bench: .venv/.installed .venv-peer/.installed
	$(BIN)/python benchmarks/run.py --peer .venv-peer/bin/gradience

.venv/.python:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

.venv-peer/.installed: benchmarks/peer-requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r benchmarks/peer-requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-peer out
