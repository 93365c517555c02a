# Two commands on a fresh machine: make demo, make test. `make check` is lint, format and types.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

TEXT ?= The old captain looked at the sea and said that the white whale

.PHONY: demo test check format docs audit viewer clean

# Each stamp is newer than the file that says what to install, so a second run installs nothing.
$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/development: $(VENV)/base
	$(PIP) --editable ".[test,check]"
	touch $@

demo: $(VENV)/base
	$(BIN)/densitometer measure "$(TEXT)" --importance l1,fisher --plot densitometer-demo.png

test: $(VENV)/development
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/development
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/docs: $(VENV)/base
	$(PIP) --editable ".[docs]"
	touch $@

# The documentation, in site/; a link, reference or page that is missing is an error.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Known weaknesses of what is installed; asks the package index and nothing else.
audit: $(VENV)/base
	$(PIP) --editable ".[audit]"
	$(BIN)/python -m pip_audit --local --skip-editable

# The explorer's page, built from viewer/ into the package; needs node 20 and npm 11. Users never do.
viewer:
	cd viewer && npm ci --no-audit --no-fund && npm run build

clean:
	rm -rf $(VENV) site densitometer-demo.png
