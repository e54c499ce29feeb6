"""All measurements that need a GPU, one program after the other, each with a limit of its own; a part that fails does not stop the rest.

The parts are in the order of what they tell in little time, in groups of at most nine minutes on an H100. Results go to --out (by
default benchmarks/results/), what the programs print to --out/logs/, and a table of how each part went ends the run; it is in
gpu.json too. The accuracy parts go on where they were: run their group again until nothing is left. A part whose data are not there is
left out. Paths are relative to the current folder.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py                                           # everything
    python benchmarks/gpu.py --group 1 2 --minutes 18
    python benchmarks/gpu.py --parts utilisation throughput_128 --imagenette data/imagenette-128
"""
import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from common import RESULTS, save

BENCHMARKS = Path(__file__).parent
TESTS = os.path.relpath(BENCHMARKS.parent / "tests")
TRAINING = "--steps 1 --rounds 1 --arch resnet10t --size 32"


@dataclass(frozen=True)
class Part:
    group: int
    minutes: float # at most
    command: str   # program and arguments; {imagenette}, {cifar10}: folders
    quick: str     # arguments added for a trial, which measures nothing

    def arguments(self, a) -> list[str]:
        """What Python is given"""
        program, *args = shlex.split(f"{self.command} {self.quick if a.quick else ''}".format(imagenette=a.imagenette, cifar10=a.cifar10, tests=TESTS))
        if program == "pytest": return ["-m", "pytest", *args]
        if program == "throughput": args += [word for peer in a.peer for word in ("--peer", peer)]
        return [os.path.relpath(BENCHMARKS / f"{program}.py"), *args, *(["--out", a.out] if a.out else [])]

    def lacks(self, a) -> str | None:
        """A folder that is not there"""
        paths = [path for name, path in (("{imagenette}", a.imagenette), ("{cifar10}", a.cifar10)) if name in self.command and not Path(path).is_dir()]
        return paths[0] if paths else None


ACCURACY = "speedups_accuracy {{{data}}} --arch resnet18 --size {size} --bs 256 --epochs 50 --pictures 0 --valid-pictures 0 --seeds 0 --linear --minutes {begin} --configs"
QUICK_ACCURACY = "--arch resnet10t --size 32 --bs 32 --epochs 1 --pictures 400 --valid-pictures 40 --no-small-input"
IMAGENETTE, CIFAR = ACCURACY.format(data="imagenette", size=128, begin=6.5), ACCURACY.format(data="cifar10", size=32, begin=4.5)  # a run fits into what is left
# pairs that a goal compares stay together
PAIRS = dict(fast_moco="moco_v3 fast_moco 'fast_moco half'", partial="moco_v3 moco_v3+partial+regions moco_v3+all", suncet="simclr simclr+suncet 'simclr+suncet half'",
             dcl="'simclr bs64' 'simclr+dcl bs64'")
PARTS: dict[str, Part] = dict(
    tests=Part(1, 1, "pytest -q -n 0 {tests}/test_losses.py {tests}/test_views.py -k cuda", "-k cpu --collect-only"),
    sync=Part(1, 2.5, "sync", "--cases simclr"),
    trains=Part(1, 1.5, "trains --ways plain accumulate", "--methods simclr --arch test_resnet --size 32 --bs 8 --precision auto"),
    step_share=Part(1, 1, "step_share --methods simclr moco_v3", "--methods simclr --arch test_resnet --size 32 --bs 8 --warm 1 --steps 1"),
    step_share_compiled=Part(1, 1, "step_share --compile", "--arch test_resnet --size 32 --bs 8 --warm 1 --steps 1"),
    utilisation=Part(1, 1, "utilisation", "--arch resnet10t --size 32 --bs 8 --matrix 256 --warm 1 --steps 1 --rounds 1"),
    utilisation_compiled=Part(1, 1, "utilisation --compile", "--arch test_resnet --size 32 --bs 8 --matrix 256 --warm 1 --steps 1 --rounds 1"),
    throughput_32=Part(2, 2, "throughput {cifar10}/train --size 32 --bs 256 --workers 16 --warm 40 --steps 100 --rounds 3", "--bs 8 --workers 1 --warm 3 --steps 1 --rounds 1 --arch resnet10t"),
    throughput_128=Part(2, 3, "throughput {imagenette}/train --size 128 --bs 256 --workers 16 --warm 40 --steps 60 --rounds 3",
                        "--bs 8 --workers 1 --warm 3 --steps 1 --rounds 1 --arch resnet10t"),
    time_to_knn_imagenette=Part(2, 4, "time_to_knn {imagenette} --eval-every 2 --minutes 3.5", "--size 32 --bs 64 --arch resnet10t --minutes 0.01"),
    time_to_knn_cifar10=Part(3, 6, "time_to_knn {cifar10} --eval-every 2 --minutes 5.5", "--size 16 --bs 64 --arch resnet10t --no-small-input --minutes 0.01"),
    trains_compiled=Part(3, 3, "trains --ways compile", "--methods simclr --arch test_resnet --size 32 --bs 8 --precision auto"),
    speedups=Part(4, 6, "speedups", f"{TRAINING} --bs 4 --parts comb_patches"),
    memory=Part(4, 1, "memory", "--arch resnet10t --size 16 --bs 8 --rounds 1"),
    accumulate=Part(4, 2, "accumulate --rounds 3", f"{TRAINING} --bs 16 --chunks 4 --methods simclr"),
    **{f"accuracy_imagenette_{name}": Part(5 + i, 8.5, f"{IMAGENETTE} {configs}", QUICK_ACCURACY) for i, (name, configs) in enumerate(PAIRS.items())},
    **{f"accuracy_cifar10_{name}": Part(9 + i, 8.5, f"{CIFAR} {configs}", QUICK_ACCURACY) for i, (name, configs) in enumerate(PAIRS.items())},
    step_time=Part(13, 4, "step_time --steps 10", f"{TRAINING} --bs 8 --methods simclr"),
    queue_share=Part(13, 2, "queue_share", "--arch resnet10t --sizes 32 --bs 4 --queue 64 --steps 1 --repeats 1 --rounds 1"),
    multi_crop=Part(13, 3, "multi_crop --arch resnet50 --large 224 --small 96 --bs 256 --steps 10 --rounds 5", "--arch resnet10t --large 64 --small 32 --bs 2 --steps 1 --rounds 1"),
)


