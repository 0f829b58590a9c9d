"""Settings of the whole test run, and the tiny data set that many tests share."""

import os
import signal

# One thread: bit-identical repetitions, and no fight for the cores. Set before torch is imported, so that
# the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what runs in the background with Ctrl-C ignored, nohup ignores SIGHUP: tests send both.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Folder of the tiny drawn data set of tests/toy.py."""
    from toy import make_shapes

    return make_shapes(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True, scope="session")
def scenes():
    """The built-in data set is there: no test meets the progress of drawing it in what it reads."""
    from auto_panoptic.data.drawn.shapes import ensure_shapes

    ensure_shapes()


@pytest.fixture(autouse=True)
def nothing_under_way(monkeypatch):
    """A test that breaks off work leaves its progress open, within which that of later tests would lie."""
    from auto_panoptic import progress

    monkeypatch.setattr(progress, "_under_way", 0)


@pytest.fixture
def forget_data_sets():
    """Forget the data sets that a test registers."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
