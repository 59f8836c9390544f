# Every target makes the environment it needs. `make help` lists them.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3.12),$(shell command -v python3.13),python3)
BIN := .venv/bin
# bash stops a recipe at the first command that fails, also inside a loop or a pipe
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Two CPU settings that change no number (docs/operations.md, "Speed on a CPU"): glibc keeps large blocks instead of
# fetching them anew every step, and OpenMP's threads soon sleep at a barrier instead of spinning beside others.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 100000000000
export MALLOC_TOP_PAD_ ?= 536870912
export GOMP_SPINCOUNT ?= 2000
# A crash in native code leaves Python's stack.
export PYTHONFAULTHANDLER ?= 1
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help env demo clean-demo data plan test slurm-test faults bench profile report check lock convert-to-hf merge

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 18

env: .venv/.installed  ## make .venv with everything in requirements.txt, at the versions of requirements.lock

.venv/.installed: requirements.txt requirements.lock pyproject.toml
	@command -v $(PYTHON) > /dev/null || { echo "error: $(PYTHON) not found; name Python 3.11, 3.12 or 3.13: make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name one: make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt -c requirements.lock
	@touch $@

# ---------------------------------------------------------------------------------------------------------- the demo
# TOKENIZER=own trains one on the corpus; TOKENIZER=gemma2 takes mmBERT's own, with 256,000 entries.
TOKENIZER ?= own
ifeq ($(TOKENIZER),own)
DATA := data/demo
RUNS := runs/demo
OVERRIDES :=
MAKE_TOKENIZER := data_prep.train_tokenizer --input data/demo/text --vocab-size 16384
else ifeq ($(TOKENIZER),gemma2)
DATA := data/demo-gemma2
RUNS := runs/demo-gemma2
OVERRIDES := tokenizer=$(DATA)/tokenizer run_root=$(RUNS) model.vocab_size=256000 validation.root=$(DATA)/shards-256
MAKE_TOKENIZER := data_prep.gemma2
else
$(error TOKENIZER=$(TOKENIZER): must be own or gemma2)
endif

# One process needs no launcher: `composer main.py ...` does the same, and imports everything twice.
demo: env  ## [TOKENIZER=gemma2]: three phases on real text in 500 languages, converted and evaluated: minutes on two cores
	$(BIN)/python -m data_prep.udhr --output data/demo/text
	$(BIN)/python -m $(MAKE_TOKENIZER) --output $(DATA)/tokenizer
	$(BIN)/python -m data_prep.prepare --input data/demo/text --source udhr --tokenizer $(DATA)/tokenizer \
	  --row-length 256 --output $(DATA)/shards-256
	$(BIN)/python -m data_prep.repack --input $(DATA)/shards-256 --row-length 512 --output $(DATA)/shards-512
	for phase in phase1 phase2 phase3; do \
	  length=512; [ $$phase != phase1 ] || length=256; \
	  $(BIN)/python main.py yamls/demo/$$phase.yaml data.root=$(DATA)/shards-$$length $(OVERRIDES); \
	  $(BIN)/python -m mmbert.convert_to_hf --checkpoint $(RUNS)/$$phase --output $(RUNS)/$$phase/hf \
	    --prompt "Everyone has the right to <mask>."; \
	  $(BIN)/python -m mmbert.evaluation.bits_per_byte --model $(RUNS)/$$phase/hf --shards $(DATA)/shards-256 \
	    --source udhr --output $(RUNS)/$$phase/bits_per_byte.json; \
	done
	$(BIN)/python -m mmbert.evaluation.report --run-root $(RUNS) --phases phase1 phase2 phase3 --output $(RUNS)
	$(BIN)/python -m mmbert.run_report $(RUNS)

clean-demo:  ## remove what `make demo` made, for both tokenizers
	rm -rf data/demo data/demo-gemma2 runs/demo runs/demo-gemma2

# ------------------------------------------------------------------------------------------------------- your own data
# TEXT_TOKENIZER=<folder> takes another tokenizer than Gemma 2's; OPTIONS="--language fao --text-key content ..."
# Status 3 of prepare: there are rows, but not of every file. Then all goes on, and the last line says so.
ROW_LENGTH ?= 1024
GEMMA2 := data/tokenizer-gemma2
TEXT_TOKENIZER ?= $(GEMMA2)
PREPARE = $(BIN)/python -m data_prep.prepare --input "$(INPUT)" --tokenizer "$(TEXT_TOKENIZER)" \
  --row-length $(ROW_LENGTH) --output "$(OUTPUT)/rows-$(ROW_LENGTH)" $(OPTIONS)

data: env  ## INPUT=<text> OUTPUT=<folder> [DEVICE=gpu]: rows of your own text, checked, and a YAML to train on them
	@[ -n "$(INPUT)" ] && [ -n "$(OUTPUT)" ] || { echo "error: give INPUT=<file or folder> OUTPUT=<folder>" >&2; exit 1; }
	[ -e "$(TEXT_TOKENIZER)" ] || [ "$(TEXT_TOKENIZER)" != $(GEMMA2) ] || { \
	  $(PREPARE) --dry-run && $(BIN)/python -m data_prep.gemma2 --output $(GEMMA2); }
	status=0; $(PREPARE) || status=$$?; \
	[ $$status = 0 ] || [ $$status = 3 ] || exit $$status; \
	$(BIN)/python -m data_prep.verify "$(OUTPUT)/rows-$(ROW_LENGTH)"; \
	$(BIN)/python -m data_prep.starter --rows "$(OUTPUT)/rows-$(ROW_LENGTH)" --tokenizer "$(TEXT_TOKENIZER)" \
	  --output "$(OUTPUT)/train.yaml" $(if $(DEVICE),--device $(DEVICE)); \
	[ $$status = 0 ] || echo "error: some files of $(INPUT) gave no rows, see 'quarantined' above" >&2; \
	exit $$status

# ------------------------------------------------------------------------------------------------------------- tools
convert-to-hf: env  ## CHECKPOINT=<run or checkpoint folder> OUTPUT=<folder>: a Hugging Face model, its logits compared
	@[ -n "$(CHECKPOINT)" ] && [ -n "$(OUTPUT)" ] || { echo "error: give CHECKPOINT=<folder> OUTPUT=<folder>" >&2; exit 1; }
	$(BIN)/python -m mmbert.convert_to_hf --checkpoint "$(CHECKPOINT)" --output "$(OUTPUT)"

# COUNTS=<csv> stands in for rows that are not there yet; OPTIONS="--gpus 16 --gpu A100 --mfu 0.3", or --compare.
plan: env  ## CONFIG="<yaml> ..." (no spaces within a path) [COUNTS=<csv>]: what phases will do and cost; trains nothing
	$(BIN)/python -m mmbert.plan $(CONFIG) $(if $(COUNTS),--counts $(COUNTS)) $(OPTIONS)

test: env  ## the whole CPU test suite
	$(BIN)/python -m tests.run

# Slurm and a linter for its scripts are installed where root may; without a Slurm its tests say so and are skipped.
slurm-test: env  ## [SHORT=1, without the long ones]: tests of slurm/ on a real Slurm of two nodes, which it starts and ends
	@if [ "$$(id -u)" = 0 ] && ! type slurmctld sbatch munged shellcheck > /dev/null 2>&1; then \
	  { apt-get update && apt-get install -y slurm-wlm munge shellcheck; } > /dev/null \
	  || echo "slurm-wlm, munge or shellcheck could not be installed" >&2; \
	fi
	$(BIN)/python -m pytest tests/slurm --slurm $(if $(SHORT),,--long) -rs

# A ratio that is stated in docs/benchmarks.md and not reached is an error, at the end: the others are measured, and the
# page is written, with what other machines measured. `make docs/benchmarks/startup.json` measures one alone.
# MODERNBERT=<checkout> adds that peer's packer and its conversion of text, and installs what they need, which takes an
# fsspec older than the lock's. On one hardware thread of a shared Intel Xeon the loader misses the 3 that it reached on
# an AMD EPYC: 1.8 to 2.9, by the hour.
BENCH := $(BIN)/python -m mmbert.benchmark
BENCH_DATA := $(BIN)/python -m data_prep.benchmark
BENCH_UDHR := data/benchmark/udhr
BENCH_TEXT := data/benchmark/text
RESULTS := docs/benchmarks
PACKER := $(if $(MODERNBERT),--modernbert $(MODERNBERT) --min-ratio modernbert=3)
CONVERTER := $(if $(MODERNBERT),--modernbert $(MODERNBERT) --min-cpu-ratio convert_dataset=4)
MEASURED := $(addprefix $(RESULTS)/,$(addsuffix .json, \
  step-1024 step-4096 step-small-1024 head data data-one-cpu startup tokenise pipeline scaling))
ELSEWHERE := $(filter-out $(MEASURED),$(sort $(wildcard $(RESULTS)/*.json)))

bench: env  ## measure against the peers on the CPU, about 75 minutes alone on two cores, and write docs/benchmarks.md
	status=0; $(MAKE) --jobs=1 --keep-going $(MEASURED) || status=$$?; \
	$(BENCH) page $(MEASURED) $(ELSEWHERE) --output docs/benchmarks.md; exit $$status

.PHONY: bench-env bench-text $(MEASURED)
bench-env: env
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-fast.txt -c requirements.lock
	@[ -z "$(MODERNBERT)" ] || [ -f "$(MODERNBERT)/src/sequence_packer.py" ] \
	  || { echo "error: MODERNBERT=$(MODERNBERT) is no checkout of ModernBERT: it has no src/sequence_packer.py" >&2; exit 1; }
	[ -z "$(MODERNBERT)" ] || $(BIN)/pip install --quiet --disable-pip-version-check numba "datasets>=4,<5"

bench-text: bench-env
	[ -d $(GEMMA2) ] || $(BIN)/python -m data_prep.gemma2 --output $(GEMMA2)
	[ -d $(BENCH_UDHR) ] || $(BIN)/python -m data_prep.udhr --whole --output $(BENCH_UDHR)
	[ -d $(BENCH_TEXT) ] || $(BIN)/python -m tests.synthetic_corpus --output $(BENCH_TEXT) --languages 12 --bytes 24000000

$(RESULTS)/step-1024.json: bench-env
	$(BENCH) step --seq 1024 --tokens 8192 --microbatch 5 --threads 2 --peers hf-tuned --min-ratio hf-tuned=1.1 --json $@

$(RESULTS)/step-4096.json: bench-env
	$(BENCH) step --seq 4096 --tokens 8192 --microbatch 1 --threads 2 --peers hf-tuned --repetitions 3 \
	  --min-ratio hf-tuned=1.4 --json $@

$(RESULTS)/step-small-1024.json: bench-env
	$(BENCH) step --model small --seq 1024 --tokens 4096 --microbatch 5 --threads 2 --peers hf-tuned \
	  --min-ratio hf-tuned=1.1 --json $@

$(RESULTS)/head.json: bench-env
	$(BENCH) head --threads 2 --min-memory-ratio 8 --min-ratio full-logits=0.9 --json $@

$(RESULTS)/data.json: bench-env
	$(BENCH) data $(PACKER) --repetitions 15 --min-ratio hf-patched=70 --json $@

$(RESULTS)/data-one-cpu.json: bench-env
	$(BENCH) data --one-cpu $(PACKER) --repetitions 15 --min-ratio hf-patched=50 --json $@

$(RESULTS)/startup.json: bench-env
	$(BENCH) startup --repetitions 3 --json $@

$(RESULTS)/tokenise.json: bench-text
	$(BENCH_DATA) tokenise --input $(BENCH_UDHR) --tokenizer $(GEMMA2) --min-cpu-ratio tokenizers=5 --json $@

$(RESULTS)/pipeline.json: bench-text
	$(BENCH_DATA) pipeline --input $(BENCH_TEXT) --tokenizer $(GEMMA2) --repetitions 3 $(CONVERTER) --json $@

$(RESULTS)/scaling.json: bench-text
	$(BENCH_DATA) scaling --input $(BENCH_TEXT) --tokenizer $(GEMMA2) --repetitions 3 --json $@

CONFIG ?= yamls/demo/phase1.yaml

merge: CONFIG = yamls/merge.yaml
merge: env  ## CONFIG=<yaml>: finished runs, or the checkpoints of one, merged into one run
	$(BIN)/python -m mmbert.merge $(CONFIG)

profile: env  ## CONFIG=<yaml>: a torch profiler trace of a few steps, and a table of where their time goes
	$(BIN)/python -m callbacks.profiling $(CONFIG)

report: env  ## RUN=<run folder, or run root> [QUICK=1]: the run against its plan so far, as RUN/run_report.html
	@[ -n "$(RUN)" ] || { echo "error: give RUN=<run folder>, as in RUN=runs/mmbert-base/phase1" >&2; exit 1; }
	$(BIN)/python -m mmbert.run_report "$(RUN)" $(if $(QUICK),--quick)

KILLS ?= 60

faults: env  ## [KILLS=<number>]: break real runs in every way that docs/reliability.md lists, and write that page
	$(BIN)/python -m tests.faults.run --kills $(KILLS)

check: env  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

lock: env  ## solve requirements.txt anew into requirements.lock
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-emit-package mmbert --no-header --upgrade \
	  requirements.txt -o requirements.lock
