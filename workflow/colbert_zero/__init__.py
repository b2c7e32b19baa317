"""ColBERT-Zero as one graph: from raw text to the table, every artifact named by what decides it.

The rooms, in order; a module imports only from its own room and from the rooms before it:

- `graph`: read a study's config, plan its artifacts, publish them under names that their specs decide
- `machine`: GPUs, distributed processes, SLURM, Apptainer images, and what went wrong in a run
- `data`: fetch sources and collections, clean and shuffle training rows into shards, plan batches
- `models`: base models, late-interaction and dense encoders
- `retrieval`: the nearest documents of a query: by BM25, by one vector of a text, or by one of each token
- `mining`: candidates per training query, and the negatives that the positive-aware filter keeps
- `teaching`: a teacher's scores for distillation
- `evaluation`: indexes, runs and measures
- `training`: train a stage, with checkpoints and evaluations on the way
- `report`: the tables, the figures and the page of a study's report
- `audit`: whether a number can be believed: verify, trace, diff, drift, replay, ladder, bundle, sign, contamination

`cli` is the command `colbert-zero`, on top of all rooms.
"""

import gc
import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:
    # A step starts. What it imports stays until its end: to look through that for garbage, meanwhile and at the end,
    # takes more than a third of the time of importing PyLate. `run_reporting_errors` switches the search on again.
    gc.disable()
