"""Read every batch of a plan; print how many rows and characters they hold. Arguments: the plan's spec, the shards."""

import json
import sys
from types import SimpleNamespace

from colbert_zero.data.batches import BatchPlan
from colbert_zero.graph.artifact import Artifact, Spec


def main() -> None:
    """Read and count."""
    plan_spec, shards = Spec.parse(sys.argv[1]), Artifact.open(sys.argv[2])
    inputs = {"batches": [Artifact.open(plan_spec.name)], "rows": [shards]}
    plan = BatchPlan(SimpleNamespace(input=lambda role: inputs[role][0], inputs=inputs.get))
    rows = characters = 0
    for step in range(len(plan)):
        batch = plan.read(step)
        queries, documents = batch["query"].to_pylist(), batch["document"].to_pylist()
        rows += len(queries)
        characters += sum(map(len, queries)) + sum(map(len, documents))
    print(json.dumps({"rows": rows, "characters": characters}))


if __name__ == "__main__":
    main()
