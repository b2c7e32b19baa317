"""Data: from the Hub and the user's files to shuffled rows, batch plans and collections.

In: sources and collections of the Hugging Face Hub, the user's own files, or the docstrings of installed packages.
Out: `sources/*`, `collections/*` and `bases/*` (`fetch`, `docstrings`), `shards/*` (`shards`), `batches/*` (`batches`).
Other rooms read rows with `rows.RowReader`, batches with `batches.BatchPlan`, and collections with `beir.Collection`.

Open `shards` first: it calls `sources` and `scored` (read rows), `row_filter` (validate), `shuffle` (external sort) and
`rows` (write Parquet). `text` decides what text a model sees, and which texts count as the same.
"""
