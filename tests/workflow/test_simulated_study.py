"""The study that `make bench-scale` runs is one that plans, in the proportions of the paper's collections."""

from pathlib import Path

import simulated_study
from colbert_zero.graph.config import read_config
from colbert_zero.graph.study import Study


def test_the_simulated_study_has_every_long_step(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    simulated_study.write(folder, 2000, 200)
    study = Study(read_config(folder / "config.yaml"), folder)
    kinds = {spec.kind for spec in study.specs.values()}
    assert kinds >= {"candidates", "negatives", "scores", "models", "indexes", "runs", "measures", "reports"}
    assert len([spec for spec in study.specs.values() if spec.kind == "indexes"]) == 14
    lines = {path.parent.name: len(path.read_text().splitlines()) for path in folder.glob("data/*/corpus.jsonl")}
    rows = {name: len((folder / "data" / f"{name}.jsonl").read_text().splitlines()) for name in ("mined", "taught")}
    assert rows == {"mined": 75, "taught": 25}
    assert max(lines, key=lambda name: lines[name]) == "msmarco" and abs(sum(lines.values()) - 1900) < 100
