"""The benchmark programs run, in a small form, and write what they promise; their figures are for benchmarks/results."""
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from fastai.callback.core import Callback

from fastcontrast.data import image_dls
from fastcontrast.recipes import RECIPES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = dict(
    step_time="--methods simclr swav --arch resnet10t --size 16 --bs 8 --steps 1 --rounds 1",
    memory="--arch resnet10t --size 16 --bs 8 --rounds 1",
    accumulate="--methods simclr --arch resnet10t --size 16 --bs 16 --chunks 4 --steps 1 --rounds 1",
    curves="digits --arch resnet10t --size 16 --bs 256 --epochs 1 --no-small-input",
    methods="digits --methods moco_v2 byol --arch resnet10t --size 8 --bs 512 --epochs 1 --no-small-input --seeds 3",
    multi_crop="--arch resnet10t --large 64 --small 32 --bs 2 --steps 1 --rounds 1",
    queue_share="--arch resnet10t --sizes 32 --bs 4 --queue 64 --steps 1 --repeats 1 --rounds 1",
    processes="--arch test_resnet --size 16 --bs 8 --warm 1 --steps 1 --rounds 1",
    cache="--n 24 --size 16 --bs 4 --workers 1 --rounds 1",
    speedups="--parts comb_patches partial regions suncet --arch resnet10t --size 32 --bs 4 --rounds 1",
    speedups_accuracy="digits --configs moco_v3+all simclr+suncet --size 32 --bs 512 --epochs 1 --seeds 3",
)


@pytest.fixture(autouse=True)
def their_folder(monkeypatch): monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("program", SMALL)
def test_benchmark(program, tmp_path, monkeypatch):
    path = str(BENCHMARKS / f"{program}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path, *SMALL[program].split(), "--out", str(tmp_path)])
    runpy.run_path(path, run_name="__main__")
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert result["command"].startswith(f"python benchmarks/{program}.py") and result["device"] and result["versions"]["torch"]
    figures = dict(
        step_time=lambda r: [r[m]["ratio"] for m in ("simclr", "swav")], memory=lambda r: r["ratios"],
        accumulate=lambda r: [r["simclr"]["time_ratio"], *r["simclr"]["memory_ratios"]], curves=lambda r: [r["untrained_knn"], r["trained_knn"]],
        methods=lambda r: [x for row in r["rows"] for x in (row["knn"], row["few_labels"], row["seconds"], row["images_per_s"] / 1e4, row["embedding_std"])],
        multi_crop=lambda r: [r["step"]["time_over_flops"], r["passes"]["time_over_flops"]],
        processes=lambda r: r["ratios"] + r["one_s"] + r["two_s"],
        queue_share=lambda r: [r["sizes"]["32"]["share"]],
        cache=lambda r: [r["ratio"], r["reading_ratio"], r["n"], r["side"], *(x / 1e5 for x in r["reading_images_per_s"].values())],
        speedups=lambda r: [x["ratio"] for part in ("comb_patches", "partial", "regions") for x in (r[part], r[part].get("drawn", r[part]))]
        + [r["suncet"][m]["without_views"]["ratio"] for m in ("simclr", "moco_v3")],
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
