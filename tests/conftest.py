"""The tests run side by side in one process more than there are cores (`pytest -n 0`: one after the other); each uses a
thread."""
import os

if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_xdist_auto_num_workers():
    "One more than there are cores: a test waits as well, for a program that it has started, or for the disk"
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else None


@pytest.fixture(autouse=True)
def _no_autocast_is_left():
    yield
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    "A folder of pictures in five classes of very different sizes"
    from helpers.folders import image_folder
    return image_folder(tmp_path_factory.mktemp("pictures"), dict(a=12, b=5, c=3, d=2, e=9))
