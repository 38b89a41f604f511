# make run     install, then run the main job: PathMNIST, or the bundled digits without it
# make test    install, then run the tests
# make bench   install, then compare the speed with a straightforward implementation (35 minutes)
# make soak    install, then kill runs at random moments and run 220 rounds (see docs/reliability.md)
# make check   install, then check lint, formatting and types
#
# DATA_DIR=where/the/data/lie  OUTPUT_DIR=new/run/folder  CONFIG=configs/another.yaml

VENV ?= .venv
PYTHON := $(VENV)/bin/python
DATA_DIR ?= data
OUTPUT_DIR ?=
CONFIG ?=

.PHONY: run test bench soak check

run: $(VENV)/installed
	@$(PYTHON) -m tools.main_job --data-dir "$(DATA_DIR)" \
		$(if $(CONFIG),--config "$(CONFIG)") $(if $(OUTPUT_DIR),--output-dir "$(OUTPUT_DIR)")

test: $(VENV)/installed
	@$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/installed
	@$(PYTHON) -m benchmarks.speed

soak: $(VENV)/installed
	@$(PYTHON) -m tests.reliability.kill_test --kills 60
	@$(PYTHON) -m tests.reliability.soak

check: $(VENV)/installed
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy .

$(VENV)/installed: requirements.txt tools/requirements.txt tests/requirements.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check \
		-r requirements.txt -r tools/requirements.txt -r tests/requirements.txt
	@touch $@
