# Needs GNU make 3.81 or newer, and Python; no root, no Docker. All that it makes lies in .venv and .data.

PYTHON ?= python3
DEMO ?= 20000
WORKERS ?= logical
BIN := .venv/bin

# The paths are relative: the folder's own may have spaces in it.
# Without this, pip's notices of new releases drown the rest.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run standin agents test test-faults soak cluster-test lint audit lint-deploy container-test format bench secrets clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'make … PYTHON=python3.12       another Python (3.11 or newer)'
	@echo 'make run DEMO=100              another number of invented interceptions; 0 is none'
	@echo 'make test ARGS="-k search"     what pytest is given'

run: .venv/.run ## start the service on http://127.0.0.1:8080, with its own PostgreSQL and invented data in .data
	@export BRIDGELOG_DATA_DIR="$${BRIDGELOG_DATA_DIR:-$$PWD/.data}"; \
	if [ "$(DEMO)" -gt 0 ] && [ -z "$$BRIDGELOG_DATABASE_URL" ]; then $(BIN)/bridgelog demo --interceptions "$(DEMO)" --if-empty || exit; fi; \
	exec $(BIN)/bridgelog serve

standin: .venv/.run ## a stand-in for the Anthropic and OpenAI APIs on http://127.0.0.1:8090; ARGS="--port 8091"
	exec $(BIN)/python -m tests.standin $(ARGS)

# The versions that docs/bridge.md speaks of. 640 MB.
agents: ## install Claude Code and Codex into .agents, for the tests that run them; needs npm
	npm install --no-fund --no-audit --prefix .agents @anthropic-ai/claude-code@2.1.197 @openai/codex@0.169.0

test: .venv/.dev ## run the tests, each worker on a PostgreSQL of its own; ARGS="-x -k search", WORKERS=0 for a debugger
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist loadgroup $(ARGS)

test-faults: .venv/.dev ## every failure of the database and of clients under load, five minutes; root can fill a disk as well
	BRIDGELOG_TEST_FAULTS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 2 tests/test_faults.py tests/test_faults_database.py tests/test_faults_memory.py $(ARGS)

soak: .venv/.dev ## the tests of many writers at once, a minute each
	BRIDGELOG_TEST_SOAK=1 $(BIN)/python -m pytest -n 0 tests/test_concurrency.py tests/test_proxy.py tests/test_rollups.py tests/test_rollup_races.py

cluster-test: .venv/.run ## kill leaders of a Patroni cluster under load; needs etcd, Patroni and PostgreSQL; minutes; ARGS="--kills 3"
	$(BIN)/python deploy/cluster-test $(ARGS)

lint: .venv/.dev ## style, types, layers and SQL; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/sqlfluff lint sql migrations

# Not part of lint: it asks a service on the internet, and what that knows changes without any change here.
audit: .venv/.audit ## look the installed packages up in PyPI's list of vulnerabilities; fails where one cannot be looked up
	$(BIN)/python -m pip freeze --exclude-editable > .venv/audit.txt
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement .venv/audit.txt

lint-deploy: .venv/.deploy ## the Dockerfile and the compose file, against what their formats allow
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

container-test: .venv/.dev .venv/.deploy ## the image and the compose file in real containers; needs root, podman, curl and iproute2
	deploy/container-test

format: .venv/.dev ## put the Python files into their form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/.bench ## measure everything up to 10 million interceptions, an hour; ARGS="--sizes 100000,1000000 --parts totals"
	$(BIN)/python -m benchmarks $(ARGS)

# The folder is closed to others; the files in it are not, for the containers read them as users of their own.
secrets: deploy/secrets/database_url ## invent the passwords that docker-compose.yml asks for
deploy/secrets/database_url: deploy/secrets/postgres_password
	@printf 'postgresql://bridgelog:%s@postgres:5432/bridgelog' "$$(cat $<)" > $@ && chmod 644 $@
deploy/secrets/postgres_password:
	@mkdir -p deploy/secrets && chmod 700 deploy/secrets
	@od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > $@ && chmod 644 $@

clean: ## remove .venv and whatever tools left behind; .data stays
	rm -rf .venv .agents .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of packages: installed again only when what they are changes.
.venv/.run: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/.dev: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch .venv/.run $@

.venv/.bench: .venv/.run
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	@touch $@

.venv/.audit: .venv/.dev
	$(BIN)/python -m pip install --quiet --editable '.[audit]'
	@touch $@

.venv/.deploy: .venv/bin/python setup.cfg
	$(BIN)/python -m pip install --quiet --editable '.[deploy]'
	@touch $@

.venv/bin/python:
	@command -v "$(PYTHON)" > /dev/null || { echo '$(PYTHON) is not there: name a Python 3.11 or newer, make PYTHON=…' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "bridgelog needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2> /dev/null || \
		{ echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	"$(PYTHON)" -m venv --clear .venv
