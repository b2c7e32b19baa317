"""A report that is compared with published numbers: its files hold, a forged one is found, and a command shows them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from forger import Forger

import finished_study as small_study
from colbert_zero.audit.findings import Check
from colbert_zero.audit.verify import findings
from colbert_zero.cli import main
from colbert_zero.graph.artifact import artifact_folder
from colbert_zero.graph.config import CONFIG_FILE, read_config
from colbert_zero.graph.study import Study


@pytest.fixture(scope="module")
def compared(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished study, its report made again for a config that names published rows; not to be changed."""
    folder = shutil.copytree(finished_study, tmp_path_factory.mktemp("compared") / "study")
    config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    config = config.replace("  all: { base", "  all: { published: c-distilled, base")
    config = config.replace("  bm25: { bm25: {} }\n", "  bm25: { bm25: {}, published: pyserini-bm25 }\n")
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")
    with chdir(folder):
        planned = Study(read_config(Path(CONFIG_FILE)), Path())
        for kind in ("releases", "reports"):
            shutil.rmtree(f"results/{kind}", ignore_errors=True)
        small_study.make(planned, planned.report)
    return folder


@pytest.fixture
def study(compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy to tamper with; the current folder."""
    folder = shutil.copytree(compared, tmp_path / "study")
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(tmp_path)


def in_reports() -> list[tuple[str, Check]]:
    return [(finding.artifact.partition("/")[0], finding.check) for finding in findings(Path())]


def test_a_report_with_the_papers_tables_is_whole(study):
    assert in_reports() == []


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("paper/table2.md", "55.43 / –", "55.43 / 55.40"),
        ("paper/table3.tex", r"54.61\\--", r"54.61\\54.60"),
        ("paper/comparison.csv", "not measured", "within"),
        ("paper/comparison.md", "nothing is compared", "all is within"),
    ],
)
def test_a_forged_number_of_the_papers_tables_is_found(study, file, old, new):
    forger = Forger(study, file)
    path = forger.folder(forger.report) / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert in_reports() == [("reports", Check.ARTIFACT)]
    forger.fit(forger.report)
    assert in_reports() == [("reports", Check.NUMBERS)]


def test_a_removed_table_is_found_also_if_the_record_fits(study):
    forger = Forger(study, "removed")
    (forger.folder(forger.report) / "paper/table2.md").unlink()
    forger.fit(forger.report)
    assert in_reports() == [("reports", Check.NUMBERS)]


def test_compare_shows_the_verdict_and_the_papers_tables(study, capsys):
    report = artifact_folder(Study(read_config(Path(CONFIG_FILE)), Path()).report.name)
    assert main(["compare"]) == 0
    assert capsys.readouterr().out == (report / "paper/comparison.md").read_text(encoding="utf-8")
    for form, suffix in (("--markdown", "md"), ("--latex", "tex")):
        assert main(["compare", form]) == 0
        out = capsys.readouterr().out
        for table in ("table2", "table3", "table4"):
            assert (report / f"paper/{table}.{suffix}").read_text(encoding="utf-8") in out


def test_without_a_published_row_compare_says_how_to_name_one(finished_study, capsys):
    assert main(["compare", "--directory", str(finished_study)]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "no row says what it is compared with; give a recipe or a baseline its published row, such as" in message


def test_before_the_report_is_made_compare_says_so(study, capsys):
    shutil.rmtree("results/reports")
    assert main(["compare"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
