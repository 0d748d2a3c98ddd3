# Every target sets itself up: a virtual environment in .venv from the lock file, and nothing outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUNNABLE := $(VENV)/.runnable
# Not repeated: what needs the server's own protocol class or no server at all, and what concerns S3, Redis, the leases and
# locks of several processes, full disks, clocks, failed syncs, stored events, power cuts, quotas, scans, digests of whole
# uploads, copies of finished files or a browser, which are the same whichever class read the body. The long run with all
# faults of S3 is, and so is every way in which a connection or a server can end in the middle of a body.
NOT_REPEATED = tests/clients/test_hosts.py tests/clients/test_s3.py tests/clients/test_uppy.py \
	tests/clients/test_readme.py $(patsubst %, tests/wire/test_%.py, scans allowed_types digests optimized) \
	$(patsubst %, tests/failure/test_%.py, chaos hosts_chaos redis_memory redis_loss s3_parts s3_completion s3_leftovers \
	s3_outages ownership identity broken_records locations backup clocks copies events sync sync_distance power_cuts \
	small_appends small_creations awaited_appends short_ways quotas fast_paths disk processes frozen_hosts redis_outages \
	rolling_update socket_turns)
DRIVING_A_SERVER = $(filter-out $(NOT_REPEATED), $(wildcard tests/clients/test_*.py tests/failure/test_*.py \
	tests/wire/test_*.py)) tests/unit/test_block_receiver.py tests/server/test_property.py
PYTEST = $(BIN)/python -m pytest -n 4 --dist worksteal
WORLDS = disk s3 s3-redis redis memory
NODE_MODULES := tests/clients/node_modules/.installed
JAVA_CLIENT := tests/clients/java/.installed

.PHONY: brokers chaos lag run simulate simulate-coverage simulate-defects test check compare-hooks bench lock vendor tables screenshots clean

# Without the tools of the tests, which are ten times as large; those of `make test` come on top.
run: $(RUNNABLE)
	@$(BIN)/python -m tusd_py serve --upload-dir data $(ARGS)

# Everything, then what drives a server once more under a stock ASGI protocol class, even if the first pass has failed.
# A pass that finds no test with these ARGS counts only if the other one finds none either.
test: $(INSTALLED) $(NODE_MODULES) $(JAVA_CLIENT)
	@echo 'A part of it:  $(BIN)/python -m pytest tests/commands/test_cli.py -k version'
	@echo 'under a stock protocol class:  PLAIN_ASGI=1 $(BIN)/python -m pytest tests/wire/test_download.py'
	@first=0; second=0; \
	$(PYTEST) $(ARGS) || first=$$?; \
	PLAIN_ASGI=1 $(PYTEST) $(ARGS) $(DRIVING_A_SERVER) || second=$$?; \
	echo "make test: exit code $$first of the first pass, $$second of the pass under a stock protocol class"; \
	if [ $$first -ne 0 ] && { [ $$first -ne 5 ] || [ $$second -ne 0 ]; }; then exit $$first; fi; \
	if [ $$second -ne 0 ] && [ $$second -ne 5 ]; then exit $$second; fi

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The long runs of random faults, ten minutes each: disk, Redis, S3.
chaos: $(INSTALLED)
	CHAOS_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest -n 2 -s tests/failure/test_chaos.py \
		tests/failure/test_hosts_chaos.py tests/failure/test_s3_chaos.py -k "survive and (every_fault or whatever)" $(ARGS)

# Whole lives of servers on virtual time; WORLD=s3 ARGS="--seed 17" replays one. See docs/testing.md.
simulate: $(INSTALLED)
	for world in $(or $(WORLD),$(WORLDS)); do \
		$(BIN)/python -m tests.simulation --world $$world --seeds $(or $(SEEDS),2000) $(ARGS) || exit 1; done

# Plants every defect of tests/simulation/*planted*.py: each has to be found. The seeds are noted in defects.tsv there.
simulate-defects: $(INSTALLED)
	$(BIN)/python -m tests.simulation.defects $(ARGS)

