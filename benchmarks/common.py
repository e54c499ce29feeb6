"""What every benchmark shares: alternating measurements, and results with the machine, versions and commit named."""
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def alternate(a: Callable[[], object], b: Callable[[], object], rounds: int, warm: int = 1, before: Callable[[], object] = lambda: None) -> dict:
    """Seconds of `a` and of `b`, called in turn so that both see the same machine, and the ratio a / b of each round; `before` each, off the clock"""
    times: dict[str, list[float]] = {"a": [], "b": []}
    for r in range(warm + rounds):
        pair = [("a", a), ("b", b)]
        for name, f in pair if r % 2 else pair[::-1]:
            before()
            sync()
            start = time.perf_counter()
            f()
            sync()
            if r >= warm: times[name].append(time.perf_counter() - start)
    ratios = sorted(x / y for x, y in zip(times["a"], times["b"], strict=True))
    return dict(a_s=statistics.median(times["a"]), b_s=statistics.median(times["b"]), ratio=statistics.median(ratios),
                ratio_quartiles=[ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]], ratios=ratios)


def sync() -> None:
    import torch
    if torch.cuda.is_available(): torch.cuda.synchronize()


def device() -> str:
    import torch
    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds_a_step(learn, warm: int, steps: int, **kwargs) -> float:
    """Of a learner whose epoch has more than `warm + steps` of them: the first `warm` are not counted; kwargs: of `fit_contrastive`"""
    from fastai.callback.core import Callback, CancelFitException

    class Clock(Callback):
        order = -100

        def before_batch(self):
            if self.train_iter not in (warm, warm + steps): return
            sync()
            stamps.append(time.perf_counter())
            if len(stamps) == 2: raise CancelFitException

    stamps: list[float] = []
    with learn.no_logging(), learn.no_mbar(): learn.fit_contrastive(1, cbs=Clock(), **kwargs)
    return (stamps[1] - stamps[0]) / steps


def autocast(device):
    """What `precision='auto'` of the learner does, for a loop that is compared with it"""
    import torch

    from fastcontrast.device import has_bf16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=has_bf16(device))


def environment() -> dict:
    import torch

    from fastcontrast.device import pick_precision

    def installed(p):
        try: return version(p)
        except PackageNotFoundError: return None

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        name = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), name)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=RESULTS.parent.parent).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--", "fastcontrast"], capture_output=True, text=True, cwd=RESULTS.parent.parent).stdout.strip()
    packages = ("fastcontrast", "torch", "torchvision", "fastai", "timm", "kornia", "lightly")
    return dict(device=torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {name}", threads=torch.get_num_threads(), precision=pick_precision("auto", device()),
                python=platform.python_version(), versions={p: installed(p) for p in packages}, commit=commit + (" with changes" if changed else ""),
                command=" ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]), date=time.strftime("%Y-%m-%d"))


def save(name: str, result: dict, folder: str | Path | None = None) -> None:
    """Write `NAME.json` to `folder` (by default benchmarks/results/) and say where"""
    path = Path(folder or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(result, **environment()), indent=1) + "\n")
    print(f"results in {path}")