def run(arguments: list[str], log: Path, seconds: float) -> str:
    """How it went; whatever it started ends with it"""
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-W", "ignore", *arguments], stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
                                   env=os.environ | dict(PYTHONPATH=os.pathsep.join(filter(None, (str(BENCHMARKS.parent), os.environ.get("PYTHONPATH"))))))
        try: code = process.wait(seconds)
        except subprocess.TimeoutExpired: return "over time"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return "done" if not code else f"failed ({code})"


def last_lines(log: Path, n: int) -> list[str]:
    """Of what a program said, without where it wrote its results"""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip() and not line.startswith(("results in", "figure in"))]
    return lines[-n:]


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    arg.add_argument("--group", type=int, nargs="+", choices=sorted({p.group for p in PARTS.values()}), help="only the parts of these groups")
    arg.add_argument("--minutes", type=float, help="for everything; what does not fit in is left out")
    arg.add_argument("--imagenette", default="data/imagenette-128", help="folder with train/ and val/")
    arg.add_argument("--cifar10", default="data/cifar10", help="folder with train/ and test/")
    arg.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="other libraries beside which pictures per second are measured, see throughput.py")
    arg.add_argument("--quick", action="store_true", help="tiny settings: shows that the programs run, and measures nothing")
    arg.add_argument("--list", action="store_true", help="print what would be run")
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    todo = {name: part for name, part in PARTS.items() if (not a.parts or name in a.parts) and (not a.group or part.group in a.group)}
    if a.list:
        for name, part in todo.items(): print(f"{part.group:2}  {part.minutes:4g} min  {name}: python {shlex.join(part.arguments(a))}")
        return
    logs = Path(a.out or RESULTS) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    start, rows = time.perf_counter(), {}
    for name, part in todo.items():
        log, began, left = logs / f"{name}.log", time.perf_counter(), 60 * (10 if a.quick else part.minutes)
        if a.minutes: left = min(left, 60 * a.minutes - (began - start))
        if missing := part.lacks(a): how = f"no data at {missing}"
        elif left < 10: how = "no time left"
        else:
            print(f"{name} …", flush=True)
            how = run(part.arguments(a), log, left)
        ran = not how.startswith("no ")
        rows[name] = dict(how=how, seconds=time.perf_counter() - began, said=last_lines(log, 8) if ran else [], command="python " + shlex.join(part.arguments(a)))
        if ran: print(f"{name}: {how} in {rows[name]['seconds']:.0f} s", *rows[name]["said"][-3:], sep="\n    ", flush=True)
        save("gpu_quick" if a.quick else "gpu", dict(parts=rows), a.out)
    width = max(map(len, rows), default=0)
    print(*(f"{name:{width}}  {row['seconds']:4.0f} s  {row['how']}{': ' + row['said'][-1][:120] if row['said'] else ''}" for name, row in rows.items()), sep="\n")
    if any(row["how"].startswith(("failed", "over")) for row in rows.values()): sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs ends too
    main()
