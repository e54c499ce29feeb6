"""The tests run side by side, one process of one thread a core (`pytest -n 0`: one after the other)"""
import gc
import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ: os.environ.setdefault("OMP_NUM_THREADS", "1")
# what `nohup`, or a shell's `&`, has ignored is left ignored by the library, and tests send it
if hasattr(signal, "SIGHUP"): signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
# what the tests read is printed for no terminal, and 80 columns wide, wherever they run; typer asks when it is imported
for name in ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE", "TERMINAL_WIDTH", "COLUMNS"):
    os.environ.pop(name, None)

import pytest  # noqa: E402
import torch  # noqa: E402


def pytest_collection_finish():
    "What is imported stays: looking through all of it again and again for garbage would be a fifteenth of the time"
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed(request):
    "A module that says `SEED = 3` begins each of its tests with that seed"
    seed = getattr(request.module, "SEED", None)
    if seed is not None: torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def _no_autocast_is_left():
    yield
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture
def bf16(monkeypatch):
    "This CPU has instructions for bfloat16, or is taken for one that has"
    from helpers.halves import take_bf16
    take_bf16(monkeypatch.setattr)


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    "A folder of pictures in five classes of very different sizes"
    from helpers.folders import image_folder
    return image_folder(tmp_path_factory.mktemp("pictures"), dict(a=12, b=5, c=3, d=2, e=9))


@pytest.fixture
def told(monkeypatch):
    "What runs with the log 'told' tell, by their ids"
    from fastcontrast.logs import LOGS
    from helpers.telling import Told
    monkeypatch.setitem(LOGS, "told", Told)
    monkeypatch.setattr(Told, "kept", {})
    return Told.kept
