# Two commands for a newcomer: `make demo` and `make test`. Everything lives in .venv*, nothing global.
PYTHON ?= python3
BASE = .venv
DEV = .venv-dev
PARALLEL = --numprocesses 2 --dist worksteal
PIP = -m pip --disable-pip-version-check --quiet install --constraint requirements/constraints.txt

.PHONY: demo test check format soak figures train-small wheelhouse clean

demo: $(BASE)/.installed ## draw a coil, inspect it, write demo/report.html
	$(BASE)/bin/steelsight demo

test: $(DEV)/.installed ## all tests
	$(DEV)/bin/python -m pytest $(PARALLEL)

check: $(DEV)/.installed ## format, lint, types, tests
	$(DEV)/bin/ruff format --check
	$(DEV)/bin/ruff check
	$(DEV)/bin/mypy
	$(DEV)/bin/python -m pytest $(PARALLEL)

format: $(DEV)/.installed
	$(DEV)/bin/ruff format
	$(DEV)/bin/ruff check --fix

soak: $(DEV)/.installed ## the long tests
	$(DEV)/bin/python -m pytest -m soak --timeout 0

figures: $(DEV)/.installed ## figures of the shipped bundle on the real frames in ../shared
	$(DEV)/bin/steelsight inspect ../shared/data/severstal/images --out out/real --overwrite --no-overlays
	$(DEV)/bin/python benchmarks/real_frames.py out/real/results.jsonl ../shared

train-small: $(DEV)/.installed ## a small network on the real frames in ../shared, from random weights
	$(DEV)/bin/steelsight train ../shared/data/severstal --start random --plan small --out out/train-small \
		--terms 'research use; the frames belong to PAO Severstal'

EXTRAS = service
wheelhouse: ## wheels of the service and all it needs, for machines without internet: dist/wheelhouse
	rm -rf dist/wheelhouse
	mkdir -p dist/wheelhouse
	$(PYTHON) -m pip --disable-pip-version-check --quiet wheel --wheel-dir dist/wheelhouse \
		--constraint requirements/constraints.txt '.[$(EXTRAS)]'
	cd dist/wheelhouse && sha256sum *.whl > SHA256SUMS
	@echo "Take dist/wheelhouse along, then there:  cd wheelhouse && sha256sum --check --quiet SHA256SUMS"
	@echo "  python3 -m pip install --no-index --find-links . 'steelsight[$(EXTRAS)]'"

clean:
	rm -rf $(BASE) $(DEV) dist

$(BASE)/.installed: pyproject.toml requirements/constraints.txt $(shell find src -type f -not -name '*.pyc')
	@echo "Setting up $(BASE) (about 20 s, once)"
	@test -d $(BASE) || $(PYTHON) -m venv $(BASE)
	@$(BASE)/bin/python $(PIP) '.[service]'
	@touch $@

$(DEV)/.installed: pyproject.toml requirements/constraints.txt
	@echo "Setting up $(DEV) with the development tools and CPU torch (some minutes, once)"
	@test -d $(DEV) || $(PYTHON) -m venv $(DEV)
	@$(DEV)/bin/python $(PIP) --editable '.[dev]'
	@touch $@
