# Two commands for a fresh machine: `make leaderboard` and `make test`. Both set up VENV themselves.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install test test-slow check docs leaderboard leaderboard-mnist clean

install: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: check
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 -m slow

# The site; open docs/_build/index.html.
docs: $(STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build

# All methods on scikit-learn's digits, which need no download.
leaderboard: $(STAMP)
	$(BIN)/python -m leaderboard run --suite digits --seeds 0,1,2 --workers 2 --out runs/digits
	$(BIN)/python -m leaderboard report --results runs/digits --out runs/digits

# All methods on MNIST, which torchvision downloads into DATA if it is not there.
DATA ?= data
leaderboard-mnist: $(STAMP)
	$(BIN)/python -m leaderboard run --suite mnist --seeds 0,1,2 --workers 2 --dataset-root $(DATA) --out runs/mnist
	$(BIN)/python -m leaderboard report --results runs/mnist --out runs/mnist

clean:
	rm -rf .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info docs/_build runs
