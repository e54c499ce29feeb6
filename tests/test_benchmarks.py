"""The benchmark programs run, in a small form, and write what they promise; their figures are for benchmarks/results."""
import json
import runpy
import shlex
import sys
import time
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback

from fastcontrast.data import image_dls
from fastcontrast.learner import contrastive_learner
from fastcontrast.recipes import RECIPES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = dict(
    step_time="--methods simclr swav --arch resnet10t --size 16 --bs 8 --steps 1 --rounds 1",
    memory="--arch resnet10t --size 16 --bs 8 --rounds 1",
    reuse_memory="--runs 'simclr resnet10t 32 8' --warm 1 --steps 1 --rounds 1",
    accumulate="--methods simclr --arch resnet10t --size 16 --bs 16 --chunks 4 --steps 1 --rounds 1",
    curves="digits --arch resnet10t --size 16 --bs 256 --epochs 1 --no-small-input",
    methods="digits --methods moco_v2 byol --arch resnet10t --size 8 --bs 512 --epochs 1 --no-small-input --seeds 3",
    multi_crop="--arch resnet10t --large 64 --small 32 --bs 2 --steps 1 --rounds 1",
    queue_share="--arch resnet10t --sizes 32 --bs 4 --queue 64 --steps 1 --repeats 1 --rounds 1",
    processes="--arch test_resnet --size 16 --bs 8 --warm 1 --steps 1 --rounds 1",
    knn="--train 400 --test 100 --dim 16 --k 20 --rounds 1",
    cache="--n 24 --size 16 --bs 4 --workers 1 --rounds 1",
    speedups="--parts comb_patches partial regions suncet --arch resnet10t --size 32 --bs 4 --rounds 1",
    step_share="--methods simclr moco_v2 --rows 16 --arch test_resnet --size 32 --bs 8 --warm 1 --steps 1",
    utilisation="--arch test_resnet --size 32 --bs 4 --matrix 64 --warm 1 --steps 1 --rounds 1",
    time_to_knn="digits --target 0.2 --arch test_resnet --size 16 --bs 512 --epochs 3 --with intermediate",
    trains="--methods simclr --ways plain accumulate --arch test_resnet --size 32 --bs 8 --precision auto",
    speedups_accuracy="digits --configs moco_v3+all simclr+suncet --size 32 --bs 512 --epochs 1 --seeds 3",
)


