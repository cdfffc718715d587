# The front door. `make` alone lists the commands.

PYTHON  ?= python3
# real Caffe takes three times as long as the embedded engine: it gets a smaller demo
RECIPE  ?= $(if $(filter caffe,$(ENGINE)),demo_caffe,demo)
DATA    ?= data
RUNS    ?= runs
REPORT  ?= report
ENGINE  ?= embedded
JOBS    ?=
GPU     ?=
# on a cluster: SLURM=1, and what its jobs ask for, where the recipe does not say it
SLURM   ?=
PARTITION ?=
ACCOUNT ?=
TIME    ?=
SBATCH  ?=
SEED    ?= 0
K       ?= 100
# the lists that the split targets cut, and a class file with groups; the halves go to a folder beside TRAIN
TRAIN   ?= $(DATA)/ilsvrc2012/train.txt
VAL     ?= $(DATA)/ilsvrc2012/val.txt
CLASSES ?=
ARCHIVES ?= $(DATA)/archives

# where the networks of RECIPE lie: a recipe has the name of its file
LISTS = $$(dirname "$(TRAIN)")
NETWORKS = $(RUNS)/$(basename $(notdir $(RECIPE)))
PY    = .venv/bin/python
READY = .venv/ready
SWEEP = "$(PY)" -m transfer_caffe.sweep run --recipe "$(RECIPE)" --data "$(DATA)" --runs "$(RUNS)" \
        --engine "$(ENGINE)" $(if $(JOBS),--jobs $(JOBS)) $(if $(GPU),--gpu "$(GPU)") $(if $(SLURM),--slurm \
        $(if $(PARTITION),--partition "$(PARTITION)") $(if $(ACCOUNT),--account "$(ACCOUNT)") \
        $(if $(TIME),--time "$(TIME)") $(if $(SBATCH),--sbatch="$(SBATCH)"))
PYTHON_IS_NEW = "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
  "make: error: $(PYTHON) is not Python 3.11 or newer; install that and set PYTHON=python3.11" >&2; exit 2; }
SPLIT = "$(PY)" -m data_prep.split
SPLIT_OPTIONS = --train "$(TRAIN)" --val "$(VAL)" $(if $(CLASSES),--classes "$(CLASSES)")
# the tests whose numbers hang on the processor's instructions
NUMERIC = tests/conformance tests/test_golden.py tests/test_random_layers.py $(wildcard tests/test_engine_*.py) \
          tests/test_experiment.py tests/test_real_engine.py tests/test_surgery.py
.DEFAULT_GOAL = help
.NOTPARALLEL:       # `make -j sweep report`: the report comes after the sweep
.PHONY: help setup caffe wordnet demo test test-old-cpu fidelity bench bench-speed bench-data lint ilsvrc imagenet data lmdb verify split-random split-natman split-reduced \
        plan sweep results figures figures-paper analysis report proto

help:       ## list the commands
	@echo "make COMMAND [NAME=value ...]"
	@sed -nE 's/^([a-z -]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 17

demo: $(READY)      ## the whole experiment on the embedded photographs; its report grows while it runs
	@$(if $(filter caffe,$(ENGINE)),echo "Real Caffe trains the recipe $(RECIPE): RECIPE=demo is the whole demo")
	@$(SWEEP) $(if $(SLURM),,--report "$(REPORT)")

test: $(READY)      ## pass the tests
	@"$(PY)" -m pytest

test-old-cpu: $(READY)  ## of these, those that compute, as on a processor of 2008 (no AVX)
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 "$(PY)" -m pytest $(NUMERIC)

fidelity: $(READY)  ## measure the engine against real Caffe, into docs/fidelity.md
	@cd tests && PYTHONPATH=.:.. OMP_NUM_THREADS=1 "../$(PY)" -m conformance.report

bench: bench-speed bench-data  ## measure training and the data tools beside Caffe's, into docs/benchmarks.md (40 minutes, 25 GB of room)

bench-speed: $(READY)  ## of these, training alone
	@cd tests && PYTHONPATH=.:.. "../$(PY)" -m benchmarks.speed

bench-data: $(READY)  ## of these, the data tools alone
	@cd tests && PYTHONPATH=.:.. "../$(PY)" -m benchmarks.data

lint: $(READY)      ## ruff and pyright
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .
	@"$(PY)" -m pyright

setup: $(READY)     ## make .venv with pinned packages
	@echo "ready: .venv"

