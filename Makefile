# Needs make and a python3 >= 3.11; everything else goes into .venv, from the hash-locked requirements/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help run up down secrets budget seed migrate migration downgrade current history \
        test test-unit test-integration test-stack bench bench-capacity bench-pages bench-overload bench-metrics dashboard lint format types contracts check lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("headroom needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.13")'
	@echo "filling $(VENV) from requirements/dev.txt: half a minute, once"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

run: $(READY) ## run everything as local processes, on an embedded PostgreSQL
	@$(BIN)/headroom up

up: ## run everything in containers, and wait until it is healthy
	docker compose up --build --detach --wait

down: ## stop the containers; the data stays (docker compose down -v deletes it)
	docker compose down

secrets: ## write the secrets of compose.prod.yml to .secrets/; keeps those that are there
	@ops/make-secrets.sh .secrets

budget: $(READY) ## show the connection budget: what may be opened, and what the server admits
	@$(BIN)/headroom budget --suggest

seed: $(READY) ## fill DATABASE_URL with plausible data: make seed users=1000 posts=5000
	@$(BIN)/headroom seed $(if $(users),--users $(users)) $(if $(posts),--posts $(posts))

migrate: $(READY) ## bring the database to the newest revision
	@$(BIN)/alembic upgrade head

migration: $(READY) ## write a revision from the models: make migration m="add tags"
	@test -n "$$m" || { echo 'make migration m="what it does"' >&2; exit 2; }
	@$(BIN)/alembic revision --autogenerate -m "$$m"

downgrade: $(READY) ## take the newest revision back, and what was stored in it
	@$(BIN)/alembic downgrade -1

current: $(READY) ## show the database's revision
	@$(BIN)/alembic current

history: $(READY) ## list the revisions
	@$(BIN)/alembic history

test: $(READY) ## run every test; those that need containers are skipped where there is no Docker
	@$(BIN)/pytest

test-unit: $(READY) ## run the unit tests (SQLite in memory)
	@$(BIN)/pytest tests/unit

test-integration: $(READY) ## run the tests against a real PostgreSQL
	@$(BIN)/pytest tests/integration

test-stack: $(READY) ## run the tests of the whole stack, in containers and as local processes
	@$(BIN)/pytest tests/stack tests/fault

bench: $(READY) ## measure the stack beside the textbook's and beside Starlette on asyncpg: requests a second, latency, processor time
	@$(BIN)/python -m benchmarks.bench

bench-capacity: $(READY) ## measure how speed moves with workers, pools, clients and rows; writes the charts of ops/capacity
	@$(BIN)/python -m benchmarks.capacity

bench-pages: $(READY) ## measure pages at depth, search and sign-in on a million posts (needs Docker)
	@$(BIN)/python -m benchmarks.pages

bench-metrics: $(READY) ## measure what the metrics cost: a request with and without, a scrape after 2,000 worker deaths
	@$(BIN)/python -m benchmarks.metrics

bench-overload: $(READY) ## measure goodput and refusals with 300 and 1,000 clients, beside the textbook's settings
	@$(BIN)/python -m benchmarks.overload

dashboard: $(READY) ## write Grafana's dashboard from ops/grafana/dashboard.py
	@$(BIN)/python ops/grafana/dashboard.py

lint: $(READY) ## check style
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(READY) ## mend style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(READY) ## check types
	@$(BIN)/mypy

contracts: $(READY) ## check which module may import which
	@$(BIN)/lint-imports

check: lint types contracts test ## everything that CI checks

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
             --custom-compile-command 'make lock' $(if $(upgrade),--upgrade)

lock: $(READY) ## write requirements/ anew from pyproject.toml; upgrade=1 takes the newest versions
	@$(UV_COMPILE) pyproject.toml -o requirements/app.txt
	@$(UV_COMPILE) pyproject.toml --group dev -c requirements/app.txt -o requirements/dev.txt
	@$(UV_COMPILE) --group build -c requirements/dev.txt -o requirements/build.txt

clean: ## delete .venv, caches and the data of make run
	rm -rf $(VENV) .data .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
