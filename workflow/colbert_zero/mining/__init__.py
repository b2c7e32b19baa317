"""Mining: the hard negatives of the supervised stage, and the candidates that a teacher scores.

In: the shards of a source (`shards/*`) and, for a dense miner, an encoder.
Out: `candidates/*`, the documents that a miner ranks highest for each training query (`bm25`, `dense`), and
`negatives/*`, the candidates that pass the filters (`filters`, `resemblance`) and are chosen (`sampler`, `negatives`).

Open `candidates.py` first: the format that miners write and that `negatives` and the room `teaching` read. `corpus.py`
numbers the documents of a source.
"""