# The branches that the simulation alone takes in the code that stores uploads; docs/testing.md explains the others.
simulate-coverage: $(INSTALLED)
	$(BIN)/coverage erase
	for world in $(or $(WORLD),$(WORLDS)); do PYTHONHASHSEED=0 $(BIN)/coverage run --parallel-mode -m tests.simulation \
		--world $$world --seeds $(or $(SEEDS),300) --jobs 1 $(ARGS) || exit 1; done
	PYTHONHASHSEED=0 $(BIN)/coverage run --parallel-mode -m tests.simulation --directed
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Sends events to every broker; RabbitMQ, which is left out of `make test`, takes a while to start. Needs Debian's
# rabbitmq-server.
brokers: $(INSTALLED)
	TEST_RABBITMQ=1 $(BIN)/python -m pytest tests/outbox/test_brokers.py $(ARGS)

# Payloads of hooks beside those of a tusd binary, field by field: make compare-hooks TUSD=/path/to/tusd
compare-hooks: $(INSTALLED)
	TUSD=$(TUSD) $(BIN)/python -m pytest tests/hooks/test_against_tusd.py $(ARGS)

# The lag of live progress of 50 uploads, on three processes with SQLite and with Redis.
lag: $(INSTALLED)
	LAG_UPLOADS=$(or $(UPLOADS),50) LAG_PIECES=$(or $(PIECES),50) $(BIN)/python -m pytest -s tests/progress/test_lag.py $(ARGS)

bench: $(INSTALLED)
	$(BIN)/python -m bench $(ARGS)

# Renew the lock file after a change of the dependencies in pyproject.toml.
lock:
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/pip install --quiet uv
	$(VENV)/lock/bin/uv pip compile pyproject.toml --group dev --all-extras --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --upgrade --quiet --output-file requirements.lock
	$(VENV)/lock/bin/uv pip compile pyproject.toml --extra redis --constraint requirements.lock --universal \
		--python-version 3.11 --generate-hashes --no-emit-index-url --quiet --output-file requirements-run.lock
	rm -rf $(VENV)/lock

# Renew the files of other projects that the pages load, after a change of tests/clients/package.json. Needs npm.
vendor:
	node tools/vendor.mjs

# Renew the tables of docs/operations.md, of metrics and fields of the log, after a change of their catalogues.
tables: $(INSTALLED)
	$(BIN)/python -m tools.operations_tables

# Pictures of the pages for the README; look at them before they are committed. Needs Chromium.
screenshots: $(INSTALLED) $(NODE_MODULES)
	node tools/screenshots.mjs

clean:
	rm -rf $(VENV) tests/clients/node_modules $(JAVA_CLIENT) tests/clients/java/*.jar bench/.work .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define NEW_ENOUGH
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "tusd-py needs Python 3.11 or later; name one with: make PYTHON=python3.12"; exit 1; }
endef

$(RUNNABLE): requirements-run.lock
	$(NEW_ENOUGH)
	@echo "Installing what tusd-py needs to run into $(VENV) (once, about 20 seconds) ..."
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements-run.lock
	@touch $@

$(INSTALLED): requirements.lock pyproject.toml
	$(NEW_ENOUGH)
	@echo "Installing tusd-py and the tools of its tests into $(VENV) (once, some minutes) ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(RUNNABLE) $@

# The JavaScript clients are optional: without npm their tests are skipped and say so.
$(NODE_MODULES): tests/clients/package-lock.json
	@if command -v npm >/dev/null; then \
		cd tests/clients && npm ci --no-audit --no-fund --loglevel=error && touch node_modules/.installed; \
	else echo "npm is not installed: tests with JavaScript clients will be skipped"; fi

# As optional as they are.
$(JAVA_CLIENT): tests/clients/java/SHA256SUMS
	@if command -v mvn >/dev/null; then \
		mvn --quiet --batch-mode org.apache.maven.plugins:maven-dependency-plugin:2.8:copy -DoutputDirectory=$(@D) \
			-Dartifact=io.tus.java.client:tus-java-client:0.5.1 && cd $(@D) && sha256sum --quiet --check SHA256SUMS && touch .installed; \
	else echo "mvn is not installed: tests with tus-java-client will be skipped"; fi
