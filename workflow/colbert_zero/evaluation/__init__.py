"""How good a model is: search a collection with it, and measure what it retrieves.

In: a collection (corpus, queries, judgements) and a trained model, an untrained base or BM25's parameters.
Out: the artifacts `indexes` (token vectors or PLAID), `runs` (TREC format) and `measures` (a value per query).

Open `index.py` first, then follow the data: `index` -> `search` -> `measure`; `bm25` makes a run without a model.
`dense_index` and `dense_search` do the same for models with one vector for each text, which `embeddings.py` keeps.
`document_pieces.py` says in which pieces documents are encoded, and takes those that another index has encoded.
`adhoc.py` searches for words of one's own, and `token_matches.py` says which token met which. `trec.py` reads and
writes runs. The training room calls `search_exact` and `measure` to evaluate a model between two steps.
"""
