"""The paper's tables with ours beside: every number in its place, and LaTeX that is whole."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colbert_zero.graph.published import paper
from colbert_zero.report.paper import AgainstThePaper, Comparison
from colbert_zero.report.paper_tables import paper_files
from colbert_zero.report.text_tables import LATEX, latex_text, markdown_table

PAPER = paper()


def against(*rows: tuple[str, str, bool]) -> AgainstThePaper:
    published = PAPER.rows
    return AgainstThePaper(
        [
            Comparison(row, trained, published[name], {c: v + 0.25 for c, v in published[name].numbers.values.items()})
            for name, row, trained in rows
        ]
    )


FILES = dict(
    paper_files(
        against(
            ("c-distilled", "mine_%", True),
            ("c-distilled", "released", False),
            ("c-distilled-noprompts", "mine-noprompts", True),
            ("dense-supervised", "embed & co", False),
        )
    )
)


def lines_of(text: str) -> list[list[str]]:
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set(" -:")]


@pytest.mark.parametrize("name", PAPER.tables)
def test_every_row_of_the_paper_has_its_numbers_and_ours_beside_or_a_dash(name):
    rows = {(row[0].split(" [")[0], *row[2:18]) for row in lines_of(FILES[f"paper/{name}.md"])}
    for row in PAPER.tables[name].rows:
        numbers = PAPER.rows[row.model].numbers
        values = [*numbers.values.values(), numbers.average]
        paired = row.model in ("c-distilled", "c-distilled-noprompts", "dense-supervised")
        # The shift of each column is that of the mean, but for the rounding of the paper's own.
        ours = [f"{value + 0.25:.2f}" for value in numbers.values.values()] if paired else ["–"] * 15
        cells = [f"{value:.2f} / {our}" for value, our in zip(values, ours, strict=False)]
        assert any(line[0] == row.label and list(line[1:16]) == cells for line in rows), row


def test_a_row_that_two_of_ours_are_compared_with_has_a_line_for_each_trained_first():
    lines = [line for line in lines_of(FILES["paper/table2.md"]) if line[0] == "(c) distilled"]
    assert [line[1] for line in lines] == ["mine_%", "released"]
    without = [line for line in lines_of(FILES["paper/table2.md"]) if line[0] == "(a) distilled"]
    assert [line[1] for line in without] == ["–"]


def test_differences_are_the_papers_and_ours_between_rows_of_one_kind():
    lines = {(line[0], line[1]): line[-1] for line in lines_of(FILES["paper/table3.md"])}
    assert lines["without prompts [with prompts]", "mine-noprompts"] == "-1.26 / -1.26"
    assert lines["with prompts [without prompts]", "–"] == "-0.43 / –"
    assert lines["with prompts", "released"] == ""
    table4 = {(line[0], line[1]): line[-1] for line in lines_of(FILES["paper/table4.md"])}
    assert table4["prompts, 7 more tokens [neither]", "mine_%"] == "+1.26 / +1.26"
    assert table4["prompts, 7 more tokens [neither]", "released"] == "+1.26 / –", (
        "what it would be compared with is trained"
    )


def test_ours_has_no_mean_where_a_collection_is_missing():
    published = PAPER.rows["c-distilled"]
    values = {name: value for name, value in published.numbers.values.items() if name != "nq"}
    files = dict(paper_files(AgainstThePaper([Comparison("mine", True, published, values)])))
    (line,) = (line for line in lines_of(files["paper/table2.md"]) if line[1] == "mine")
    assert line[-1] == "55.43 / –"
    assert "61.66 / –" in line


# LaTeX


def check_latex(text: str) -> None:
    """Refuse what LaTeX would: braces or environments that do not close, rows of another length, raw specials."""
    text = re.sub(r"(?m)^%.*\n", "", text)
    assert text.isascii()
    depth, environments = 0, []
    for token in re.finditer(
        r"\\begin\{(\w+\*?)\}|\\end\{(\w+\*?)\}|\\[a-zA-Z]+|\\.|[{}%#$&_^~\"<>|]|\n\n", text, re.DOTALL
    ):
        word = token[0]
        if word.startswith("\\begin"):
            environments.append(token[1])
        elif word.startswith("\\end"):
            assert environments.pop() == token[2]
        elif word == "{":
            depth += 1
        elif word == "}":
            depth -= 1
            assert depth >= 0
        else:
            assert word[0] in "\\$&", f"{word!r} at {token.start()}"
    assert depth == 0
    assert environments == []
    assert len(re.findall(r"(?<!\\)\$", text)) % 2 == 0
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
    body = text.partition(r"\toprule")[2].partition(r"\bottomrule")[0]
    rows = [row for row in re.split(r"\\\\(?:\[3pt\])?\n", body) if row.strip()]
    for row in rows:
        if r"\multicolumn" in row:
            assert re.search(rf"\\multicolumn\{{{columns}\}}", row)
        else:
            assert len(re.findall(r"(?<!\\)&", row)) == columns - 1, row


@pytest.mark.parametrize("name", PAPER.tables)
def test_latex_is_whole_and_has_the_numbers_of_markdown(name):
    latex, markdown = FILES[f"paper/{name}.tex"], FILES[f"paper/{name}.md"]
    check_latex(latex)
    pairs = re.findall(r"\\shortstack\[r\]\{([-+.\d]+)\\\\([-+.\d]+)\}", latex)
    assert pairs == [
        (a, b.replace("–", "--")) for a, b in re.findall(r"([-+]?\d+\.\d\d) / ([-+]?\d+\.\d\d|–)", markdown)
    ]


@pytest.mark.parametrize("broken", ["{", "}", "_", "%x", "&", "#", r"\end{table*}", "–"])
def test_the_check_of_latex_finds_what_is_broken(broken):
    text = FILES["paper/table2.tex"]
    with pytest.raises((AssertionError, IndexError)):
        check_latex(text.replace(r"\bottomrule", rf"{broken} \bottomrule"))


@given(st.text(alphabet=[*LATEX, *"aZ9 ."], max_size=40))
def test_any_name_is_printed_as_it_is(text):
    printed = {latex: character for character, latex in LATEX.items()}
    pattern = "|".join(map(re.escape, sorted(printed, key=len, reverse=True)))
    assert re.sub(pattern, lambda found: printed[found[0]], latex_text(text)) == text


@given(st.lists(st.lists(st.text(max_size=12), min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_markdown_table_has_as_many_cells_in_each_line_whatever_they_hold(lines):
    table = markdown_table([["a", "b", "c"], *lines], {0})
    assert len(table) == len(lines) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 4 for line in table if "\\" not in line)
    assert all(len(before) == len(after) for before, after in pairwise(table))
