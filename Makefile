# `make` alone shows what there is. Every target works on a fresh clone: what it needs, it makes first.

HOST ?= appliance  # name of the test host of `make up`
JOBS ?= 3          # Molecule scenarios at a time: they wait as much as they work
DRILLS ?=          # options of pytest for `make drills`
LONG ?=            # 1: have Molecule run what takes minutes too
HOST := $(strip $(HOST))
JOBS := $(strip $(JOBS))
LONG := $(strip $(LONG))

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv up down test lint unit molecule drills pipeline bench lock

export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
export npm_config_cache := $(or $(WATCHPOST_CACHE),$(HOME)/.cache/watchpost)/npm

VENV := .venv/complete
WATCHPOST := python -m watchpost
INVENTORY = $$($(WATCHPOST) testhost inventory $(HOST))
# $(call step,what is being done,command): says so, and how long it took
step = @echo "▸ $(1)"; start=$$SECONDS; { $(2); } || exit; echo "  done in $$((SECONDS - start)) s"

help:  ## Show this list
	@sed -En 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

up: $(VENV)  ## Boot a test host, put the whole appliance on it and prove that it works
	$(call step,Debian packages of this machine,$(WATCHPOST) packages "test hosts" "building from source")
	$(call step,Programs in the artifact store (built from source the first time: about 20 minutes),$(WATCHPOST) artifacts ensure)
	$(call step,Test host,$(WATCHPOST) testhost up $(HOST) >/dev/null)
	$(call step,The appliance,ansible-playbook -i "$(INVENTORY)" site.yml)
	$(call step,Proof,$(WATCHPOST) verify --inventory "$(INVENTORY)")
	@$(WATCHPOST) testhost show $(HOST)

down: $(VENV)  ## Remove the test host of `make up`, and nothing else
	@$(WATCHPOST) testhost down $(HOST)

test: $(VENV)  ## Everything: linters, unit tests and all Molecule scenarios; each runs even when another failed
	@failed=; for part in lint unit; do $(MAKE) --no-print-directory $$part || failed+=" $$part"; done; \
	$(MAKE) --no-print-directory molecule FAILED="$$failed"

lint: $(VENV)  ## Style, types and safety of Python, TypeScript, YAML, roles and shell scripts
	$(call step,Debian packages of the linters,$(WATCHPOST) packages linting)
	$(call step,ruff,ruff check . && ruff format --check .)
	$(call step,mypy,mypy)
	$(call step,yamllint,yamllint --strict .)
	$(call step,shellcheck,git ls-files -z -- '*.sh' .ci/run | xargs -0 shellcheck)
	$(call step,ansible-lint,ansible-lint --offline)
	$(call step,Front end,cd app/frontend && npm ci --silent --ignore-scripts --no-audit --no-fund --prefer-offline && npm run --silent lint && npm test --silent)

unit: $(VENV)  ## Unit tests
	$(call step,Debian packages of the unit tests,$(WATCHPOST) packages "unit tests")
	$(call step,Unit tests,pytest --quiet)

molecule: $(VENV)  ## All Molecule scenarios, JOBS (3) at a time; SCENARIO=x for one, LONG=1 for tests of minutes too
	$(call step,Debian packages of this machine,$(WATCHPOST) packages "test hosts" "building from source" "browser tests")
	$(call step,Programs in the artifact store (built from source the first time: about 20 minutes),$(WATCHPOST) artifacts ensure)
	@$(if $(LONG),PYTEST_ADDOPTS="-m 'long or not long'") python molecule/run.py --jobs $(JOBS) $(addprefix --failed=,$(FAILED)) $(SCENARIO)

drills: $(VENV)  ## Break the appliance under load and look for all that it had acknowledged (two hours); DRILLS="-k kill" for some
	$(call step,Debian packages of this machine,$(WATCHPOST) packages "test hosts" "building from source")
	$(call step,Programs in the artifact store (built from source the first time: about 20 minutes),$(WATCHPOST) artifacts ensure)
	@trap '$(WATCHPOST) testhost down drills' EXIT; inventory=$$($(WATCHPOST) testhost up drills); \
	  echo "▸ The appliance"; ansible-playbook -i "$$inventory" site.yml; \
	  echo "▸ Drills"; pytest drills --verbose --capture=no $(DRILLS)

pipeline: $(VENV)  ## Deliver to a test host: deploy, traffic, verify, gate, report; a failing stage is named
	$(call step,Debian packages of this machine,$(WATCHPOST) packages "test hosts" "building from source")
	$(call step,Programs in the artifact store (built from source the first time: about 20 minutes),$(WATCHPOST) artifacts ensure)
	@trap '$(WATCHPOST) testhost down pipeline' EXIT; $(WATCHPOST) pipeline

bench: $(VENV)  ## What telemetry costs the task manager and the Collector, measured on this machine
	$(call step,Instrumentation of the task manager (4 minutes),python -m bench.application)
	$(call step,The pipeline,python -m bench.pipeline)

lock: $(VENV)  ## Pin both requirements.in, with hashes, into their requirements.lock
	@uv pip compile --quiet app/requirements.in --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --output-file app/requirements.lock
	@uv pip compile --quiet requirements.in --python-version 3.11 --generate-hashes --output-file requirements.lock

venv: $(VENV)  ## The Python environment in .venv

# The first Python that will do: 3.11 or newer, able to make a virtual environment.
PYTHON = $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)

$(VENV): requirements.lock
	@test -n "$(PYTHON)" || { \
	  echo 'No Python 3.11 or newer that can make a virtual environment.' \
	       'On Debian 12 and newer, as root: apt-get install python3 python3-venv' >&2; exit 1; }
	$(call step,Python packages into .venv,$(PYTHON) -m venv .venv && pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements.lock)
	@touch $@
