"""Check settings against each other: what each allows by itself, and what together cannot work.

Each check raises `UserError` with one line for the first mistake.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, require_known
from colbert_zero.graph.console import UserError
from colbert_zero.graph.limits import DEFAULT_FUSION, MINIMUM_TEXT_TOKENS, PLAID_MIN_DOCUMENTS

TEMPERATURES = ("teacher_temperature", "student_temperature")
"""The settings of a distillation by which the scores of both sides are divided."""
SETTINGS_OF_OTHER_STAGES: Mapping[str, frozenset[str]] = {
    "unsupervised": frozenset({"mining", "negatives", "teacher", "documents", "gradient_scale", *TEMPERATURES}),
    "supervised": frozenset({"pairs", "teacher", "documents", "gradient", *TEMPERATURES}),
    "distillation": frozenset(
        {"pairs", "mining", "negatives", "temperature", "learnable_temperature", "gradient", "gradient_scale"}
    ),
}
"""The settings that a stage does not use."""


def check_own_settings(stage: str, settings: Config, where: str) -> None:
    """Check that settings which are given to one stage alone are settings that it uses."""
    for name in (*settings, *settings.get("sweep", {})):
        if name in SETTINGS_OF_OTHER_STAGES[stage] and settings.get(name, name) is not None:
            raise UserError(f"{where}: the {stage} stage does not use {name}; remove it")


def check_rows(stage: str, settings: Config, sources: Iterable[tuple[str, Spec]], where: str) -> None:
    """Check that a stage's sources have what the stage needs.

    Args:
        stage: The stage's name.
        settings: Its settings.
        sources: The label and the spec of each of its sources.
        where: The place in the config.
    """
    labels: set[str] = set()
    for label, source in sources:
        if label in labels:
            raise UserError(f"{where}: two sources are called {label}; name each source once")
        labels.add(label)
        scored = has_scores(source)
        if stage != "distillation" or settings["teacher"] is not None:
            if scored:
                what = "needs no teacher" if stage == "distillation" else "is for distillation without a teacher only"
                raise UserError(f"{where}: source {label} has scores already, so it {what}")
        elif not scored:
            raise UserError(f"{where}: source {label} has no scores; name an entry of teachers under teacher")
        elif settings["documents"] > source.settings["documents"]:
            raise UserError(
                f"{where}: documents is {settings['documents']}, but source {label} has "
                f"{source.settings['documents']} scored documents per query; ask for at most so many"
            )
        if stage == "supervised" and settings["mining"] is None and not _may_have_negatives(source):
            raise UserError(f"{where}: source {label} has no negatives; name an entry of mining under mining")


def check_shards(shards: Config) -> None:
    """Check that some texts are neither too short nor too long."""
    least, most = shards["minimum_characters"], shards["maximum_characters"]
    if most is not None and most < least:
        raise UserError(
            f"shards: maximum_characters is {most}, less than minimum_characters ({least}), so every row "
            "would be dropped; swap them"
        )


def check_random(random: Config, where: str) -> None:
    """Check the sizes of a model with random weights: its rotary positions rotate pairs of a head's dimensions."""
    hidden, heads = random["hidden"], random["heads"]
    if hidden % (2 * heads):
        raise UserError(
            f"{where}: hidden is {hidden}, which {heads} heads do not share evenly; set it to a multiple of {2 * heads}"
        )


def check_texts(sources: Iterable[tuple[str, Spec]], where: str) -> None:
    """Check that sources have texts, from which a vocabulary can be made."""
    for label, source in sources:
        if has_scores(source):
            raise UserError(f"{where}: source {label} has scores, not rows of texts; name other sources")


def has_scores(source: Spec) -> bool:
    """Whether the rows of a source are a teacher's scores."""
    return bool(source.settings.get("format") == "scored")


def _may_have_negatives(source: Spec) -> bool:
    return "negatives" in source.settings.get("columns", ())


def check_batch(stage: str, settings: Config, where: str) -> None:
    """Check that a batch has rows to compare."""
    if stage != "distillation" and settings["batch_size"] == 1:
        raise UserError(
            f"{where}: batch_size is 1, so a query has no documents of other rows to be compared with; "
            "set it to 2 or more"
        )


