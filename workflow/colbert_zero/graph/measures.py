"""The measures that a study may name: a check of their names, and the one name of each.

Measures are named as in `ir_measures`: `nDCG@10`, `AP(rel=2)@100`. `ir_measures` itself is not asked here: planning
imports nothing heavy, a login node may lack it, and it finds several mistakes late or never (`nDCG@0` ends the process,
and of two names of one measure it computes one). The tests compare this table with it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from colbert_zero.graph.console import UserError


class Family(NamedTuple):
    """Measures that differ in their parameters only.

    Attributes:
        cutoff: Whether they look at the first k documents only; k is then part of the name.
        parameters: The parameters that may stand in parentheses.
    """

    cutoff: bool
    parameters: tuple[str, ...]


FAMILIES: Mapping[str, Family] = {
    "nDCG": Family(cutoff=True, parameters=("judged_only",)),
    "AP": Family(cutoff=True, parameters=("judged_only", "rel")),
    "RR": Family(cutoff=True, parameters=("rel",)),
    "P": Family(cutoff=True, parameters=("judged_only", "rel")),
    "R": Family(cutoff=True, parameters=("judged_only", "rel")),
    "Success": Family(cutoff=True, parameters=("judged_only", "rel")),
    "Judged": Family(cutoff=True, parameters=()),
    "Rprec": Family(cutoff=False, parameters=("judged_only", "rel")),
    "Bpref": Family(cutoff=False, parameters=("rel",)),
}
"""What the installed packages compute, per query and between 0 and 1. Other measures of `ir_measures` need a package
that images do not have (ERR, RBP, alpha_nDCG), are counts (NumRet), or have no value for some queries (Accuracy)."""
ALIASES: Mapping[str, str] = {
    "NDCG": "nDCG",
    "MAP": "AP",
    "MRR": "RR",
    "Precision": "P",
    "Recall": "R",
    "RPrec": "Rprec",
    "BPref": "Bpref",
}
"""Other names of families in `ir_measures`."""
TREC_EVAL_NAMES: Mapping[str, str] = {"ndcg_cut": "nDCG", "map_cut": "AP", "recip_rank": "RR", "recall": "R"}
"""What trec_eval calls them; only for the suggestion in an error."""
MAXIMUM_CHARACTERS = 60
"""No name of a measure is longer."""
DEFAULTS: Mapping[str, str] = {"rel": "1", "judged_only": "False"}
"""The values of parameters that are not given, which a name leaves out."""
VALUES: Mapping[str, str] = {"rel": "[1-9][0-9]{0,5}", "judged_only": "True|False"}
"""The form of a parameter's values."""


def check_measures(names: Sequence[str], depth: int) -> None:
    """Check the measures that a study names.

    Args:
        names: The names.
        depth: The number of documents per query in the runs to measure.

    Raises:
        UserError: One is not a measure that is computed here, asks for more documents than a run has, or is named
            twice.
    """
    known: dict[str, str] = {}
    for name in names:
        try:
            canonical = canonical_name(name, depth)
        except ValueError as error:
            raise UserError(f"evaluation.measures: {error}") from None
        if canonical in known:
            what = f"{known[canonical]} and {name} are one measure" if known[canonical] != name else f"{name} is twice"
            raise UserError(f"evaluation.measures: {what}; keep one of them")
        known[canonical] = name


def canonical_name(name: str, depth: int | None = None) -> str:
    """The one name of a measure: `RR@10` for `MRR@10`.

    Args:
        name: The measure's name.
        depth: The number of documents per query in the runs to measure, if it is known.

    Raises:
        ValueError: It is not a measure that is computed here, or it asks for more documents than a run has. The
            message is one line.
    """
    if len(name) > MAXIMUM_CHARACTERS:
        raise ValueError(f"{name[:MAXIMUM_CHARACTERS]!r}… is longer than the name of any measure")
    match = re.fullmatch(r"(?P<family>\w+)(\((?P<parameters>[^()]*)\))?(@(?P<cutoff>[^@]*))?", name)
    family_name = ALIASES.get(match["family"], match["family"]) if match else ""
    if match is None or family_name not in FAMILIES:
        raise ValueError(f"{name!r} is not a measure that is computed here; {_suggestion(name)}")
    family = FAMILIES[family_name]
    parameters = _parameters(name, match["parameters"], family)
    cutoff = _cutoff(name, match["family"] + parameters, match["cutoff"], family, depth)
    if name != (spelling := match["family"] + parameters + cutoff):
        raise ValueError(f"{name!r} has another spelling: write {spelling}")
    return family_name + parameters + cutoff


def _parameters(name: str, text: str | None, family: Family) -> str:
    """The parameters of a name as its one spelling has them: sorted, without those that have their defaults."""
    given = {}
    for item in text.split(",") if text is not None else []:
        parameter, _, value = (part.strip() for part in item.partition("="))
        if parameter not in family.parameters or parameter in given:
            known = ", ".join(family.parameters) or "none"
            raise ValueError(f"{name!r}: {item.strip()!r} is not a parameter of it; its parameters are: {known}")
        if not re.fullmatch(VALUES[parameter], value):
            expected = "True or False" if parameter == "judged_only" else "a grade from 1 on, such as 2"
            raise ValueError(f"{name!r}: {parameter} is {expected}")
        given[parameter] = value
    kept = [f"{parameter}={value}" for parameter, value in sorted(given.items()) if value != DEFAULTS[parameter]]
    return f"({','.join(kept)})" if kept else ""


def _cutoff(name: str, stem: str, text: str | None, family: Family, depth: int | None) -> str:
    """The cutoff of a name as its one spelling has it, with its @."""
    if not family.cutoff:
        if text is not None:
            raise ValueError(f"{name!r}: this measure has no cutoff; write {stem}")
        return ""
    if text is None:
        whole = f" (a run has {depth} documents, so it would be {stem}@{depth})" if depth else ""
        raise ValueError(f"{name!r} has no cutoff{whole}; write {stem}@{min(10, depth or 10)} or the like")
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ValueError(f"{name!r}: the cutoff is a number of documents, such as {stem}@{min(10, depth or 10)}")
    if depth is not None and int(text) > depth:
        raise ValueError(
            f"{name!r} looks at more documents than a run has ({depth}), so it would be {stem}@{depth}; "
            f"write that, or set evaluation.depth to {text} or more"
        )
    return f"@{text}"


def _suggestion(name: str) -> str:
    """The measure that was probably meant, else all there are."""
    word, cutoff = re.fullmatch(r"(.*?)(?:[@_ -]?([1-9][0-9]*))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    spellings = {family.lower(): family for family in (*ALIASES, *FAMILIES)} | dict(TREC_EVAL_NAMES)
    # A short word is near to others by chance: ERR is a measure of its own, and not a misspelt RR.
    near = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.7 if len(word) > 3 else 1.0)
    if not near:
        return f"there are {', '.join(f'{name}@k' if family.cutoff else name for name, family in FAMILIES.items())}"
    family = spellings[near[0]]
    at = f"@{cutoff or 10}" if FAMILIES[ALIASES.get(family, family)].cutoff else ""
    return f"did you mean {family}{at}?"
