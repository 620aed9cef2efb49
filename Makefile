# make demo    the main job on the bundled adapters: comparison table on the screen, figures and tables in out/
# make figures every figure as PDF and PNG in out/figures/: the paper's, and those of the bundled adapters
# make dashboard  the same in the browser, until Ctrl-C; PORT=8600 for another port
# make test    ruff, pyright, import-linter, pytest
# make bench   the performance targets, with ratios against a peer (installs it into an environment of its own)
# make bench-training  what a training step costs against PEFT's LoRA: our version of the paper's table 4
# Every install goes through constraints.txt; running a target twice reinstalls nothing.

PYTHON ?= python3
PORT ?= 8501
BIN := .venv/bin
ADAPTERS := $(patsubst %/adapter_config.json,%,$(sort $(wildcard data/*/adapter_config.json)))
FIGURES := figure4 spectra heatmap threshold_sweep
RUN := out/synthetic-run

.PHONY: demo dashboard figures test bench bench-training clean

demo: .venv/.installed
	$(BIN)/bora-analysis compare $(ADAPTERS)
	$(BIN)/bora-analysis analyze $(ADAPTERS) --format csv -o out/tables
	@for name in $(FIGURES); do $(BIN)/bora-analysis figure $$name $(ADAPTERS) \
		-o out/figures/$$name.pdf -o out/figures/$$name.png 2>/dev/null || exit 1; \
	done
	@echo && echo "Tables: out/tables   Figures: out/figures"

dashboard: .venv/.installed
	@$(BIN)/bora-analysis dashboard --port $(PORT)

# No checkpoints are bundled: trajectory shows a synthetic run, whose spectrum grows and flattens.
figures: .venv/.installed
	@rm -rf $(RUN)
	@for step in 10 20 40 60 80; do $(BIN)/bora-analysis synth --method bora --scale 0.0$$step \
		--decay 1.$$((9 - step / 10)) -o $(RUN)/checkpoint-$$step 2>/dev/null || exit 1; done
	@for name in figure1 figure2 figure3 optimal_blocks; do \
		$(BIN)/bora-analysis figure $$name -o out/figures/$$name.pdf -o out/figures/$$name.png || exit 1; \
	done
	@for name in $(FIGURES) pareto; do $(BIN)/bora-analysis figure $$name $(ADAPTERS) \
		-o out/figures/$$name.pdf -o out/figures/$$name.png || exit 1; \
	done
	@$(BIN)/bora-analysis figure trajectory $(RUN) -o out/figures/trajectory.pdf -o out/figures/trajectory.png

test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest

bench: .venv/.installed .venv-peer/.installed
	$(BIN)/python benchmarks/run.py --peer .venv-peer/bin/gradience

bench-training: .venv/.installed-dev
	$(BIN)/python benchmarks/training.py

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
