"""From pairs to hard negatives: our steps against `mine_hard_negatives`, with one model, in the same run.

    make bench-mining
    python tests/benchmarks/bench_mining.py [--pairs N] [--growth N N ...] [--model FOLDER] [--folder FOLDER]

Both start from the same pairs and end with the same number of negatives for each, the best below the positive. Without
`--model`, the encoder has the shape of all-MiniLM-L6-v2 and random weights. The share of pairs with equal negatives is
printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench_data import DOCUMENT_WORDS, QUERY_WORDS
from colbert_zero.data.rows import PAIR_SCHEMA, RowWriter
from colbert_zero.graph.artifact import MANIFEST_FILE, SPEC_FILE, Spec, file_digests
from measured import Measured, measure, table, work_folder

DEPTH, NEGATIVES, LENGTH, THREADS = 100, 5, 256, 2
LENGTHS = (QUERY_WORDS, DOCUMENT_WORDS)
WORDS = 20_000
"""Words of the texts; a document's query has words of it."""


def generate(file: Path, pairs: int) -> None:
    """Write so many pairs of texts: Zipfian words, the query's from its document."""
    random = np.random.default_rng(7)
    letters = np.array(list("etaoinshrdlcumwfgypbvk"))
    words = np.array(
        ["".join(letters[random.integers(0, len(letters), size)]) for size in random.integers(2, 10, WORDS)]
    )
    queries, documents = [], []
    for number in range(pairs):
        sizes = [int(np.exp(random.normal(np.log(median), sigma)).clip(3, 200)) for median, sigma in LENGTHS]
        document = words[random.zipf(1.3, sizes[1]) % WORDS]
        queries.append(f"{number} {' '.join(random.choice(document, sizes[0]))}")
        documents.append(f"{' '.join(document)} {number}")
    pq.write_table(pa.table({"query": queries, "document": documents}), file)


def random_model(folder: Path, file: Path) -> Path:
    """Save an encoder of the shape of all-MiniLM-L6-v2, with random weights and a vocabulary of the texts' words."""
    import torch
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    texts = pq.read_table(file).to_pydict()
    words = sorted({word for column in texts.values() for text in column for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(1)
    BertModel(config).save_pretrained(folder / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH, **names).save_pretrained(
        folder / "base"
    )
    SentenceTransformer(str(folder / "base"), device="cpu").save(str(folder / "model"), create_model_card=False)
    return folder / "model"


def publish(study: Path, spec: Spec, facts: dict[str, object]) -> None:
    """Publish the files that are in an artifact's folder without a step."""
    folder = study / spec.folder
    (folder / SPEC_FILE).write_text(spec.text)
    (folder / MANIFEST_FILE).write_text(json.dumps({"outputs": file_digests(folder), "facts": facts}))


def ours(folder: Path, model: Path) -> tuple[Measured, Measured, dict[str, list[str]]]:
    """Candidates, then negatives; the negatives of each query."""
    study = folder / "study"
    shards = Spec("shards", "mine", {"rows_per_shard": 100_000})
    base = Spec("bases", "folder.model", {})
    (study / shards.folder).mkdir(parents=True)
    with RowWriter(study / shards.folder, PAIR_SCHEMA, 100_000) as writer:
        writer.write(pq.read_table(folder / "pairs.parquet"))
    publish(study, shards, writer.facts)
    (study / base.folder).parent.mkdir(parents=True)
    (study / base.folder).symlink_to(model.resolve())
    publish(study, base, {})
    encoder = {"kind": "sentence-transformers", "query_prompt": "", "document_prompt": "", "maximum_length": LENGTH}
    inputs = {"shards": [shards.name], "model": [base.name]}
    candidates = Spec("candidates", "dense.mine", {"encoder": encoder, "depth": DEPTH + 1}, inputs)
    settings = {"p": 1.0, "negatives": NEGATIVES, "skip": 0, "choose": "top", "seed": 7}
    negatives = Spec("negatives", "mine", settings, {"shards": [shards.name], "candidates": [candidates.name]})
    module = [sys.executable, "-m"]
    command = [*module, "colbert_zero.mining.dense", "--spec", candidates.text, "--threads", str(THREADS)]
    mined = measure([*command, "--device", "cpu"], study)
    kept = measure([*module, "colbert_zero.mining.negatives", "--spec", negatives.text], study)
    rows = pa.concat_tables(pq.read_table(file) for file in sorted((study / negatives.folder).glob("*.parquet")))
    return mined, kept, dict(zip(rows["query"].to_pylist(), rows["negatives"].to_pylist(), strict=True))


def theirs(folder: Path, model: Path) -> tuple[Measured, dict[str, list[str]]]:
    """The same with sentence-transformers; the negatives of each query."""
    script = str(Path(__file__).with_name("mine_theirs.py"))
    files = [str(folder / "pairs.parquet"), str(folder / "theirs.parquet")]
    task = {"model": str(model), "depth": DEPTH, "negatives": NEGATIVES, "length": LENGTH, "threads": THREADS}
    measured = measure([sys.executable, script, *files, json.dumps(task)], folder)
    rows = pq.read_table(files[1]).to_pylist()
    return measured, {row["query"]: [row[f"negative_{at + 1}"] for at in range(NEGATIVES)] for row in rows}


def processor_seconds() -> float:
    """Processor seconds of all commands so far: what says more than the clock on a machine that others use."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, print the table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3000, help="pairs for both")
    parser.add_argument("--growth", type=int, nargs="*", default=[], help="pairs for ours alone")
    parser.add_argument("--model", type=Path, help="the folder of a sentence-transformers model")
    parser.add_argument("--folder", type=work_folder, help="where to write; by default in TMPDIR")
    options = parser.parse_args()
    lines, ratios = [], ""
    for pairs in sorted([options.pairs, *options.growth]):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            generate(folder / "pairs.parquet", pairs)
            model = options.model or random_model(folder, folder / "pairs.parquet")
            before = processor_seconds()
            mined, kept, found = ours(folder, model)
            used = processor_seconds() - before
            seconds, memory = mined.seconds + kept.seconds, max(mined.anonymous, kept.anonymous)
            lines.append(("ours", f"{pairs:,}", f"{seconds:.0f}", f"{used:.0f}", memory))
            if pairs == options.pairs:
                before = processor_seconds()
                measured, others = theirs(folder, model)
                theirs_used = processor_seconds() - before
                lines.append(
                    ("theirs", f"{pairs:,}", f"{measured.seconds:.0f}", f"{theirs_used:.0f}", measured.anonymous)
                )
                both = found.keys() & others.keys()
                equal = sum(found[query] == others[query] for query in both)
                ratios = (
                    f"{pairs:,} pairs: {measured.seconds / seconds:.2f} times as fast by the clock, "
                    f"{theirs_used / used:.2f} by processor seconds; of {len(found.keys() | others.keys())} queries "
                    f"with negatives, {len(both)} have some of both, {equal} the same"
                )
    print(table(("", "pairs", "seconds", "processor seconds", "MiB, no files"), lines))
    print(ratios)


if __name__ == "__main__":
    main()
