# Shortcuts for the main commands. `make` without a target lists them.

PYTHON  ?= python3
# real Caffe takes three times as long as the embedded engine, so its default is a smaller demo
RECIPE  ?= $(if $(filter caffe,$(ENGINE)),demo_caffe,demo)
DATA    ?= data
RUNS    ?= runs
REPORT  ?= report
ENGINE  ?= embedded
JOBS    ?=
GPU     ?=
# on a cluster: SLURM=1, and the resources of its jobs, unless the recipe sets them
SLURM   ?=
PARTITION ?=
ACCOUNT ?=
TIME    ?=
SBATCH  ?=
SEED    ?= 0
K       ?= 100
# the lists that the split targets divide, and a file of classes with groups; the halves are written beside TRAIN
TRAIN   ?= $(DATA)/ilsvrc2012/train.txt
VAL     ?= $(DATA)/ilsvrc2012/val.txt
CLASSES ?=
ARCHIVES ?= $(DATA)/archives

# the folder of RECIPE's networks: a recipe has the name of its file
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
# the tests whose results depend on the processor's instruction set; not those of ways to start a script, of which
# process holds records, of GPU kernels (NumPy interprets them here), of the texts of compare, and of records that are read
NUMERIC = $(filter-out tests/caffe/test_entry.py tests/engine/test_engine_sharing.py \
            tests/engine/test_engine_kernels_compile.py tests/engine/%_triton.py tests/conformance/test_compare.py \
            tests/export/test_dataset.py, \
            $(wildcard tests/engine/test_*.py tests/conformance/test_*.py tests/caffe/test_*.py tests/export/test_*.py)) \
          $(wildcard tests/commands/test_engine_*.py) tests/commands/test_probe.py tests/run/test_experiment.py
.DEFAULT_GOAL = help
.NOTPARALLEL:       # so that `make -j sweep report` writes the report after the sweep
.PHONY: help setup caffe wordnet demo test test-old-cpu fidelity bench bench-speed bench-data gpu-check gpu-bundle lint ilsvrc imagenet data lmdb verify split-random split-natman split-reduced \
        plan sweep results figures figures-paper analysis study report proto

help:       ## list the commands
	@echo "make COMMAND [NAME=value ...]"
	@sed -nE 's/^([a-z -]+):.*## (.*)/  \1\t\2/p' Makefile | expand -t 17

demo: $(READY)      ## the complete experiment on the built-in photographs; its report is updated while it runs
	@$(if $(filter caffe,$(ENGINE)),echo "Real Caffe trains the recipe $(RECIPE); use RECIPE=demo for the complete demo")
	@$(SWEEP) $(if $(SLURM),,--report "$(REPORT)")

test: $(READY)      ## run the tests
	@"$(PY)" -m pytest

test-old-cpu: $(READY)  ## run the numerical tests with the instructions of a processor from 2008 (no AVX)
	@ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 "$(PY)" -m pytest $(NUMERIC)

fidelity: $(READY)  ## compare the engine with real Caffe; writes docs/fidelity.md
	@cd tests && PYTHONPATH=.:.. OMP_NUM_THREADS=1 "../$(PY)" -m conformance.report

bench: bench-speed bench-data  ## compare speed with Caffe's; writes docs/benchmarks.md (40 minutes, 25 GB of disk)

bench-speed: $(READY)  ## only the benchmarks of training
	@cd tests && PYTHONPATH=.:.. "../$(PY)" -m benchmarks.speed

bench-data: $(READY)  ## only the benchmarks of the data tools
	@cd tests && PYTHONPATH=.:.. "../$(PY)" -m benchmarks.data

gpu-check: $(READY)  ## check the engine on a GPU and measure its speed, in 8 minutes (DRY=1: small sizes on the CPU)
	@"$(PY)" tests/gpu/check.py $(if $(DRY),--dry-run)

gpu-bundle: $(READY)  ## pack what gpu-check needs on a GPU machine without network
	@"$(PY)" tests/gpu/bundle.py

lint: $(READY)      ## run ruff and pyright
	@"$(PY)" -m ruff check .
	@"$(PY)" -m ruff format --check .
	@"$(PY)" -m pyright

setup: $(READY)     ## create .venv with pinned packages
	@echo "ready: .venv"

caffe:              ## install real Caffe 1.0 in .caffe, without root (Debian 11 packages from MIRROR; downloads 160 MB)
	@$(PYTHON_IS_NEW)
	@"$(PYTHON)" -P tools/install_caffe.py

wordnet:            ## install WordNet 3.0's nouns in .wordnet, without root (Debian's wordnet-base; downloads 6 MB)
	@tools/install_wordnet.sh

