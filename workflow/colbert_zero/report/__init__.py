"""What a study found: its table, figures and statistics, and how every number was made.

In: the measures of every recipe and baseline, and the specs and manifests of all artifacts behind them.
Out: the artifact `reports` with `table.md`, `table.csv` and `report.html`, one page to read offline.

Open `page.py` first: it arranges rows and columns and fills `workflow/report/page.html`. `results.py` computes means
and paired differences, `figures.py` draws the SVG, `sections.py` turns specs and manifests into tables,
and `chain_section.py` says what each number rests on.
"""