@pytest.fixture(autouse=True)
def their_folder(monkeypatch): monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("program", SMALL)
def test_benchmark(program, tmp_path, monkeypatch):
    path = str(BENCHMARKS / f"{program}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path, *shlex.split(SMALL[program]), "--out", str(tmp_path)])
    runpy.run_path(path, run_name="__main__")
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert result["command"].startswith(f"python benchmarks/{program}.py") and result["device"] and result["versions"]["torch"]
    figures = dict(
        step_time=lambda r: [r[m]["ratio"] for m in ("simclr", "swav")], memory=lambda r: r["ratios"],
        reuse_memory=lambda r: [r["simclr resnet10t 32 8"][k] for k in ("time_ratio", "memory_ratio")],
        accumulate=lambda r: [r["simclr"]["time_ratio"], *r["simclr"]["memory_ratios"]], curves=lambda r: [r["untrained_knn"], r["trained_knn"]],
        methods=lambda r: [x for row in r["rows"] for x in (row["knn"], row["few_labels"], row["seconds"], row["images_per_s"] / 1e4, row["embedding_std"])],
        multi_crop=lambda r: [r["step"]["time_over_flops"], r["passes"]["time_over_flops"]],
        processes=lambda r: r["ratios"] + r["one_s"] + r["two_s"],
        knn=lambda r: [r["ratio"], r["accuracy"], r["a_s"], r["b_s"]],
        queue_share=lambda r: [r["sizes"]["32"]["share"]],
        cache=lambda r: [r["ratio"], r["reading_ratio"], r["n"], r["side"], *(x / 1e5 for x in r["reading_images_per_s"].values())],
        speedups=lambda r: [x["ratio"] for part in ("comb_patches", "partial", "regions") for x in (r[part], r[part].get("drawn", r[part]))]
        + [r["suncet"][m]["without_views"]["ratio"] for m in ("simclr", "moco_v3")],
        step_share=lambda r: [1 + x for m in ("simclr", "moco_v2") for x in r[m]["share"].values()] + [r["moco_v2"][k] for k in ("step_s", "stamps_cost", "busy", "outside_encoder")],
        utilisation=lambda r: [r[part][k] for part in ("step", "encoder", "convolutions") for k in ("utilisation", "tflop")] + [r["ceiling_tflops"]],
        time_to_knn=lambda r: [r["reached_s"], r["reached_epoch"], r["best_knn"], r["decode_s"], r["judging_s"]],
        trains=lambda r: [x for losses in r["losses"].values() for x in losses],
        speedups_accuracy=lambda r: [e[k] for row in r["rows"] for e in row["epochs"] for k in ("knn", "seconds", "tflop")])[program](result)
    assert figures and all(0 < x < 100 for x in figures)
    if program == "methods":
        assert [(r["method"], r["seed"]) for r in result["rows"]] == [("moco_v2", 3), ("byol", 3)]
        assert [r["features"] for r in result["controls"]] == ["raw pixels", "untrained encoder"]
    if program == "multi_crop": assert 1.75 <= result["flop_ratio"] < 1.85  # six crops of a quarter of the area beside two; all have the same head
    if program == "queue_share":  # the queries times the queue, and its gradient; the step has three passes for keys and queries
        assert result["sizes"]["32"]["queue_gflop"] == pytest.approx(2 * 2 * 4 * 128 * 64 / 1e9)
        assert result["sizes"]["32"]["step_gflop"] > 100 * result["sizes"]["32"]["queue_gflop"]
    if program == "speedups":
        partial, regions = result["partial"], result["regions"]
        assert list(partial["levels"]) == ["layer1", "layer2", "layer3", "final"] and sum(partial["drawn"]["levels"].values()) == 2
        shares = [level["flop_ratio"] for level in partial["levels"].values()]
        # a step that goes to the end is one without PartialBackprop
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and partial["flop_ratio"] == pytest.approx(sum(shares) / 4)
        assert regions["map"] == [4, 4] and regions["window"] == [2, 4] and regions["flop_ratio"] < 1 and 0 < regions["choosing_share"] < 1
        assert result["suncet"]["support"] == 4 and all(result["suncet"][m]["flop_ratio"] > 1 for m in ("simclr", "moco_v3"))
    if program == "step_share":
        shares = {m: r["share"] for m, r in result.items() if isinstance(r, dict) and "share" in r}
        assert all(sum(share.values()) == pytest.approx(1) for share in shares.values())
        # MoCo's keys have a pass and a memory of their own; all other parts are in every step
        assert [p for p, s in shares["simclr"].items() if not s] == ["encoder_keys"] and all(shares["moco_v2"].values())
        assert shares["simclr"]["encoder"] > shares["simclr"]["data"] and result["simclr"]["operators"] > 100
    if program == "utilisation":
        convolutions = result["each_convolution"]
        assert sum(c["times"] * c["gflop"] for c in convolutions) == pytest.approx(1e3 * result["convolutions"]["tflop"])
        assert result["encoder"]["tflop"] == pytest.approx(result["convolutions"]["tflop"])
        assert result["step"]["tflop"] > result["encoder"]["tflop"]  # it has heads
        assert sum(result["share_of_step"].values()) == pytest.approx(1)
    if program == "time_to_knn":
        assert result["ended_by"] == "target" and len(result["curve"]) == result["reached_epoch"] == 1 and result["speedups"] == "intermediate"
        assert file.with_suffix(".png").stat().st_size > 10_000
    if program == "trains": assert list(result["losses"]) == ["simclr, plain", "simclr, accumulate"] and not result["failed"]
    if program == "speedups_accuracy":
        assert [(r["config"], r["seed"], len(r["epochs"])) for r in result["rows"]] == [("moco_v3+all", 3, 1), ("simclr+suncet", 3, 1)]
        assert [r["config"] for r in result["table"]] == ["moco_v3+all", "simclr+suncet"]
        # what is there is not run again, and can be drawn
        monkeypatch.setattr(sys, "argv", [*sys.argv, "--plot"])
        runpy.run_path(path, run_name="__main__")
        assert file.with_suffix(".png").stat().st_size > 10_000
        monkeypatch.setattr(sys, "argv", sys.argv[:-1])
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(mark=1)))
        runpy.run_path(path, run_name="__main__")
        assert "mark" in json.loads(file.read_text())


