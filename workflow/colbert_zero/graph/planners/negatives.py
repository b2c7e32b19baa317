"""Plan negatives."""

from __future__ import annotations

from colbert_zero.graph.artifact import Spec
from colbert_zero.graph.config import Config, require_known
from colbert_zero.graph.limits import DEFAULT_FUSION
from colbert_zero.graph.planners.draft import Draft
from colbert_zero.graph.planners.mining import MiningPlanner
from colbert_zero.graph.planners.relations import check_judge, check_negatives
from colbert_zero.graph.planners.teaching import TeacherPlanner


class NegativesPlanner:
    """Plans the entries of the section `mining`, each when something needs it."""

    def __init__(self, draft: Draft, mining: MiningPlanner, teachers: TeacherPlanner) -> None:
        """Plan for `draft`; negatives are chosen from candidates of `mining`, which `teachers` may judge."""
        self._draft, self._mining, self._teachers = draft, mining, teachers

    def negatives(self, name: str, shards: Spec, where: str) -> Spec:
        """The negatives of a source's shards, mined as the entry `name` of `mining` says.

        Raises:
            UserError: There is no such entry, or its miners or its judge cannot give so many negatives; `where` is the
                place in the config that names it.
        """
        mining = dict(self._draft.entry("mining", name, where))
        for setting in ("filter", "margin"):
            for miner in mining.get(setting, ()):
                require_known(miner, mining["miners"], f"mining.{name}.{setting}", f"mining.{name}.miners")
        check_negatives(mining, self._mining.entries(mining["miners"], f"mining.{name}"), f"mining.{name}")
        miners = mining.pop("miners")
        if mining["fusion"] == DEFAULT_FUSION:  # Left out of older specs, which meant it.
            del mining["fusion"]
        filters, margin = mining.pop("filter", miners), mining.pop("margin", {})
        candidates = self._mining.candidates(miners, shards, f"mining.{name}")
        settings = {**mining, "seed": self._draft.seed}
        if len(miners) > 1:  # A single miner always filters: its negatives keep the key that they had before `filter`.
            settings["filter"] = sorted(map(miners.index, filters))
        if margin:
            settings["margins"] = [margin.get(miner) for miner in miners]
        corpus = self._mining.corpus(miners, f"mining.{name}")
        inputs: dict[str, Spec | list[Spec]] = {"shards": shards, "candidates": candidates, **corpus}
        if "judge" in settings:
            settings["judge"], inputs["scores"] = self._judge(name, mining, shards)
        return self._draft.add("negatives", shards.label, settings, inputs)

    def _judge(self, name: str, mining: Config, shards: Spec) -> tuple[Config, Spec]:
        """What a judge refuses, and the scores that it judges by."""
        judge, where = dict(mining["judge"]), f"mining.{name}.judge"
        scores = self._teachers.scores(judge.pop("teacher"), shards, where)
        check_judge(judge, mining["negatives"], scores, where)
        return judge, scores
