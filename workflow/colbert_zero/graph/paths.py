"""Where the repository's files are; images show the folder `workflow/` to their steps, and nothing else of it."""

from __future__ import annotations

from pathlib import Path

WORKFLOW = Path(__file__).parents[2]
"""The folder `workflow/`: this package, rules, schemas, registries and the report's template."""
REPOSITORY = WORKFLOW.parent
"""The clone that `workflow/` is in."""
