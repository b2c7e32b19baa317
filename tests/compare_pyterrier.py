"""Test runs against the first of them with PyTerrier, with the packages of `.venv/peers`; without Java or a network.

    PYTHONPATH=.venv/peers python tests/compare_pyterrier.py FILE

The file is JSON: `qrels`, grades by query and document; `runs`, by name the scores by query and document. Writes JSON:
by name the mean nDCG@10, and but for the first run the p value of the paired t test and the one corrected by Holm.
"""

import json
import sys

import pandas as pd
import pyterrier

with open(sys.argv[1], encoding="utf-8") as file:
    given = json.load(file)


def table(value, rows):
    return pd.DataFrame(
        [(query, document, number) for query, of in rows.items() for document, number in of.items()],
        columns=["qid", "docno", value],
    )


experiment = pyterrier.Experiment(
    [table("score", run) for run in given["runs"].values()],
    pd.DataFrame({"qid": list(given["qrels"]), "query": "words"}),
    table("label", given["qrels"]),
    ["ndcg_cut_10"],
    names=list(given["runs"]),
    baseline=0,
    test="t",
    correction="holm",
)
columns = ["ndcg_cut_10", "ndcg_cut_10 p-value", "ndcg_cut_10 p-value corrected"]
json.dump({row["name"]: [row[column] for column in columns] for _, row in experiment.iterrows()}, sys.stdout)
