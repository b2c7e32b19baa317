"""A study that lacks its model alone, and one that has it."""

import pytest

from colbert_zero.graph.locks import acquire_lock
from own_study import write_data
from slurm_cluster import Cluster, Training, copy_of, short_study


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study with everything made that the training needs, and its model, trained without interruption; for all."""
    shared = tmp_path_factory.getbasetemp().parent
    folder = shared / "prepared"
    with acquire_lock(shared / "prepared.lock", "preparing the study", wait=3600):
        if not folder.is_dir():
            (folder / "data").mkdir(parents=True)
            write_data(folder / "data")
            Cluster(folder).write(short_study())
            first = Training(folder)
            assert len(first.end(first.start(first.target))) == 1
    training = Training(folder)
    assert training.digests(), "the study could not be prepared, see another test's words"
    return training


@pytest.fixture
def training(prepared, tmp_path):
    """The same study, not yet trained."""
    training = copy_of(prepared, tmp_path / "study")
    yield training
    training.clean_up()