caffe:              ## real Caffe 1.0 into .caffe, without root (Debian 11's packages, from MIRROR; fetches 160 MB)
	@$(PYTHON_IS_NEW)
	@"$(PYTHON)" -P tools/install_caffe.py

wordnet:            ## WordNet 3.0's nouns into .wordnet, without root (Debian's wordnet-base; fetches 6 MB)
	@tools/install_wordnet.sh

$(READY): requirements.txt setup.py
	@$(PYTHON_IS_NEW)
	@echo "Installing Python packages into .venv ..."
	@"$(PY)" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	@"$(PY)" -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@"$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

ilsvrc: $(READY)    ## image lists out of ImageNet's ARCHIVES (the folder with ILSVRC2012_*.tar and the devkit)
	@"$(PY)" -m data_prep.ilsvrc "$(ARCHIVES)" --out "$(DATA)/ilsvrc2012"

imagenet: ilsvrc    ## from ImageNet's ARCHIVES to every split of the paper, its databases and means
	@$(MAKE) --no-print-directory data RECIPE=paper
	@"$(PY)" -m data_prep.verify "$(DATA)/ilsvrc2012" || \
	  echo "What differs is not made of the authors' lists. With all of ImageNet's images nothing does."

verify: $(READY)    ## compare the lists of all splits with the authors' checksums
	@"$(PY)" -m data_prep.verify "$(DATA)/ilsvrc2012"

data lmdb: $(READY)      ## databases and means of RECIPE
	@"$(PY)" -m transfer_caffe.data --recipe "$(RECIPE)" --data "$(DATA)"

split-random: $(READY)   ## TRAIN and VAL lists cut at random: SEED=0..3 are the paper's
	@$(SPLIT) random --seed $(SEED) $(SPLIT_OPTIONS) --out "$(LISTS)/random$(SEED)"

split-natman: $(READY)   ## TRAIN and VAL lists cut into man-made (A) and natural (B)
	@$(SPLIT) natman $(SPLIT_OPTIONS) --out "$(LISTS)/natman"

split-reduced: $(READY)  ## the first K images of each class of TRAIN
	@$(SPLIT) reduced --images-per-class $(K) $(SPLIT_OPTIONS) --out "$(LISTS)/reduced$(K)"

plan: $(READY)      ## the networks of RECIPE, what they cost (MEASURE=1: in hours; GPUS=8: on 8 of them), what is done
	@"$(PY)" -m transfer_caffe.sweep plan --recipe "$(RECIPE)" --data "$(DATA)" --runs "$(RUNS)" --engine "$(ENGINE)" \
	  $(if $(MEASURE),--measure) $(if $(GPUS),--gpus $(GPUS))

sweep: $(READY)     ## train the networks of RECIPE; goes on where it was stopped (SLURM=1: by jobs on a cluster)
	@$(SWEEP)

results: $(READY)   ## the table of results of RECIPE
	@"$(PY)" -m transfer_caffe.results --recipe "$(RECIPE)" --runs "$(RUNS)"

figures: results    ## the figures of RECIPE
	@"$(PY)" -m transfer_caffe.figures --results "$(NETWORKS)/results.csv" --out "$(REPORT)/figures"

figures-paper: $(READY)  ## the paper's own figures and tables from its authors' logs, without any training
	@"$(PY)" -m transfer_caffe.figures --results paper --metric top10 --out "$(REPORT)/paper"

analysis: results   ## what the results of RECIPE say, with intervals, and what they cannot say
	@"$(PY)" -m transfer_caffe.analysis --results "$(NETWORKS)/results.csv" --out "$(REPORT)/analysis"

report: results     ## report/index.html: what the results of RECIPE say, figures, a page for each network
	@"$(PY)" -m transfer_caffe.report --runs "$(NETWORKS)" --out "$(REPORT)"

proto:      ## caffe_pb2.py from caffe.proto (needs grpcio-tools 1.62 in PROTOC_PYTHON)
	@"$${PROTOC_PYTHON:-python3}" -c 'import grpc_tools' 2>/dev/null || { echo "make: error: $${PROTOC_PYTHON:-python3} has no" \
	  "grpc_tools; install grpcio-tools==1.62.* for a Python and name that: PROTOC_PYTHON=python make proto" >&2; exit 2; }
	@"$${PROTOC_PYTHON:-python3}" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. transfer_caffe/formats/proto/caffe.proto
