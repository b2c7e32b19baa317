"""Fixtures: a study in which only the model is missing, and one with the model."""

import pytest

from colbert_zero.graph.locks import acquire_lock
from finished_study import make_in_another_process
from own_study import write_data
from slurm_cluster import Cluster, Training, copy_without_model, read_study, short_study


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A study with all inputs of the training, and its model, trained without interruption; shared by all workers."""
    shared = tmp_path_factory.getbasetemp().parent
    folder = shared / "prepared"
    with acquire_lock(shared / "prepared.lock", "preparing the study", wait_seconds=3600):
        if not folder.is_dir():
            (folder / "data").mkdir(parents=True)
            write_data(folder / "data")
            Cluster(folder).write(short_study())
            training = Training(folder)
            # What the training needs, in one process and not in jobs: only the training is interrupted here.
            make_in_another_process(folder, [spec.key for spec in read_study(folder).inputs_of(training.spec)])
            assert len(training.wait_until_published(training.start(training.target))) == 1
    training = Training(folder)
    assert training.digests(), "the study could not be prepared, see the output of another test"
    return training


@pytest.fixture
def training(prepared, tmp_path):
    """The same study without its model."""
    training = copy_without_model(prepared, tmp_path / "study")
    yield training
    training.clean_up()
