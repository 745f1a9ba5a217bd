# make card    the whole job on the embedded model; the card lands in out/
# make test    all tests        make check    lint, types, layers, then the tests with coverage
# make fuzz    the property tests at random: ROUNDS=10 rounds, then GRAPHS=5000 random graphs
# make docs    the documentation site in build/site: open build/site/index.html, no server needed
# make tutorials    runs the notebooks below docs/tutorials and keeps their outputs
# All install what they need into .venv, at the versions of constraints.txt. PYTHON is any Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: card test check lint fuzz bench bench-int8 bench-peers tables docs tutorials weights-digits reference toolchains clean

# Python keeps what it compiles even where PYTHONDONTWRITEBYTECODE is set, as in containers: else each
# of many processes compiles the same modules again (half a second for repzoo's alone).
RUN := env -u PYTHONDONTWRITEBYTECODE

card: $(VENV)/.core
	$(RUN) $(BIN)/repzoo card --output out

# One worker per core, each with one thread: with more, the threads of one wait for those of another
# (measured: three times the processor time in training). A worker that has finished takes over
# tests of another, so that no core idles while a long file runs.
PYTEST := $(RUN) OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --dist worksteal

test: $(VENV)/.dev
	$(PYTEST)

check: lint
	$(PYTEST) --cov=repzoo --cov-report=term:skip-covered

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports

# `make test` draws the same examples every time. Here they are random; a failure prints how to repeat it.
ROUNDS ?= 10
GRAPHS ?= 5000

fuzz: $(VENV)/.dev
	for round in $$(seq $(ROUNDS)); do HYPOTHESIS_PROFILE=fuzz $(PYTEST) -m hypothesis || exit 1; done
	HYPOTHESIS_PROFILE=fuzz $(BIN)/pytest tests/graph/test_random_graphs.py --random-graphs $(GRAPHS)

# --- results and tables, made by commands and never edited by hand ----------------------------------------------------

DATA ?= ../shared/data/clothing

weights-digits: $(VENV)/.dev
	$(BIN)/repzoo train repghostnet_050 --data digits --output runs/digits
	$(BIN)/python -m repzoo.zoo.embedded runs/digits/repghostnet_050.digits.onnx src/repzoo/zoo/weights/repghostnet_050.digits.onnx.xz

# Train the reference models on photographs, make their cards, append their Records, render the tables.
# RepGhost: one to two hours on one core. The others learn from a teacher: minutes on a GPU, many hours without one.
# An interrupted run continues.
MODELS ?=

reference: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reference $(MODELS) --data $(DATA)
	$(MAKE) tables

# Compare quantizers. REPVGG=FILE.onnx adds a RepVGG trained on $(DATA) (repzoo train repvgg_a0 --data $(DATA)).
# INT8 names other models as MODEL=DATA pairs (see benchmarks/int8.py).
INT8 ?= repghostnet_050.clothing=$(DATA) $(if $(REPVGG),$(REPVGG)=$(DATA)) efficientnet_lite0=../shared/data/imagenet-sample

bench-int8: $(VENV)/.dev
	$(BIN)/python -m benchmarks.int8 $(INT8)

# repzoo beside other tools: latencies of models in one interleaved run each (see benchmarks/peers.py).
PEERS ?= repvgg_a0 repghostnet_100 repvit_m0_9 fasternet_t0

bench-peers: $(VENV)/.dev
	$(BIN)/python -m benchmarks.peers $(PEERS)

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.spine
	$(BIN)/python -m benchmarks.harness
	$(BIN)/python -m benchmarks.evaluate $(DATA)

tables: $(VENV)/.dev
	$(BIN)/python -m repzoo.report.tables docs/results.md docs/results_cn.md docs/boards.md
	$(BIN)/python -m repzoo.report.charts docs/figures

# Strict: a link or an anchor that leads nowhere ends the build. The theme's notice on MkDocs 2 is no finding.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# A tutorial is edited in Jupyter, or as text; of boards, in docs/site/boards.toml.
NOTEBOOKS ?=

tutorials: $(VENV)/.dev
	$(BIN)/python -m docs.site.board_notebooks
	$(BIN)/python -m docs.site.notebooks $(NOTEBOOKS)

# Vendors' quantizers and simulators, each in an environment of its own below ~/.cache/repzoo/toolchains.
TOOLCHAINS ?= rdk-x5 rknn

toolchains: $(VENV)/.core
	$(BIN)/repzoo toolchains $(TOOLCHAINS) --install

# --- environments -----------------------------------------------------------------------------------------------------

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"repzoo needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Say PYTHON=python3.12, for example.")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
# Compiling all modules takes 30 of 66 seconds, and few of them are ever imported.
	$(PIP) --no-compile --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) 'pip>=25.1'
	$(PIP) --editable '.[all]' --group dev
	touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) 'pip>=25.1'
	$(PIP) --group docs
	touch $@

clean:
	rm -rf $(VENV) out build src/repzoo.egg-info .mypy_cache .ruff_cache .pytest_cache
