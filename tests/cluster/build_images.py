"""Build the images that the tests on the cluster run in, where there are none: `make cluster-images`."""

import sys
import tempfile
from pathlib import Path

from own_study import write_data
from slurm_cluster import Cluster, short_study

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        cluster = Cluster(Path(folder))
        cluster.write(short_study())
        (cluster.folder / "data").mkdir()
        write_data(cluster.folder / "data")
        status, output = cluster.run("images", seconds=3600)
    if status:
        sys.stderr.write(output)
    sys.exit(status)
