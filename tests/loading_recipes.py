"""The recipes of `docs/loading.md`, and what they make of a model's folder and some texts.

    python loading_recipes.py RECIPE TEXTS OUT FOLDER ...

Runs a recipe for each folder with the texts of a JSON file, and writes its embeddings to `OUT/<folder's name>.npz`. It
needs nothing but the library of the recipe and NumPy, so that another version of it can be tried in a process of its
own.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PAGE = Path(__file__).resolve().parents[1] / "docs" / "loading.md"
FOLDER = "results/models/distillation-KEY"
"""The model's folder in each recipe."""

Embeddings = dict[str, npt.NDArray[np.float32]]
"""By `query N` and `document N`, tokens x dimensions."""


def recipes() -> dict[str, str]:
    """The code of each recipe, by the heading above it."""
    _, *parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    codes = {}
    for part in parts:
        code = re.search(r"^```python\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
        if code:  # A section without code is no recipe.
            codes[part.partition("\n")[0]] = code[1]
    return codes


def run(recipe: str, folder: Path, texts: Mapping[str, Sequence[str]]) -> Embeddings:
    """What a recipe makes of the texts of `queries` and `documents` with the model in `folder`."""
    code = recipes()[recipe]
    assert code.count(f'"{FOLDER}"') == 1, recipe
    names: dict[str, Any] = dict(texts)
    exec(compile(code.replace(FOLDER, folder.as_posix()), f"{PAGE.name}: {recipe}", "exec"), names)
    return {
        f"{side} {number}": np.asarray(embedding)
        for side in ("query", "document")
        for number, embedding in enumerate(names[f"{side}_embeddings"])
    }


def main() -> None:
    """Run a recipe for each folder."""
    recipe, texts, out, *folders = sys.argv[1:]
    for folder in map(Path, folders):
        np.savez(Path(out) / f"{folder.name}.npz", **run(recipe, folder, json.loads(Path(texts).read_text())))


if __name__ == "__main__":
    main()
