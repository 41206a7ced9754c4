# Start here: `make` or `make help` lists the targets.
# The environment in .venv is created once, from settings.ini and constraints.txt.

PYTHON ?=
JOBS ?= 2
ARGS ?=
AUDIO ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
HERE := $(CURDIR)

# The stamp contains the path of the project. An environment that was moved or copied, or has lost its Python, is rebuilt.
READY := $(shell test -x $(PY) && cat $(STAMP) 2>/dev/null)
ifneq ($(READY),$(HERE))
STALE := stale
endif

# Set-up compiles no bytecode, so Python must store that of imported modules: torch then imports in 2 s instead of 6.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup check test test-portable test-browser ablations checkpoints pictures film docs lab export readme hooks release-check clean stale

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=/path/to/python3.12  the Python to build on, 3.11 or later (default: the first that fits)"
	@echo "  AUDIO=folder                your own wav, flac, ogg, mp3 or mp4 files for the ablations"
	@echo "  JOBS=2                      test processes      ARGS='-k name'  more options for pytest or JupyterLab"

ablations: $(STAMP)  ## run the ablations and write runs/report.html [AUDIO=folder]
	@$(VENV)/bin/sashimi-wb ablations $(if $(AUDIO),--audio "$(AUDIO)")

test: $(STAMP)  ## all tests: exports, notebooks, pytest, import rule, browser, ruff
	@$(PY) -m pytest -n $(JOBS) --dist worksteal --durations=10 -rs $(ARGS)

test-portable: $(STAMP)  ## numerical tests with other instruction sets and two threads; part of `make test`
	@$(PY) -m pytest tests/test_machines.py $(ARGS)

check: $(STAMP)  ## quick checks: lint, exports, import rule, quick tests, changed notebooks [FOLDER=ssm]
	@$(PY) tests/check.py $(FOLDER)

test-browser: $(STAMP)  ## the interactive pages in a real browser; part of `make test` [CHROMIUM=/path/to/chrome]
	@$(PY) -c 'import sys; sys.path.insert(0, "tests"); import browser; sys.exit(browser.missing() or 0)'
	@$(PY) -m pytest tests/browser $(ARGS)

checkpoints: $(STAMP)  ## retrain the two models of data/checkpoints, some minutes each
	@set -e; for name in music digits; do \
		$(VENV)/bin/sashimi-wb train demo-$$name --audio data/$$name --runs runs/demo-$$name; \
		cp "$$(ls -t runs/demo-$$name/*/model.safetensors | head -1)" data/checkpoints/$$name.safetensors; \
	done

pictures: $(STAMP)  ## retake the pictures of the pages and the first lesson (needs Chromium) [ARGS="layouts runs"]
	@$(PY) tests/pictures.py $(ARGS)

film: $(STAMP)  ## retake the film of a page in use, nbs/images/explore.webp (needs Chromium)
	@$(PY) tests/film.py

docs: $(STAMP)  ## build the site in docs/_build/html from executed notebooks [ARGS="nbs/tokens howto"]
	@$(PY) docs/build_site.py $(ARGS)

lab: $(STAMP)  ## open the start page of the notebooks in JupyterLab, on this machine only
	@$(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir="$(HERE)" --LabApp.default_url=/lab/tree/nbs/start.ipynb \
		--LabApp.news_url= --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
		--LabApp.extension_manager=readonly $(if $(filter 0,$(shell id -u)),--allow-root) $(ARGS)

setup: $(STAMP)  ## create or update .venv only (other targets do so when they need it)

export: $(STAMP)  ## write the package from the notebooks, then clean them
	@$(VENV)/bin/nbdev_export && $(VENV)/bin/nbdev_clean

readme: $(STAMP)  ## write README.md from nbs/index.ipynb
	@$(PY) tests/readme.py

release-check: $(STAMP)  ## build source distribution and wheel, check them, install the wheel and use it
	@$(PY) tests/release.py

hooks: $(STAMP)  ## once per clone: git hooks for notebooks (nbdev; also writes your Jupyter config)
	@$(VENV)/bin/nbdev_install_hooks

clean:  ## remove caches and build leftovers (.venv and runs stay)
	@rm -rf build dist docs/_build lightning_logs .pytest_cache .ruff_cache .hypothesis
	@find . \( -path ./$(VENV) -o -path ./runs -o -path ./.git \) -prune -o -type d \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -print | while IFS= read -r d; do rm -rf "$$d"; done

stale:

# An unfinished environment has no stamp and is rebuilt; one whose requirements have changed is updated.
# Python 3.11 to 3.13 are preferred, since the pinned versions of nbdev and its dependencies were tested with them.
$(STAMP): settings.ini setup.py constraints.txt pyproject.toml $(STALE)
	@set -e; \
	if [ "$(READY)" != "$(HERE)" ]; then \
		fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, int(sys.argv[1])))'; \
		python="$(PYTHON)"; \
		if [ -z "$$python" ]; then \
			for below in 14 99; do for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
				if [ -z "$$python" ] && "$$p" -c "$$fits" $$below 2>/dev/null; then python=$$p; fi; \
			done; done; \
		fi; \
		if [ -z "$$python" ]; then \
			echo "set-up: Python 3.11 or later is needed, found $$(python3 --version 2>&1 || true)." >&2; \
			echo "Install one (https://www.python.org), or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		if ! "$$python" -c "$$fits" 99 2>/dev/null; then \
			echo "set-up: Python 3.11 or later is needed, PYTHON=$$python is $$("$$python" --version 2>&1 || true)." >&2; \
			echo "Name another one: make PYTHON=/path/to/python3.12" >&2; exit 1; \
		fi; \
		if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
			echo "set-up: $$python cannot make virtual environments (no module ensurepip or venv)." >&2; \
			echo "On Debian or Ubuntu: apt install python3-venv. Or name another Python: make PYTHON=..." >&2; exit 1; \
		fi; \
		python=$$("$$python" -c 'import sys; print(sys._base_executable if sys.prefix != sys.base_prefix else sys.executable)'); \
		echo "set-up: creating $(VENV) with $$("$$python" --version), once: some minutes, 2 to 7 GB"; \
		rm -rf $(VENV); \
		"$$python" -m venv $(VENV); \
	else echo "set-up: requirements have changed, updating $(VENV)"; fi; \
	$(PY) -m pip install --disable-pip-version-check --no-compile -c constraints.txt -e '.[dev]' || { \
		echo "set-up: pip could not install the requirements (see above); fix the cause and call make again." >&2; exit 1; }; \
	printf '%s\n' "$(HERE)" > $@; \
	echo "set-up: done"
