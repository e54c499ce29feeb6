"""The tests run side by side, in as many processes as there are cores and one more, each with one thread; with
`pytest -n 0` one after the other."""
import os

if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")

import psutil  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_xdist_auto_num_workers():
    "One more than there are cores: a test waits as well, for a program that it has started, or for the disk"
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ: return None  # xdist's own, which reads it
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(allowed, psutil.cpu_count(logical=False) or allowed) + 1


@pytest.fixture(autouse=True)
def _no_autocast_is_left():
    yield
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    "A folder of pictures in five classes of very different sizes"
    from helpers.folders import image_folder
    return image_folder(tmp_path_factory.mktemp("pictures"), dict(a=12, b=5, c=3, d=2, e=9))