def test_waits_are_found_where_they_are(monkeypatch, capsys):
    import sync
    from speedups import Labelled
    monkeypatch.setattr(sys, "argv", ["sync.py"])
    if not torch.cuda.is_available():
        sync.main()
        assert "nothing was checked" in capsys.readouterr().out

    class Wait(Callback):
        def after_pred(self):
            if modes[-1:] == ["warn"]: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    modes: list[str] = []
    dls = image_dls(Labelled(72, 16), size=16, bs=8, valid=0, device="cpu")
    learn = contrastive_learner(dls, "test_resnet", "simclr", cbs=Wait(), knn_pictures=0)
    (where, n), = sync.waits(learn, switch=modes.append).items()
    assert n == 1 and "test_benchmarks.py" in where and modes[0] == "warn" and modes[-1] == "default"
    with learn.removed_cbs(learn.wait): assert not sync.waits(learn, switch=modes.append)


def test_the_gpu_program_goes_on_after_a_part_that_fails(tmp_path, monkeypatch, capsys):
    import gpu
    monkeypatch.setitem(gpu.PARTS, "tests", gpu.Part(1, 1, "pytest --no-such-option", ""))
    command = ["gpu.py", "--quick", "--parts", "tests", "throughput_128", "trains", "--imagenette", "nowhere", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit): gpu.main()
    parts = json.loads((tmp_path / "gpu_quick.json").read_text())["parts"]
    assert {name: part["how"] for name, part in parts.items()} == dict(tests="failed (4)", throughput_128="no data at nowhere", trains="done")
    assert "simclr, accumulate: trains" in parts["trains"]["said"][-1] and json.loads(next(tmp_path.glob("trains*.json")).read_text())["bs"] == 8
    assert "failed (4)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command, "--list"])
    gpu.main()
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_what_a_part_started_ends_with_it(tmp_path):
    import gpu
    child = "import time; time.sleep(60)"
    parent = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]); print(p.pid, flush=True); time.sleep(60)"
    assert gpu.run(["-c", parent], tmp_path / "log", 2) == "over time"
    for _ in range(50):  # whoever takes over the child has to notice its end
        state = Path(f"/proc/{(tmp_path / 'log').read_text().strip()}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z": break
        time.sleep(0.1)
    else: pytest.fail("the child is still running")


def test_the_trial_says_how_many_epochs_fit():
    from time_to_knn import fitting
    dls = image_dls("digits", size=16, bs=256, device="cpu")
    learn = contrastive_learner(dls, "test_resnet", "simclr", knn_pictures=0)
    epochs = [fitting(Namespace(epochs=50, minutes=minutes, decode_s=1.0, eval_every=1), dls, learn) for minutes in (0.001, 1e4)]
    assert epochs == [1, 50]


def test_groups_fit_into_nine_minutes():
    import gpu
    minutes: dict[int, float] = {}
    for part in gpu.PARTS.values(): minutes[part.group] = minutes.get(part.group, 0) + part.minutes
    assert max(minutes.values()) <= 9


def test_what_intervals_cover():
    from step_share import busy
    assert busy([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5 and busy([]) == 0


def pictures(folder, n, size):
    from PIL import Image
    g = torch.Generator().manual_seed(0)
    for i, x in enumerate(torch.randint(0, 256, (n, size, size, 3), dtype=torch.uint8, generator=g)):
        (folder / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.numpy()).save(folder / "ab"[i % 2] / f"{i}.png")


def test_throughput(tmp_path, monkeypatch, capsys):
    path = str(BENCHMARKS / "throughput.py")
    pictures(tmp_path / "noise/train", 8, 16)
    monkeypatch.chdir(tmp_path)

    def run(*args):
        monkeypatch.setattr(sys, "argv", [path, "noise/train", *"--arch resnet10t --size 16 --bs 4 --warm 1 --steps 1 --rounds 1 --out .".split(), *args])
        return runpy.run_path(path, run_name="__main__")

    for name in ("ours", "encoder", "encoder fp32"):
        run("--run", name)
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["images_per_s"] > 0
    monkeypatch.setenv("PYTHONPATH", str(BENCHMARKS.parent))  # of the processes it starts
    compare = run("--only", "encoder")["compare"]
    (file,) = tmp_path.glob("throughput_noise_*.json")
    result = json.loads(file.read_text())
    assert result["settings"]["data"] == "noise" and result["versions"]["torch"]
    assert result["images_per_s"]["encoder"][0] > 0 and "lightly" not in result["images_per_s"]
    assert all(name in ("ours over encoder", "ours fp32 over encoder fp32") and r > 0 for name, r in result["ratio"].items()) and "ours over encoder" in result["ratio"]
    for wrong in (["--only", "encodr"], ["--only", "lightly", "--small-input"], ["--peer", "lightly=python"], ["--peer", "solo-learn=nowhere/python"]):
        with pytest.raises(SystemExit, match="2"): run(*wrong)
    speeds = {"ours": (6, 9), "ours fp32": (3, 3), "lightly": (2, 3), "lightly bf16": (4, 3), "solo-learn": (1, 1)}
    alone = {"encoder": [dict(images_per_s=8, step_over_encoder=0.75), dict(images_per_s=9, step_over_encoder=1)]}
    assert compare(alone | {name: [dict(images_per_s=x) for x in xs] for name, xs in speeds.items()}) == {
        "ours over encoder": [0.75, 1], "ours over lightly": [3, 3], "ours fp32 over lightly": [1.5, 1], "ours over lightly bf16": [1.5, 3],
        "ours over solo-learn": [6, 9], "ours fp32 over solo-learn": [3, 3]}


def test_the_peers_clock(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    from clock import Clock, settings
    monkeypatch.setattr(sys, "argv", ["runner", *"--data=x --size=8 --bs=4 --warm=1 --steps=2".split()])
    a = settings("a runner")
    assert (a.hidden, a.out, a.precision) == (2048, 256, "fp32")

    def clock(steps, views, loss=1.):
        got = Clock(a, lambda batch: batch)
        for step in range(steps):
            got.on_train_batch_start(None, None, views, step)
            time.sleep(0.05)
            got.on_train_batch_end(None, None, dict(loss=torch.tensor(loss + step)), views, step)
        return got

    two = [torch.rand(4, 3, 8, 8) for _ in range(2)]
    clock(3, two).report("fastai")
    figures = json.loads(capsys.readouterr().out)
    assert 0 < figures["images_per_s"] <= 2 * 4 / 0.1 and figures["losses"] == [1, 3] and figures["versions"]["fastai"]
    for views in (two[:1], [x[:3] for x in two], [two[0], two[0]], [two[0], torch.cat([two[0][:1], two[1][1:]])]):
        with pytest.raises(AssertionError, match="views"): clock(1, views)
    with pytest.raises(AssertionError, match="losses"): clock(3, two, float("nan")).report()
    with pytest.raises(AssertionError, match="losses"): clock(2, two).report()


class Seen(Callback):
    def before_fit(self): self.each = []
    def after_loss(self): self.each.append(self.learn.loss.detach())


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if not recipe.speedups])
def test_the_hand_written_loop_does_the_same_arithmetic(method):
    from step_time import Pictures, bare_loop, settled_learner

    def learner():
        torch.manual_seed(0)
        dls = image_dls(Pictures(18, 16), size=16, bs=6, valid=0, device="cpu")
        # the memory is no multiple of a batch and gets round once; gradients are so small here that nothing would be clipped
        return settled_learner(dls, "resnet10t", method, rows=14, **(dict(clip_each=0.02) if method == "dino" else {}))

    by_hand, ours, seen = learner().to_fp32(), learner().to_fp32(), Seen()
    train = by_hand.dls.train
    torch.manual_seed(1)
    expected = torch.stack(bare_loop(by_hand, train, copied=False, lr=0.1)(train._order(0)))
    torch.manual_seed(1)
    with ours.no_logging(), ours.no_mbar(): ours.fit_contrastive(1, lr=0.1, cbs=seen)
    # where the learning rate starts at 0, the third loss is the first to see an update
    assert torch.isfinite(expected).all() and len(expected.unique()) == 3
    torch.testing.assert_close(torch.stack(seen.each), expected, rtol=1e-4, atol=1e-5)
    # encoder, heads, moving average, memory, centre
    a, b = ({k: v for k, v in learn.model.state_dict().items() if not k.endswith("written")} for learn in (ours, by_hand))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
