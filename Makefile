# make demo      train, test and show a small model on handwritten scenes
#                TASK=detection (default), classification or segmentation
# make test      lint, docs checks and the test suite; PYTEST_ARGS='-k name' narrows it
# make lint      only ruff; `make format` fixes what it can
# make docs      the documentation as HTML, in docs/_build/html
# make install   only the environment that all of them create first
# make lock      pin everything that the default stack installs, with hashes, in requirements/lock.txt
#
# VENV=folder    the environment; default .venv (.venv-official for the official stack)
# PYTHON=python  the Python 3.10-3.12 to create it with; default: the first found
# STACK=official OpenMMLab's official releases instead of the maintained builds
# OPS=compiled   compile mmcv's ops, once; needs gcc, and nvcc for a GPU. Default: those of torchvision

TASK ?= detection
STACK ?= maintained
# Where tests of other runtimes are: collecting them all again takes half a minute.
RUNTIME_TESTS = tests/test_deployment tests/test_analysis/test_benchmark.py
OPS ?= torchvision
VENV ?= $(if $(filter official,$(STACK)),.venv-official,.venv)
BIN = $(VENV)/bin
PYTHONS = $(or $(PYTHON),$(wildcard $(BIN)/python) python3.11 python3.12 python3.10 python3)

ifeq ($(filter $(TASK),detection classification segmentation),)
$(error TASK=$(TASK) is unknown, expected detection, classification or segmentation)
endif
ifeq ($(filter $(STACK),maintained official),)
$(error STACK=$(STACK) is unknown, expected maintained or official)
endif
ifeq ($(filter $(OPS),torchvision compiled),)
$(error OPS=$(OPS) is unknown, expected torchvision or compiled)
endif

.PHONY: demo test lint format docs lock install

demo: install
	@"$(BIN)/python" tools/demo.py --task $(TASK)

# In parallel, one thread each: the tests start several processes, whose threads would wait for one another. Tests last
# from milliseconds to minutes, so who has nothing left takes from the others (worksteal). What starts
# other runtimes comes second, in processes of its own. Exit code 5 of pytest: PYTEST_ARGS leaves nothing of a part.
test: lint
	@run() { \
	    OMP_NUM_THREADS=1 "$(BIN)/python" -m pytest -n auto --maxprocesses 4 --dist worksteal "$$@" $(PYTEST_ARGS); \
	    case $$? in 5) ;; 0) [ $$status -ne 5 ] || status=0 ;; *) status=1 ;; esac; \
	}; status=5; \
	run -m "not runtimes"; \
	run -m runtimes $(if $(findstring tests/,$(PYTEST_ARGS)),,$(RUNTIME_TESTS)); \
	exit $$status

lint: install
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .

format: install
	@"$(BIN)/ruff" check --fix .
	@"$(BIN)/ruff" format .

docs: install
	@"$(BIN)/python" -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

lock: install
	@"$(BIN)/uv" pip compile -q --upgrade --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	    --no-emit-package mmlavit-mmcv-ops --custom-compile-command "make lock" -o requirements/lock.txt requirements/lock.in

install:
	@for python in $(PYTHONS); do \
	    if $$python -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	            2>/dev/null; then \
	        exec $$python tools/dev/install.py --venv "$(VENV)" --stack $(STACK) --ops $(OPS); \
	    fi; \
	done; \
	echo "ERROR: mmlavit needs Python 3.10, 3.11 or 3.12; found none among: $(PYTHONS)." \
	    "Install one or pass PYTHON=/path/to/python" >&2; \
	exit 1
