"""Which differences between rows of the table are more than chance: tests, intervals, effects and power.

In: the value of each row, or of each of its seeds, for each judged query. Out: what `statistics.json` holds, and the
section "Statistics" of the page.

Open `comparison.py` first: it compares every recipe with the reference row. `values.py` has the values as arrays,
`resampling.py` draws signs, queries, seeds and orders of rows, `significance.py` turns draws into p values and corrects
them, `record.py` writes the file and `section.py` the section. docs/statistics.md has the definitions and their
sources.
"""
