# Two commands for a newcomer: `make quickstart` and `make test`. Both build .venv when it is missing.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: install quickstart test test-slow lint types mutants clean

install: $(STAMP)

# torch comes first and by its exact version, so that nothing else pulls another build of it.
$(STAMP): requirements.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[dev]"
	touch $(STAMP)

quickstart: $(STAMP)
	$(VENV)/bin/rlvr train recipes/quickstart.yaml trainer.output_dir=runs/quickstart-$$(date +%Y%m%d-%H%M%S)

# One thread each: two workers whose threads wait for one another's cores take many times as long.
test: lint types
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n 2 --dist loadfile -m "not slow"

# What is left out there for its time: further engines, launchers and kills.
test-slow: $(STAMP)
	KILLS=50 $(VENV)/bin/python -m pytest -q -m slow

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/python scripts/check_structure.py
	$(VENV)/bin/hadolint Dockerfile
	$(VENV)/bin/rlvr recipes validate recipes

types: $(STAMP)
	$(VENV)/bin/mypy

# Plants one-line faults and counts how many the tests catch; takes a while, so it is not part of `make test`.
mutants: $(STAMP)
	$(VENV)/bin/python -m tests.golden.mutants

clean:
	rm -rf $(VENV) runs
