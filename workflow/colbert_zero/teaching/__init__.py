"""Teaching: a re-ranker's scores of each training query's documents, for the distillation stage.

In: the shards of a source (`shards/*`), the candidates mined in it (`candidates/*`) and, for a neural teacher, its
model.
Out: `scores/*`, rows of a query, its documents, and their scores, raw and min-max normalised.

Open `scoring.py` first: it chooses the documents to score and writes the scores. `bm25.py`, `neural.py` and
`ensemble.py`, which averages the scores of others, are the steps. The models of `neural.py` are in `rerankers.py` and
`late_interaction.py`, and `pairs.py` and `pair_encoder.py` make their inputs; `prefix_cache.py` has a language model
read a query once. `report.py` says what the scores are like, `agreement.py` how far teachers agree; `export.py` is the
command that writes scores as a dataset.
"""
