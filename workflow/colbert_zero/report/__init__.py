"""What a study found: its table, figures and statistics, and how every number was made.

In: the measures of every recipe and baseline, and the specs and manifests of all artifacts behind them.
Out: the artifact `reports` with `table.md`, `table.csv`, `statistics.json` and `report.html`, one page to read offline;
and `negatives.html`, some rows with their mined negatives.

`status.py`, `plan.py` and `ledger.py` say of a study, finished or not, what runs and waits, what is left, and what it
has cost: by counts (`sizes.py`), estimates (`forecast.py`) and manifests (`costs.py`).

`release.py` makes of a model a folder to publish, the artifact `releases`: `model_card.py` writes its card.

`search.py` shows what a row finds for words of one's own, and `query_differences.py` the queries on which two rows
differ; `mteb_results.py` writes a report's results in MTEB's form.

Open `page.py` first: it arranges rows and columns and fills `workflow/report/page.html`. `results.py` computes means,
`statistics/` says which differences are more than chance, `figures.py` draws the SVG, `sections.py` turns specs and
manifests into tables, and `chain_section.py` says what each number rests on.
"""