$(READY): requirements.txt setup.py
	@$(PYTHON_IS_NEW)
	@echo "Installing Python packages into .venv ..."
	@"$(PY)" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	@"$(PY)" -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@"$(PY)" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)

ilsvrc: $(READY)    ## create image lists from ImageNet's ARCHIVES (the folder with ILSVRC2012_*.tar and the devkit)
	@"$(PY)" -m data_prep.ilsvrc "$(ARCHIVES)" --out "$(DATA)/ilsvrc2012"

imagenet: ilsvrc    ## build every split of the paper with its databases and mean images from ImageNet's ARCHIVES
	@$(MAKE) --no-print-directory data RECIPE=paper
	@"$(PY)" -m data_prep.verify "$(DATA)/ilsvrc2012" || \
	  echo "Lists that differ are not the authors' lists. With all of ImageNet's images, none differs."

verify: $(READY)    ## compare the lists of all splits with the authors' checksums
	@"$(PY)" -m data_prep.verify "$(DATA)/ilsvrc2012"

data lmdb: $(READY)      ## build the databases and mean images of RECIPE
	@"$(PY)" -m transfer_caffe.data --recipe "$(RECIPE)" --data "$(DATA)"

split-random: $(READY)   ## divide the TRAIN and VAL lists at random into halves (the paper uses SEED=0 to 3)
	@$(SPLIT) random --seed $(SEED) $(SPLIT_OPTIONS) --out "$(LISTS)/random$(SEED)"

split-natman: $(READY)   ## divide the TRAIN and VAL lists into man-made (A) and natural (B) classes
	@$(SPLIT) natman $(SPLIT_OPTIONS) --out "$(LISTS)/natman"

split-reduced: $(READY)  ## reduce TRAIN to the first K images of each class
	@$(SPLIT) reduced --images-per-class $(K) $(SPLIT_OPTIONS) --out "$(LISTS)/reduced$(K)"

plan: $(READY)      ## list the networks of RECIPE, their cost (MEASURE=1: in hours; GPUS=8: on 8 GPUs) and state
	@"$(PY)" -m transfer_caffe.sweep plan --recipe "$(RECIPE)" --data "$(DATA)" --runs "$(RUNS)" --engine "$(ENGINE)" \
	  $(if $(MEASURE),--measure) $(if $(GPUS),--gpus $(GPUS))

sweep: $(READY)     ## train the networks of RECIPE, or resume training (SLURM=1: as jobs on a cluster)
	@$(SWEEP)

results: $(READY)   ## write the table of results of RECIPE
	@"$(PY)" -m transfer_caffe.results --recipe "$(RECIPE)" --runs "$(RUNS)"

figures: results    ## draw the figures of RECIPE
	@"$(PY)" -m transfer_caffe.figures --results "$(NETWORKS)/results.csv" --out "$(REPORT)/figures"

figures-paper: $(READY)  ## draw the paper's figures and tables from the authors' logs, without training
	@"$(PY)" -m transfer_caffe.figures --results paper --metric top10 --out "$(REPORT)/paper"

analysis: results   ## analyse the results of RECIPE: effects with confidence intervals, and open questions
	@"$(PY)" -m transfer_caffe.analysis --results "$(NETWORKS)/results.csv" --out "$(REPORT)/analysis"

study: $(READY)     ## how many stages of WEIGHTS (of NET) to copy for IMAGES, a folder of class folders
	@"$(PY)" -m transfer_caffe.study --weights "$(WEIGHTS)" --net "$(NET)" --images "$(IMAGES)" --data "$(DATA)" \
	  --runs "$(RUNS)" $(if $(SEEDS),--seeds $(SEEDS)) $(if $(HOURS),--hours $(HOURS)) \
	  $(if $(GPU),--gpu "$(GPU)") $(if $(JOBS),--jobs $(JOBS))

report: results     ## write report/index.html: findings and figures of RECIPE, and a page for each network
	@"$(PY)" -m transfer_caffe.report --runs "$(NETWORKS)" --out "$(REPORT)"

proto:      ## generate caffe_pb2.py from caffe.proto (needs grpcio-tools 1.62 in PROTOC_PYTHON)
	@"$${PROTOC_PYTHON:-python3}" -c 'import grpc_tools' 2>/dev/null || { echo "make: error: $${PROTOC_PYTHON:-python3} has no" \
	  "grpc_tools; install grpcio-tools==1.62.* for a Python and run: PROTOC_PYTHON=python make proto" >&2; exit 2; }
	@"$${PROTOC_PYTHON:-python3}" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. transfer_caffe/formats/proto/caffe.proto