def check_processes(batch_size: int, processes: int, where: str) -> None:
    """Check that each process of a training has rows of every step."""
    if batch_size < processes:
        raise UserError(
            f"{where}: batch_size is {batch_size}, but resources give the stage {processes} processes, "
            "one per GPU; ask for fewer"
        )


def check_small(name: str, collection: Spec, where: str) -> None:
    """Check that a collection can be searched during a training, if its size is known before it is fetched."""
    documents = collection.settings.get("documents", 0)
    if documents >= PLAID_MIN_DOCUMENTS:
        raise UserError(
            f"{where}: {name} has {documents} documents, too many to evaluate on while "
            f"training; name collections of fewer than {PLAID_MIN_DOCUMENTS}"
        )


def check_at_most(setting: str, value: int, other: str, limit: int, where: str) -> None:
    """Check a number that a stage uses against the number that there is of them, the setting `other`."""
    if value > limit:
        raise UserError(f"{where}: {setting} is {value}, but {other} makes {limit}; lower the one or raise the other")


def check_negatives(mining: Config, miners: Sequence[Config], where: str) -> None:
    """Check that an entry of `mining` has something to fuse if it says how, and can find what it asks for.

    Where a miner filters, or has a margin, a row keeps candidates of that miner only if it retrieved the row's own
    document: all of them would otherwise score too much. So one place of its depth is not for negatives.

    Args:
        mining: The entry.
        miners: The entries of its miners.
        where: The place in the config.
    """
    if len(miners) == 1 and mining["fusion"] != DEFAULT_FUSION:
        raise UserError(
            f"{where}: fusion is {mining['fusion']}, but {mining['miners'][0]} is the only miner, so nothing is fused; "
            "remove it, or name more miners"
        )
    asked, skip, consistency = mining["negatives"], mining["skip"], mining.get("consistency", 0)
    if not asked and not consistency:
        raise UserError(f"{where}: negatives is 0, and nothing is asked of the rows; ask for negatives or consistency")
    for name, miner in zip(mining["miners"], miners, strict=True):
        if name in mining.get("filter", mining["miners"]) and consistency > miner["depth"]:
            raise UserError(
                f"{where}: consistency is {consistency}, but {name} finds {miner['depth']} candidates; ask for a place "
                "among fewer, or raise its depth"
            )
    skipped = f" after skip: {skip}" if skip else ""
    if asked + skip > mining.get("last_rank", asked + skip):
        raise UserError(
            f"{where}: negatives is {asked}{skipped}, but last_rank is {mining['last_rank']}; "
            f"raise it to {asked + skip} at least, or ask for fewer"
        )
    most = _total_depth(miners) - len({*mining.get("filter", mining["miners"]), *mining.get("margin", ())})
    if asked + skip > most:
        raise UserError(
            f"{where}: negatives is {asked}{skipped}, but {_depths(mining, miners)} gives "
            f"at most {most} candidates beside the positive; ask for fewer, or raise the depth"
        )


def check_judge(judge: Config, negatives: int, scores: Spec, where: str) -> None:
    """Check that a judge scores as many candidates as a row needs, if it refuses what it has not scored.

    Args:
        judge: What it refuses.
        negatives: How many negatives a row has.
        scores: The scores that it judges by.
        where: The place in the config.
    """
    documents = scores.settings["documents"]
    if judge and negatives > documents - 1:
        raise UserError(
            f"{where}: negatives is {negatives}, but the teacher scores {documents} documents of a row, "
            f"{documents - 1} beside its own, and the judge keeps no others; ask for fewer, or raise the teacher's "
            "documents"
        )


def check_search(retriever: Config, depth: int, where: str) -> None:
    """Check that a recall is asked of an approximate search only, and that a pool has as many documents as a depth."""
    if "recall" in retriever and retriever["search"] == "exact":
        raise UserError(f"{where}: recall is {retriever['recall']}, but the search is exact; say search: approximate")
    if retriever.get("pool", depth) < depth:
        raise UserError(f"{where}: pool is {retriever['pool']}, less than the depth ({depth}); ask for more documents")


def check_pools(pools: Mapping[str, int | None], where: str) -> None:
    """Check that miners search the same documents: to who filters, what one of them did not retrieve scores less.

    Args:
        pools: How many documents each miner searches, by its name; None for all.
        where: The place in the config that names the miners.
    """
    (first, pool), *others = pools.items()
    for name, other in others:
        if other != pool:
            raise UserError(
                f"{where}: miner {first} searches {_pool(pool)}, and {name} {_pool(other)}; give both the same pool"
            )


