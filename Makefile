# make demo    the main job on the bundled adapters: comparison table on the screen, figures and tables in out/
# make figures every figure as PDF and PNG in out/figures/: the paper's, and those of the bundled adapters
# make dashboard  the dashboard, until Ctrl-C; PORT=8600 for another port
# make adapters  train the bundled adapters again (hours)
# make screenshots  the README's pictures of the dashboard, from the browser tests, which need chromium
# make docs    the documentation as a site in out/docs, warnings are errors; `make docs-open` serves it on PORT
# make test    ruff, pyright, import-linter, pytest
# make test-peft   PEFT's own tests with our methods; FILES=config,decoder for some of them (contrib/peft/README.md)
# make patch-peft  BoRA as a patch series for PEFT, applied to its source distribution and tested there
# make bench   the performance targets, compared with two peers (installed into a separate environment)
# make bench-training  the cost of a training step relative to PEFT's LoRA: our version of the paper's table 4
# Every installation uses constraints.txt and has only what its target needs, so make demo comes without PyTorch. A second
# run of a target reinstalls nothing.

PYTHON ?= python3
PORT ?= 8501
BIN := .venv/bin
INSTALL := pip install --quiet --disable-pip-version-check -c constraints.txt
# The trained adapters that can be read without the base model (unlike DoRA's), and those of the figures.
SHOWN := $(addprefix data/trained-,lora-r8 lora-r16 lora-r32 melora-r8-n4 bora-r8-b8 bora-r8-b16)
ADAPTERS := $(SHOWN) $(addprefix data/trained-,hydralora-r4 sbora-fa-r8 sbora-fb-r8)
ABLATIONS := $(addprefix data/trained-,bora-r8-b8 bora-r8-b8-no-exp bora-r8-b8-no-norm)
RUNS := $(addprefix data/runs/,lora-r8 melora-r8-n4 bora-r8-b8 bora-r8-b16)
FIGURES := figure4 spectra heatmap threshold_sweep
SHOTS := spectra-light lab-light layers-dark

.PHONY: adapters bench bench-training bundled-figures clean dashboard demo docs docs-open figures patch-peft \
	screenshots test test-peft

demo: .venv/.installed
	$(BIN)/bora-analysis compare $(ADAPTERS) 2>/dev/null
	@$(BIN)/bora-analysis factors $(RUNS) -o out/tables/factors.csv >/dev/null 2>&1
	@$(BIN)/bora-analysis analyze $(ADAPTERS) --format csv -o out/tables >/dev/null 2>&1
	@$(MAKE) --no-print-directory bundled-figures
	@echo && echo "Tables: out/tables   Figures: out/figures"

bundled-figures: .venv/.installed
	@for name in $(FIGURES) pareto; do $(BIN)/bora-analysis figure $$name $(SHOWN) \
		-o out/figures/$$name.pdf -o out/figures/$$name.png 2>/dev/null || exit 1; \
	done
	@for name in accuracy_by_rank capture; do $(BIN)/bora-analysis figure $$name data/$$name.csv \
		-o out/figures/$$name.pdf -o out/figures/$$name.png 2>/dev/null || exit 1; \
	done
	@$(BIN)/bora-analysis figure spectra $(ABLATIONS) \
		-o out/figures/ablations.pdf -o out/figures/ablations.png 2>/dev/null
	@$(BIN)/bora-analysis figure trajectory $(RUNS) --metric effective_rank --projection q \
		-o out/figures/trajectory.pdf -o out/figures/trajectory.png 2>/dev/null

dashboard: .venv/.installed-dashboard
	@$(BIN)/bora-analysis dashboard --port $(PORT)

figures: bundled-figures
	@for name in figure1 figure2 figure3 optimal_blocks; do \
		$(BIN)/bora-analysis figure $$name -o out/figures/$$name.pdf -o out/figures/$$name.png || exit 1; \
	done
	@$(BIN)/bora-analysis figure similarity data/trained-lora-r8 data/trained-bora-r8-b8 --modules layer.3 \
		-o out/figures/similarity.pdf -o out/figures/similarity.png

# Trains the bundled adapters: hours on two cores; a second call continues an interrupted one.
adapters: .venv/.installed-dev
	$(BIN)/python data/prepare.py
	$(BIN)/python data/make_adapters.py
	$(BIN)/python data/make_experiments.py

screenshots: .venv/.installed-dev
	$(BIN)/pytest tests/app/test_dashboard_browser.py -k wide_and_on_a_phone
	@mkdir -p app/screenshots
	@$(BIN)/python -c 'import sys; from PIL import Image; [Image.open(f"out/screenshots/{name}.png").convert("RGB") \
		.crop((0, 0, 1280, 1100)).quantize(256).save(f"app/screenshots/{name}.png", optimize=True) for name in sys.argv[1:]]' $(SHOTS)

docs: .venv/.installed-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file docs/site/mkdocs.yml
	@echo "out/docs/index.html"

docs-open: docs
	@$(BIN)/python -m http.server --bind localhost --directory out/docs $(PORT)

# Some of the tests start commands, which are not to be compiled again each time, whatever the environment says.
test: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

test-peft: .venv/.installed-dev
	$(BIN)/python contrib/peft/run_suite.py $(if $(FILES),--only $(FILES))

patch-peft: .venv/.installed-dev
	$(BIN)/python contrib/peft/export.py --check $(if $(FILES),--only $(FILES))

bench: .venv/.installed-dev .venv-peer/.installed
	$(BIN)/python benchmarks/run.py --gradience .venv-peer/bin/gradience --adaptersentry .venv-peer/bin/adaptersentry
	$(BIN)/python benchmarks/family.py
	$(BIN)/python benchmarks/dense.py
	$(BIN)/python benchmarks/dashboard.py
	$(BIN)/python benchmarks/sweep.py --peer .venv-peer/bin/adaptersentry

bench-training: .venv/.installed-dev
	$(BIN)/python benchmarks/training.py

.venv/.python:
	$(PYTHON) -m venv .venv
	@touch $@

# A larger installation includes the smaller ones.
.venv/.installed: .venv/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) -e .
	@touch $@

.venv/.installed-dashboard: .venv/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) -e '.[dashboard]'
	@touch .venv/.installed $@

.venv/.installed-docs: .venv/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) -e '.[docs]'
	@touch .venv/.installed $@

.venv/.installed-dev: .venv/.python pyproject.toml constraints.txt
	$(BIN)/$(INSTALL) -e '.[all,dev]'
	@touch .venv/.installed .venv/.installed-dashboard .venv/.installed-docs $@

.venv-peer/.installed: benchmarks/peer-requirements.txt constraints.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/$(INSTALL) -r benchmarks/peer-requirements.txt
	@touch $@

clean:
	rm -rf .venv .venv-peer out
