"""What sources are to a plan: their files by content, and no setting of shards that means nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import read_config
from colbert_zero.graph.console import UserError
from colbert_zero.graph.data_files import SCORES_ROLES
from colbert_zero.graph.digests import file_digest
from colbert_zero.graph.paths import REPOSITORY
from colbert_zero.graph.study import Study

EMBEDDED = read_config(REPOSITORY / "local" / "config.yaml")


def planned(folder: Path, kind: str, **changes: Any) -> list[Spec]:
    """Artifacts of a kind of the embedded study, if its distillation has another source."""
    config = copy.deepcopy(EMBEDDED)
    for section, changed in changes.items():
        config[section] = config.get(section, {}) | changed
    return [spec for spec in Study(config, folder).specs.values() if spec.kind == kind]


def distilling(**source: Any) -> dict[str, Any]:
    """Changes with which the distillation's source is `mine`."""
    stage = EMBEDDED["stages"]["distillation"] | {"sources": ["mine"]}
    if "scores" in source:
        stage |= {"teacher": None, "documents": 2}
    return {"sources": {"mine": source}, "stages": {**EMBEDDED["stages"], "distillation": stage}}


@pytest.mark.parametrize("share", [1, 0.5])
def test_shards_have_a_share_where_it_is_not_all(tmp_path: Path, share: float) -> None:
    found = planned(tmp_path, "shards", shards={"share": share})
    assert {spec.settings.get("share", 1) for spec in found} == {share}
    assert {"share" in spec.settings for spec in found} == {share != 1}


def test_a_folder_of_rows_is_its_files_by_content(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    for name in "ba":
        (tmp_path / "rows" / f"{name}.jsonl").write_text(f'{{"query": "{name}", "document": "d"}}')
    (mine,) = [spec for spec in planned(tmp_path, "sources", **distilling(file="rows")) if spec.label == "file.mine"]
    assert mine.settings["files"] == [
        {"name": name, "sha256": file_digest(tmp_path / "rows" / name)} for name in ("a.jsonl", "b.jsonl")
    ]


def write_scores(folder: Path) -> None:
    folder.mkdir()
    for role in SCORES_ROLES:
        (folder / f"{role}.parquet").write_text(role)


def test_a_folder_of_scores_is_its_tables_by_content(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores")
    (tmp_path / "scores" / "other.parquet").touch()
    found = planned(tmp_path, "sources", **distilling(scores="scores", documents=2))
    (mine,) = [spec for spec in found if spec.label == "folder.mine"]
    assert mine.settings == {
        "format": "scored",
        "documents": 2,
        "files": [
            {"name": f"{role}.parquet", "sha256": file_digest(tmp_path / "scores" / f"{role}.parquet")}
            for role in sorted(SCORES_ROLES)
        ],
    }


def test_scores_that_are_not_all_there_are_one_line(tmp_path: Path) -> None:
    write_scores(tmp_path / "scores")
    for given, words in (
        ({"scores": "scores"}, "sources.mine: documents is missing: how many scored documents each query has"),
        (
            {"scores": "scores/train.parquet", "documents": 2},
            f"sources.mine.scores: {tmp_path}/scores/train.parquet has no train.parquet or train-*.parquet; name a ",
        ),
    ):
        with pytest.raises(UserError) as caught:
            planned(tmp_path, "sources", **distilling(**given))
        assert str(caught.value).startswith(f"config.yaml: {words}")
    (tmp_path / "scores" / "queries.parquet").unlink()
    with pytest.raises(UserError, match=r"scores has no queries.parquet or queries-\*.parquet"):
        planned(tmp_path, "sources", **distilling(scores="scores", documents=2))
