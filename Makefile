# Two commands: `make serve` and `make test`. Both need python3 (3.11 to 3.13) and make, nothing else.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# A file's tests share what is costly to set up.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile
RAY := .venvs/ray
# Where it may be had, a network of nothing but the loopback.
LOOPBACK := $(shell unshare --net true 2>/dev/null && echo "unshare --net tests/replicas/loopback")

PLAYGROUND := server/playground
PLAYGROUND_BUILT := node_modules/.built

.PHONY: serve test test-processes test-clients test-slow test-browser test-ray bench-ray docs playground check-playground faults soak venv lint format
.DEFAULT_GOAL := serve

serve: venv  ## serve the bundled checkpoint on 127.0.0.1:8000; make serve ARGS="--port 8100" passes flags on
	@exec $(BIN)/quietserve serve $(ARGS)

test: venv  ## all that fits one process; make test ARGS="tests/model -k mask" passes flags on
	$(PYTEST) --durations 12 $(ARGS)

test-processes: venv  ## servers, balancers, Prometheus, faults, clients: whatever takes processes of its own
	$(PYTEST) --durations 12 -m "processes and not slow" $(ARGS)

test-clients: venv  ## clients whose pins conflict with ours, each in an environment of its own (made once, minutes)
	$(BIN)/python -m pytest tests/conformance -m own_env

test-slow: venv  ## what takes minutes: the Dockerfile's steps in a new environment, longer runs of clients
	$(BIN)/python -m pytest -m slow

test-browser: venv $(PLAYGROUND)/node_modules  ## the playground, driven in Chromium; SCREENSHOTS=docs/images keeps pictures
	cd $(PLAYGROUND) && QUIETSERVE=$(CURDIR)/$(BIN)/quietserve SCREENSHOTS=$(addprefix $(CURDIR)/,$(SCREENSHOTS)) npm --silent test

test-ray: $(RAY)/.installed  ## replicas on Ray Serve: 20 of them killed under load; KILLS=3 for fewer
	$(LOOPBACK) $(RAY)/bin/python -m pytest -W ignore tests/replicas $(ARGS)

bench-ray: $(RAY)/.installed  ## what replicas add, and what carrying costs, beside a plain server
	$(LOOPBACK) $(RAY)/bin/python -W ignore tests/replicas/bench.py docs/results/replicas.json

docs: venv  ## the documentation, into site/: open site/index.html, no network is needed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

playground: $(PLAYGROUND)/node_modules  ## bundle the playground's sources into what is served; needs node 20 or later
	cd $(PLAYGROUND) && npm --silent run build

check-playground: $(PLAYGROUND)/node_modules  ## the bundle is that of the sources, byte for byte
	cd $(PLAYGROUND) && npm --silent run build -- $(PLAYGROUND_BUILT) && diff --recursive page $(PLAYGROUND_BUILT)

faults: venv  ## every fault twenty times as often, 10,000 malformed bodies; a quarter of an hour
	FAULTS=20 FAULTS_TABLE=docs/results/faults.json $(BIN)/python -m pytest -m processes tests/test_faults.py

soak: venv  ## half an hour of everything at once
	$(BIN)/python tests/soak.py --minutes 30 --out docs/results/soak.json

lint: venv  ## format, lint and types, as CI runs them
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(PLAYGROUND)/node_modules: $(PLAYGROUND)/package.json $(PLAYGROUND)/package-lock.json
	cd $(PLAYGROUND) && npm ci --no-audit --no-fund
	@touch $@

# All that .venv has, and Ray, whose event loop is none of the other tests' business.
$(RAY)/.installed: $(STAMP)
	$(BIN)/python -m venv $(RAY)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	    > $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beneath.pth
	$(RAY)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	    "$$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["ray"])')"
	@touch $@

venv: $(STAMP)

# torch first and by its exact version: on some machines only that one installs as a small CPU build.
$(STAMP): pyproject.toml constraints.txt
	@echo "making .venv (once; a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
