"""`colbert-zero plan` says of each change of the contract of partial reruns what Snakemake would run."""

import copy
from pathlib import Path

import pytest
from test_partial_reruns import CONTRACT, EMBEDDED, complete

from colbert_zero.graph.assignments import with_assignments
from colbert_zero.graph.console import UserError
from colbert_zero.graph.inventory import Inventory
from colbert_zero.graph.study import Study
from colbert_zero.report.plan import Plan, changes
from colbert_zero.report.sizes import Manifests


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study in which everything has been made, as its `spec.json` files say."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        complete(Study(EMBEDDED, Path()), folder)
        yield folder


@pytest.mark.parametrize("change", CONTRACT)
def test_exactly_these_are_to_be_made(finished, change):
    apply, expected = CONTRACT[change]
    config = copy.deepcopy(EMBEDDED)
    apply(config)
    study = Study(config, Path())
    assert {spec.name for spec in Inventory(study).to_make} == expected(study)


def test_a_change_of_the_command_line_is_that_of_the_config(finished):
    _, expected = CONTRACT["a prompt of the unsupervised stage"]
    assignments = [
        'prompts.other={ query: "query: ", document: "passage: " }',
        "stages.unsupervised.prompts=other",
        "recipes.colbert-zero.mismatch=allowed",
    ]
    count = len(expected(Study(with_assignments(EMBEDDED, assignments), Path())))
    lines = list(changes(Plan(Study(EMBEDDED, Path()), Manifests(), []), EMBEDDED, assignments))
    assert any(isinstance(line, str) and line.startswith(f"{count} artifacts new: ") for line in lines)
    states = {line[0]: line[1:4] for block in lines if not isinstance(block, str) for line in block}
    assert states["colbert-zero"] == states["colbert-zero-mismatched"] == ["new", "new", "new"]
    assert states["colbert-zero-noprompts"] == ["unchanged", "unchanged", "unchanged"]
    assert states["supervised-distillation"] == ["–", "unchanged", "unchanged"]


def test_a_change_that_snakemake_refuses_for_its_prompts_is_told_with_its_cost(finished):
    def told(assignments):
        return list(changes(Plan(Study(EMBEDDED, Path()), Manifests(), []), EMBEDDED, assignments))

    _, refusal, *rest = told(["stages.supervised.prompts=none"])
    assert refusal.startswith("snakemake refuses it as it is: recipes.colbert-zero, stage supervised: query_prompt is")
    # It costs what the same change costs where it is allowed.
    _, *allowed = told(
        ["stages.supervised.prompts=none", *(f"recipes.{name}.mismatch=allowed" for name in EMBEDDED["recipes"])]
    )
    assert rest == allowed


def test_any_other_mistake_of_a_change_is_an_error(finished):
    with pytest.raises(UserError, match=r"did you mean search\?"):
        list(changes(Plan(Study(EMBEDDED, Path()), Manifests(), []), EMBEDDED, ["stages.supervised.prompts=serch"]))
