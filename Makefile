# make demo       the whole chain on a small procedural data set: train, export, predict, measure
# make lint       ruff and mypy --strict: seconds
# make test-fast  the tests that need neither PyTorch nor a training: under a minute
# make campaign   damaged inputs by the thousand for an hour (CAMPAIGN_SECONDS, CAMPAIGN_SEED); make test has two minutes of it
# make test       every check: lint and all tests
# make reference  writes docs/commands.md anew from the commands, and the table of files in docs/export.md from its report
# make docs       the guide as a site in site/, every link of it checked: open site/index.html (search needs a
#                 server: python3 -m http.server --bind 127.0.0.1 --directory site)
# make dist       the wheel and the source distribution, checked for PyPI
# Each sets up .venv first, and beside its packages older importers of ONNX files, which tests start as processes of their own;
# ONNX Runtime's wheel for CPUs, which tests of the images install; and the npm package onnxruntime-web for tests in Chromium
# (apt install chromium npm; without them these tests are skipped).
# Another interpreter: make PYTHON=python3.12 test. More cores: make WORKERS=4 test

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
IMPORTERS := .venv/importers
BROWSER := .venv/onnxruntime-web
BROWSER_VERSION := 1.30.0
WHEELS := .venv/wheels

DEMO_TRAINING := --widths 16,32,64,128 --lr 1e-3 --batch-size 8 --epochs 6 --loss bce+dice

CAMPAIGN_SECONDS ?= 3500
CAMPAIGN_SEED ?= 1

# Processes that run tests, one core each; see tests/conftest.py for who gets what.
WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

CAMPAIGN = $(BIN)/pytest --campaign-seconds $(CAMPAIGN_SECONDS) --soak-seconds $(CAMPAIGN_SECONDS) \
	--campaign-seed $(CAMPAIGN_SEED) --campaign-folder campaign

FAST := tests/runtime tests/benchmarks/reporting/test_report.py tests/benchmarks/test_results.py \
	tests/unet_core/data/test_pairs.py tests/unet_core/data/test_validation_split.py tests/unet_core/data/test_faults.py \
	tests/unet_core/data/test_labels.py tests/unet_core/data/test_labels_decoding.py tests/unet_core/data/test_records.py \
	tests/unet_core/evaluation/test_best_epoch.py tests/unet_core/evaluation/test_metrics.py tests/unet_core/reporting/test_curves.py \
	tests/unet_core/reporting/test_panels.py tests/unet_core/reporting/test_progress.py tests/unet_core/test_turntable.py

.PHONY: setup lint test-fast test campaign reference docs dist demo clean

setup: $(READY) $(IMPORTERS)/.ready $(WHEELS)/.ready $(BROWSER)/$(BROWSER_VERSION)
	@echo "Ready. To use it: . .venv/bin/activate"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("needs Python 3.11 or newer: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(IMPORTERS)/.ready: tests/importers/requirements.txt | $(READY)
	rm -rf $(IMPORTERS)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --target $(IMPORTERS) -r $<
	@mkdir -p $(IMPORTERS)
	@touch $@

# Without npm, or where it cannot load the package, the tests of the page that runs a model in a browser are skipped.
$(BROWSER)/$(BROWSER_VERSION): | $(READY)
	@mkdir -p $(BROWSER)
	@if npm install --prefix $(BROWSER) --no-save --no-audit --no-fund --ignore-scripts onnxruntime-web@$(BROWSER_VERSION); \
		then touch $@; else echo "onnxruntime-web: not installed; tests of exported web pages are skipped"; fi

$(WHEELS)/.ready: constraints.txt | $(READY)
	rm -rf $(WHEELS)
	$(BIN)/python -m pip download --disable-pip-version-check --no-deps -c constraints.txt --dest $(WHEELS) onnxruntime
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-fast: $(READY)
	$(PYTEST) -m "not slow" $(FAST)

test: lint $(IMPORTERS)/.ready $(WHEELS)/.ready $(BROWSER)/$(BROWSER_VERSION)
	$(PYTEST)

reference: $(READY)
	PYTHONPATH=tests/support $(BIN)/python tests/support/command_reference.py
	PYTHONPATH=tests/support $(BIN)/python tests/support/which_table.py

# mkdocs-material would print an advertisement for its successor.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# The soak and the areas, one after another, are two processes: pytest-xdist would let an area wait behind the soak.
campaign: $(READY)
	@mkdir -p campaign
	$(CAMPAIGN) tests/campaign/test_soak.py > campaign/soak.log 2>&1 & soak=$$!; \
		$(CAMPAIGN) tests/campaign --ignore tests/campaign/test_soak.py; areas=$$?; \
		wait $$soak; soaked=$$?; tail -n 3 campaign/soak.log; \
		PYTHONPATH=tests/support $(BIN)/python -c 'import campaigns; print(campaigns.table("campaign"))' > campaign/table.md; \
		cat campaign/table.md; exit $$((areas + soaked))

# Each step leaves a file, so a second call does only what is missing. Tables go to files; the end names the pictures.
demo: demo/.predicted demo/bench/report.md
	@echo
	@grep -E '^(typical|worst) image' demo/metrics.txt
	@echo "overlays       demo/overlays/"
	@echo "cut-outs       demo/cutouts/"
	@echo "masks          demo/masks/"
	@echo "training       demo/run/curves.png, demo/run/metrics.csv"
	@echo "metrics        demo/metrics.txt"
	@echo "benchmarks     demo/bench/report.md"

demo/.data: | $(READY)
	rm -rf demo/data
	$(BIN)/python -m unet_core.turntable demo/data --cars 8
	@touch $@

demo/.trained: demo/.data
	rm -rf demo/run
	$(BIN)/python -m unet_core.train demo/data --out demo/run $(DEMO_TRAINING)
	@touch $@

demo/run/model.onnx: demo/.trained
	$(BIN)/unet-export demo/run/model.pth

demo/.predicted: demo/run/model.onnx
	$(BIN)/unet-predict demo/run/model.onnx demo/data/val_images -o demo/masks --device cpu
	$(BIN)/unet-predict demo/run/model.onnx demo/data/val_images -o demo/overlays --format overlay --device cpu
	$(BIN)/unet-predict demo/run/model.onnx demo/data/val_images -o demo/cutouts --format cutout --device cpu
	$(BIN)/python -m unet_core.evaluate demo/run/model.onnx demo/data --pictures demo/pictures --device cpu > demo/metrics.txt
	@touch $@

demo/bench/report.md: demo/run/model.onnx
	$(BIN)/unet-bench demo/run/model.onnx --checkpoint demo/run/model.pth --data demo/data --out demo/bench --quick --device cpu > /dev/null

clean:
	rm -rf campaign demo runs build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