def _pool(pool: int | None) -> str:
    return "all documents" if pool is None else f"a pool of {pool}"


def check_documents(teacher: Config, miners: Sequence[Config], where: str) -> None:
    """Check that an entry of `teachers` can find the documents it scores: the positive, and candidates."""
    if teacher["documents"] - 1 > _total_depth(miners):
        raise UserError(
            f"{where}: documents is {teacher['documents']}, but {_depths(teacher, miners)} gives at most "
            f"{_total_depth(miners)} candidates beside the positive; ask for fewer, or raise the depth"
        )


def check_members(name: str, members: Mapping[str, Config], weights: Iterable[str]) -> None:
    """Check that the members of an ensemble of teachers can be averaged: several teachers that score one choice.

    Args:
        name: The ensemble's name.
        members: The entries of `teachers` that are its members, by name.
        weights: The names that weights are given for.
    """
    where = f"teachers.{name}"
    for member, entry in members.items():
        if member == name:
            raise UserError(f"{where}: the ensemble is a member of itself; leave it out")
        if "ensemble" in entry:
            raise UserError(f"{where}: member {member} is an ensemble; name the members of that one")
    first, *others = members
    if not others:
        raise UserError(f"{where}: {first} is the only member, so there is nothing to average; name another, or use it")
    for member in others:
        for setting in ("miners", "documents"):
            one, other = members[first][setting], members[member][setting]
            if one != other:
                raise UserError(
                    f"{where}: {first} and {member} score different documents: {setting} is {_shown(one)} in the one "
                    f"and {_shown(other)} in the other; give both the same"
                )
    for member in weights:
        require_known(member, members, f"{where}.ensemble.weights", f"{where}.ensemble.members")


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _total_depth(miners: Iterable[Config]) -> int:
    return sum(miner["depth"] for miner in miners)


def _depths(entry: Config, miners: Sequence[Config]) -> str:
    """The depths of miners, in words."""
    return " + ".join(f"depth {miner['depth']} of {name}" for name, miner in zip(entry["miners"], miners, strict=True))


def check_room(encoding: Config, where: str) -> None:
    """Check that prompts leave room for texts, as far as it is known without a tokenizer.

    Every tokenizer makes at least one token of each word; there is also the marker.

    Args:
        encoding: `query_prompt`, `query_length`, `document_prompt` and `document_length`, those that are known.
        where: The place in the config.
    """
    for side in ("query", "document"):
        prompt, length = encoding.get(f"{side}_prompt"), encoding.get(f"{side}_length")
        if prompt is None or length is None:
            continue
        least = 1 + len(prompt.split()) + MINIMUM_TEXT_TOKENS
        if length < least:
            raise UserError(
                f"{where}: {side}_length is {length}, which the prompt {prompt!r} fills, so that all "
                f"texts would become the same input; set it well above {least}"
            )


ALIGNED_SETTINGS = ("query_prompt", "document_prompt", "query_length")
"""What a stage and the model that it goes on from must have in common. The length of documents is not among them: the
paper itself pre-trains with shorter ones."""


class MismatchError(UserError):
    """Prompts or lengths are not those that a model was trained with. A recipe may allow it, which moves no key."""


def check_alignment(encoding: Config, trained: Config, trained_by: str, where: str) -> None:
    """Check that prompts and lengths are those that a model was trained with.

    The paper (arXiv 2602.16609, table 3) lost 1.26 points of nDCG@10 where fine-tuning left out the prompts of the
    pre-training (54.17 for 55.43), and 0.43 where it added some (54.18 for 54.61).

    Args:
        encoding: Prompts and lengths.
        trained: Those that the model was trained with, as far as they are known.
        trained_by: The place in the config that says so.
        where: The place in the config that has `encoding`.

    Raises:
        MismatchError: One of `ALIGNED_SETTINGS` differs.
    """
    for name in ALIGNED_SETTINGS:
        if name in trained and encoding[name] != trained[name]:
            raise MismatchError(
                f"{where}: {name} is {encoding[name]!r}, but {trained[name]!r} in {trained_by}, which it goes on from; "
                "give both the same (the paper lost 1.26 points where prompts were left out later, 0.43 where they "
                "were added), or say mismatch: allowed in the recipe"
            )
