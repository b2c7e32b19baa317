# make demo            the embedded study, from raw text to the table
# make demo-pretrained the same text, and a model that was trained before: installs it, runs the graph, prints the table
# make test            linters, types and tests
# make test-demo       the commands of docs/audit.md on the demo: verify, trace, diff, drift, replay, ladder ...
# make host            what a login node needs: Snakemake, its executors and what fetching and tables take
# make browser         Debian's chromium on this machine, for tests (Debian, as root)
# make test-browser    the report's page in it, on a phone and on a desk: legible, complete, without a request
# make cluster         a SLURM of three nodes and Apptainer on this machine, for tests (Debian, as root)
# make cluster-images  the images that the tests on it run in, which these build too if there are none
# make test-cluster    the tests on it: rows of the embedded study in real images (or all: ALL_ROWS=1), and everything
#                      that ends a job too soon
# make test-cluster-paper  on it, some rows of the paper's study, tiny, or all of them (ALL_ROWS=1); and work in pieces
# make cluster-stop    ends it
# make bench-data      from files to batches, against the library that the reference uses: rows/s and memory
# make bench-mining    hard negatives, against mine_hard_negatives of sentence-transformers: time and memory
# make bench-train     each stage against the trainers of PyLate and sentence-transformers 6: samples/s and memory
# make bench-teaching  a re-ranker's scores against sentence-transformers' own predict: pairs/s and memory
# make check-gpu       on a machine with a GPU: what a training computes there against PyLate, and the table of speeds
# make bench-eval      encoding, indexes and searches against PyLate's, with the same vectors: documents/s and queries/s
# make bench-statistics the tests of the report's differences, at the paper's size: time and memory
# make bench-scale     a study of a million documents, killed ten times: memory, disk, and the same bytes; hours
# make bench-audit     how fast a study is verified, against OpenSSL's SHA-256 on the same bytes
# make mutants         small changes of the code that no unit test notices; hours, or CHANGED=mining/corpus.py
# make lock            the locks anew, from envs/*.in (needs uv)
SHELL := /bin/bash
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: demo demo-pretrained test test-demo lint host browser test-browser cluster test-cluster test-cluster-paper
.PHONY: cluster-images cluster-stop
BENCHES = $(addprefix bench-,audit data eval mining scale statistics teaching train)
.PHONY: $(BENCHES) check-gpu mutants lock

demo: .venv/installed
	snakemake --profile local
	colbert-zero table --directory local

demo-pretrained: .venv/installed .venv/pretrained/installed
	snakemake --profile local --directory local/pretrained
	colbert-zero table --directory local/pretrained

# The longest file first, so that no process is left alone with it; pytest-xdist would begin with the most tests.
test: .venv/installed .venv/peers/installed .venv/validators/installed lint
	pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder tests/workflow tests/unit tests/contract

lint: .venv/installed
	ruff check workflow tests envs
	ruff format --check workflow tests envs
	mypy
	lint-imports
	snakefmt --check Snakefile workflow/rules
	snakemake --profile local --lint

host: .venv/host

cluster:
	tests/cluster/cluster.sh start

cluster-images: .venv/host cluster
	eval "$$(tests/cluster/cluster.sh env)" && PYTHONPATH=tests python tests/cluster/build_images.py

cluster-stop:
	tests/cluster/cluster.sh stop

browser:
	@command -v chromium > /dev/null || { apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends chromium fonts-dejavu-core; }

test-browser: .venv/installed .venv/browser/installed browser
	PYTHONPATH=.venv/browser pytest tests/browser

test-demo: demo
	pytest tests/demo

# The embedded study on this machine is what the cluster's is compared with.
test-cluster: demo cluster-images
	eval "$$(tests/cluster/cluster.sh env)" && ALL_ROWS=$(ALL_ROWS) pytest tests/cluster/test_embedded_study.py
	eval "$$(tests/cluster/cluster.sh env)" && pytest -n 3 tests/cluster/test_interruptions.py tests/cluster/test_site.py

test-cluster-paper: .venv/installed cluster-images
	eval "$$(tests/cluster/cluster.sh env)" && \
	  ALL_ROWS=$(ALL_ROWS) pytest tests/cluster/test_pieces.py tests/cluster/test_paper_part.py

bench-teaching bench-train check-gpu: .venv/peers/installed

check-gpu: .venv/installed
	python tests/benchmarks/check_gpu.py --threads $$(nproc)

$(BENCHES): .venv/installed
	python tests/benchmarks/$(subst -,_,$@).py

mutants: .venv/installed
	python tests/mutants.py --jobs $$(nproc) $(CHANGED)

# The markers are touched last, so an interrupted installation is taken up again. The larger one does for the smaller.
.venv/host: envs/host.txt envs/install.py pyproject.toml
	@$(PYTHON) envs/install.py host
	@touch $@

.venv/installed: envs/local.txt envs/install.py pyproject.toml
	@$(PYTHON) envs/install.py local
	@touch .venv/host $@

# What our models are compared with, what our bundles and signatures are tried with, and what drives a browser, for
# processes of their own: `PYTHONPATH=.venv/peers python ...`. And a model, of whose package only the files are read.
BESIDE = $(patsubst %,.venv/%/installed,browser peers pretrained validators)
$(BESIDE): .venv/%/installed: envs/%.txt envs/install.py | .venv/installed
	@$(PYTHON) envs/install.py $*
	@touch $@

# Packages in NAME.excludes are left out even where another package asks for them; those of local.txt have one version
# everywhere. peers.txt and pretrained.txt are what is installed beside an environment, without dependencies of their
# own; browser and validators may have other versions than the environment, and bring all that they need.
lock:
	cd envs && for name in local host torch lucene browser validators; do \
	  uv pip compile --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-header \
	    $$([[ $$name =~ ^(local|browser|validators)$$ ]] || echo "--constraint local.txt") \
	    $$([ ! -e $$name.excludes ] || echo "--excludes $$name.excludes") $$name.in --output-file $$name.txt; done
	cd envs && for name in peers pretrained; do \
	  uv pip compile --no-deps --generate-hashes --no-header $$name.in --output-file $$name.txt; done
