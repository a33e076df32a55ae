# beamclip: one command per stage; each makes what it needs first.
PYTHON  ?= python3
RECIPE  ?= digits
MODEL   ?= rn18
NAME    := $(basename $(notdir $(RECIPE)))
DATA    ?= data/shards/$(NAME)
CACHE   ?= data/cache/$(NAME)
RUN     ?= data/runs/$(NAME)-{model}
SWEEP   ?= $(RECIPE)
RESULTS ?= data/sweeps/$(basename $(notdir $(SWEEP)))
WORKERS ?= 0
SEEDS   ?=
SET     ?=

# Tests run in a process for each core, at most four.
TOGETHER := -n auto --maxprocesses 4

BIN    := .venv/bin
STAMP  := .venv/.installed
SEAL   := $(CACHE)/index/000000/seal.json
INPUTS := $(STAMP)

# These recipes bring their data and their teacher; any other expects DATA and a teacher that loads.
ifneq ($(filter $(RECIPE),digits fashion-mnist),)
INPUTS  += data/teachers/$(RECIPE)/open_clip_config.json
endif
# Of image-text pairs: a teacher that sees images alone, and a text encoder.
ifneq ($(filter $(RECIPE),shared-small),)
INPUTS  += data/teachers/$(RECIPE)/backbone.safetensors data/encoders/$(RECIPE)/config.json
MODEL   := shared
endif

# MODEL may name several students, which share one stream of batches: MODEL=rn18,rn50
comma  := ,
MODELS := $(subst $(comma), ,$(MODEL))

# Where Fashion-MNIST's files lie, if not to be downloaded: Debian has them as a package.
FASHION_MNIST ?= $(wildcard /usr/share/datasets/fashion-mnist)

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow test-faults bench lint teacher-cache train-student probe sweep report clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help: ## List the targets and their variables
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo
	@echo "Variables: RECIPE=$(RECIPE) MODEL=$(MODEL) DATA=$(DATA) CACHE=$(CACHE)"
	@echo "           RUN=$(RUN) SWEEP=$(SWEEP) RESULTS=$(RESULTS)"
	@echo "           WORKERS=$(WORKERS) SEEDS=0,1 (of a sweep) SET='--set training.seed=1'"

setup: $(STAMP) ## Make .venv and install beamclip in it; nothing if it is current

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

test: $(STAMP) ## Run the tests that take seconds each
	$(BIN)/pytest $(TOGETHER) --dist loadfile

test-slow: $(STAMP) ## Run the tests that take longer
	$(BIN)/pytest $(TOGETHER) --dist worksteal -m slow

test-faults: $(STAMP) ## Run what must survive: damage, crashes, kills, full disks, lost workers
	$(BIN)/pytest $(TOGETHER) --dist worksteal tests/faults -m "slow or not slow"

bench: $(STAMP) ## Measure speed, space and overheads; prints a table, writes data/bench.json
	$(BIN)/python -m benchmarks

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

teacher-cache: $(INPUTS) ## Stage one: embed DATA with the recipe's teacher into CACHE
	$(BIN)/beamclip teacher-cache --shards $(DATA) --cache $(CACHE) --recipe $(RECIPE) --workers $(WORKERS) $(SET)

train-student: $(SEAL) ## Stage two: train MODEL from CACHE into RUN; nothing if it is done
	$(BIN)/beamclip train-student --cache $(CACHE) --shards $(DATA) --recipe $(RECIPE) --model $(MODEL) --run "$(RUN)" --resume $(SET)

probe: train-student ## Score RUN beside its teacher; makes all that is missing first
	$(foreach model,$(MODELS),$(BIN)/beamclip probe --run "$(subst {model},$(model),$(RUN))" &&) true

sweep: $(SEAL) ## Train and score every recipe of SWEEP's grid from CACHE into RESULTS; goes on if begun
	$(BIN)/beamclip sweep $(SWEEP) --cache $(CACHE) --shards $(DATA) --out $(RESULTS) $(addprefix --seeds ,$(SEEDS)) $(SET)

report: sweep ## Lay the runs of SWEEP out as one page, RESULTS/report.html
	$(BIN)/beamclip report $(RESULTS)/*/seed-*/ --out $(RESULTS)/report.html --csv $(RESULTS)/scores.csv

clean: ## Remove shards, teachers, encoders, caches, runs and sweeps made under data/
	rm -rf data/shards data/teachers data/encoders data/cache data/runs data/sweeps

$(SEAL): | $(INPUTS)
	$(MAKE) --no-print-directory teacher-cache

data/shards/digits/train-000000.tar: | $(STAMP)
	$(BIN)/beamclip data digits --out $(@D)

data/shards/fashion-mnist/train-000000.tar: | $(STAMP)
	$(BIN)/beamclip data fashion-mnist --out $(@D) --per-shard 10000 $(addprefix --from ,$(FASHION_MNIST))

data/shards/shared-small/train-000000.tar: | $(STAMP)
	$(BIN)/beamclip data digits --captions 5 --out $(@D)

data/teachers/shared-small/backbone.safetensors: | data/shards/shared-small/train-000000.tar
	$(BIN)/beamclip pretrain --shards data/shards/shared-small --model resnet10t --input-px 32 --epochs 10 --to $(@D)

data/encoders/shared-small/config.json: | data/shards/shared-small/train-000000.tar
	$(BIN)/beamclip text-encoder tiny --shards data/shards/shared-small --to $(@D)

data/teachers/digits/open_clip_config.json: EPOCHS := 15
data/teachers/fashion-mnist/open_clip_config.json: EPOCHS := 2
data/teachers/%/open_clip_config.json: | data/shards/%/train-000000.tar
	$(BIN)/beamclip teacher tiny --shards data/shards/$* --prompts $* --to $(@D) --epochs $(EPOCHS)
