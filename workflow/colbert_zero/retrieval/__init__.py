"""How the nearest documents of a query are found: by their words, by one vector of each text, or by one of each token.

In: texts, or the vectors that a model makes of them (`encode`, in the files of `vectors`).
Out: the numbers of documents, with scores: by BM25 (`lucene`); by the greatest inner products of all (`nearest`) or of
those in the nearest lists (`inverted_file`); by MaxSim of all (`maxsim`) or of those that PLAID finds (`plaid_index`,
`plaid_search`).

Nothing here knows a spec or makes an artifact: mining, teaching and evaluation do. Open `maxsim.py` first.
"""
