"""Do a share of the work on one source's shards, so that several jobs can share it.

    python -m colbert_zero.data.shard_worker --spec JSON --of files|shards --share 2 --jobs 4 [--threads N]

First the jobs share the source's files. When all files are done, the jobs share the shards. `shards` then finds all
work done, and publishes the shards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from colbert_zero.data.shards import ShardBuild
from colbert_zero.graph.artifact import MANIFEST_FILE, Spec
from colbert_zero.graph.console import run_reporting_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Do the share; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Spec.from_argument, required=True, help="the shards' spec: JSON, or a file")
    parser.add_argument("--of", choices=("files", "shards"), required=True, help="what the jobs share")
    parser.add_argument("--share", type=int, required=True, help="which share, from 1")
    parser.add_argument("--jobs", type=int, required=True, help="how many shares there are")
    parser.add_argument("--threads", type=int, default=1, help="how many processes to use (1)")

    def run() -> int:
        options = parser.parse_args(argv)
        if (options.spec.folder / MANIFEST_FILE).is_file():
            return 0
        share, build = slice(options.share - 1, None, options.jobs), ShardBuild(options.spec)
        if options.of == "files":
            build.prepare()
            build.partition_files(options.threads, share)
        else:
            build.write_shards(options.threads, share)
        return 0

    return run_reporting_errors(run)


if __name__ == "__main__":
    sys.exit(main())
