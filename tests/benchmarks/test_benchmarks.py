"""The measurements run, in a small form, and write what they promise; their figures are for benchmarks/results."""
import functools
import importlib
import json
import math
import re
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import common
import pytest
import torch
import typer
from fastai.callback.core import Callback
from helpers.learners import narrow
from helpers.pictures import few_digits
from run import GROUPS, make_app
from typer.testing import CliRunner

import fastcontrast.step
from fastcontrast.cli.settings import parse_speedups
from fastcontrast.data import image_dls
from fastcontrast.device import SmallMaps
from fastcontrast.evaluate.finetune import Protocol, classifier_learner
from fastcontrast.learner import contrastive_learner
from fastcontrast.models import make_encoder
from fastcontrast.speedups.multi_view import MultiView
from fastcontrast.speedups.progressive_size import ProgressiveSize

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MEASUREMENTS = {(group, name): measurement for group in GROUPS
                for name, measurement in importlib.import_module(group).group.measurements.items()}
# what has to be a number in (0, 100), from the results of a trial
FIGURES = dict(
    throughput=lambda r: [r["images_per_s"]["encoder"][0] / 1e4, r["ratio"]["ours over encoder"]],
    step_time=lambda r: [r[method]["ratio"] for method in ("simclr", "swav")],
    step_share=lambda r: [1 + x for method in ("simclr", "moco_v2") for x in r[method]["share"].values()]
    + [r["moco_v2"][k] for k in ("step_s", "stamps_cost", "busy", "outside_encoder")],
    utilisation=lambda r: [r[part][k] for part in ("step", "encoder", "convolutions") for k in ("utilisation", "tflop")]
    + [r["ceiling_tflops"]],
    multi_crop=lambda r: [r["step"]["time_over_flops"], r["passes"]["time_over_flops"]],
    queue_share=lambda r: [r["sizes"]["32"]["share"]],
    import_time=lambda r: [r["ratio"], r["ours_s"], r["fastai_s"]],
    knn=lambda r: [r["ratio"], r["accuracy"], r["a_s"], r["b_s"]],
    muon=lambda r: [r["ratio"], r["a_s"], r["b_s"]],
    small_maps=lambda r: list(r["simclr"].values())[:3],
    linear=lambda r: [r["ratio"], r["accuracy"], r["sklearn_accuracy"], r["a_s"], r["b_s"]],
    judging=lambda r: [r["median_s"], *r["each_s"].values(), r["means"]["linear, all labels"]],
    comb_patches=lambda r: [r["ratio"], r["combinations"]],
    partial=lambda r: [r["ratio"], r["drawn"]["ratio"], r["over_all_levels"]["ratio"]],
    together=lambda r: [r["ratio"], r["drawn"]["ratio"], r["combinations"]],
    regions=lambda r: [r["ratio"], r["step"]["ratio"], r["with_cutting"]["ratio"]],
    suncet=lambda r: [r[method]["ratio"] for method in ("simclr", "moco_v3")],
    methods=lambda r: [x for row in r["rows"] for x in (
        row["knn"], row["few_labels"], row["seconds"], row["images_per_s"] / 1e4, row["spread"])],
    precision=lambda r: [x for row in r["rows"] for x in (row["knn"], row["few_labels"])],
    curves=lambda r: [r["untrained_knn"], r["trained_knn"], r["raw_pixels_knn"]],
    time_to_knn=lambda r: [r["reached_s"], r["reached_epoch"], r["best_knn"], r["decode_s"], r["judging_s"]],
    speedups=lambda r: [e[k] for row in r["rows"] for e in row["epochs"] for k in ("knn", "seconds", "tflop")],
    step=lambda r: r["ratios"],
    accumulate=lambda r: [r["simclr"]["time_ratio"], *r["simclr"]["memory_ratios"]],
    reuse=lambda r: [r["simclr test_resnet 32 8"][k] for k in ("time_ratio", "memory_ratio")],
    cache=lambda r: [r["ratio"], r["reading_ratio"], r["n"], r["side"],
                     *(x / 1e5 for x in r["reading_images_per_s"].values())],
    crops=lambda r: [x for part in (r, r["square"]) for x in (
        *(part["shares"][name]["pixels"] for name in ("authors", "before", "after")), part["ratio"], part["a_s"])],
    listing=lambda r: [r["a_s"], r["b_s"]],
    small=lambda r: [r["a_s"], r["b_s"], r["ratio"]],
    odd=lambda r: [1 + r["alone_mb"] / 10, 1 + r["eight_mb"] / 10],
    processes=lambda r: r["ratios"] + r["one_s"] + r["two_s"],
    epoch_time=lambda r: [r["ratio"], r["checkpoint_mib"]],
    size=lambda r: r["ratios"].values(),
    restart=lambda r: [r["ratio"], r["a_s"], r["b_s"]],
    kills=lambda r: [r["survived"] / r["kills"], r["length_s"]],
    race=lambda r: [e[k] for row in r["rows"] for e in row["epochs"] for k in ("seconds", "tflop", "knn20", "knn200")]
    + [row[k] for row in r["table"] for k in ("linear", "knn_at_end", "seconds")],
    headlines=lambda r: [e[k] for row in r["rows"] for e in row["epochs"] for k in ("knn", "seconds", "tflop")]
    + [row[k] for row in r["table"] for k in ("knn", "linear")],
    protocols=lambda r: [score["mean"] for measures in r["scores"].values() for score in measures.values()
                         if score["mean"] > 0] + [r[k] for k in ("seconds", "labelled_seconds", "labelled_accuracy")],
    raccoon=lambda r: [1 + row[k] for row in r["rows"] for k in ("AP", "AP50", "AP75", "seconds")],
    trains=lambda r: [x for losses in r["losses"].values() for x in losses])
ELSEWHERE = {"digits", "waits", "gpu"}  # which have tests of their own below


def figures_of(group, name):
    """Which of `FIGURES` a measurement's are: all headlines have the same"""
    return group if group == "headlines" else name


def invoke(*arguments: str, code: int = 0) -> str:
    """What `python benchmarks/run.py` prints"""
    result = CliRunner().invoke(make_app(), list(map(str, arguments)))
    if result.exception and not isinstance(result.exception, SystemExit): raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def test_every_measurement_has_a_test():
    assert {figures_of(*key) for key in MEASUREMENTS} == set(FIGURES) | ELSEWHERE


# what they measure has tests of its own, or others are made in the same way
LONG = ("kills", "restart", "processes", "step", "reuse", "accumulate", "throughput", "race", "regions", "fast_moco",
        "together", "suncet")


def marks_of(group, name): return [pytest.mark.slow] if name in LONG and group != "speedups" else []


def narrow_heads(monkeypatch):
    """What a speedup changes in a step, it changes with heads of few channels, too"""
    import speedups
    for recipe in (speedups.simclr, speedups.moco_v3):
        def narrowed(setting, recipe=recipe): return narrow(recipe, setting)
        monkeypatch.setattr(speedups, recipe.__name__, functools.update_wrapper(narrowed, recipe))


@pytest.mark.parametrize("group, name", [
    pytest.param(*key, marks=marks_of(*key)) for key in MEASUREMENTS if figures_of(*key) in FIGURES])
def test_measurement(group, name, tmp_path, monkeypatch):
    # none asks for more than a batch of 256, but for `protocols`, which times four of 128
    few_digits(monkeypatch, 4 if group == "headlines" else 2)
    if group == "speedups": narrow_heads(monkeypatch)
    options, measurement = ["--quick", "--device=cpu", f"--out={tmp_path}"], MEASUREMENTS[group, name]
    invoke(*measurement.words, *options)
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    label = "_".join(measurement.words).replace("-", "_")
    assert file.name.startswith(f"{label}_") and file.name.endswith("_cpu.json")
    assert result["command"] == f"python benchmarks/run.py {' '.join(measurement.words)} --device=cpu --quick"
    assert result["device"] and result["versions"]["torch"]
    assert result["settings"].items() >= measurement.quick.items()
    key = figures_of(group, name)
    figures = FIGURES[key](result)
    assert figures and all(0 < x < 100 for x in figures)
    if check := globals().get(f"check_{key}"): check(result, file)


def check_throughput(result, file):
    assert file.name == "speed_throughput_noise_cpu.json" and "lightly" not in result["images_per_s"]
    assert set(result["ratio"]) <= {"ours over encoder", "ours fp32 over encoder fp32"}


def check_odd(result, file):
    refused = {row["name"] for row in result["rows"] if row["refused"]}
    # whose size Pillow holds against what it says; as small as this, all others are decoded
    assert len(result["rows"]) >= 60 and refused == {"icon.icns"}


def check_methods(result, file):
    assert [(r["method"], r["seed"]) for r in result["rows"]] == [("moco_v2", 3), ("byol", 3)]
    assert [r["features"] for r in result["controls"]] == ["raw pixels", "untrained encoder"]


def check_precision(result, file):
    first, second = result["rows"]  # a trial has the same precision twice, which every CPU has
    assert (first["precision"], first["knn"]) == (second["precision"], second["knn"]) and first["precision"] == "fp32"


def check_multi_crop(result, file):
    assert 1.75 <= result["flop_ratio"] < 1.85  # six crops of a quarter of the area beside two; all have the same head


def check_queue_share(result, file):
    # the queries times the queue, and its gradient; the step has three passes for keys and queries
    row = result["sizes"]["32"]
    assert row["queue_gflop"] == pytest.approx(2 * 2 * 4 * 128 * 64 / 1e9)
    assert row["step_gflop"] > 100 * row["queue_gflop"]


def check_partial(result, file):
    assert list(result["levels"]) == ["layer1", "layer2", "layer3", "final"]
    assert sum(result["drawn"]["levels"].values()) == 2
    shares = [level["flop_ratio"] for level in result["levels"].values()]
    # a step that goes to the end is one without PartialBackprop
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1)
    assert result["flop_ratio"] == pytest.approx(sum(shares) / 4)


def check_without_views(result):
    # a single timing less another one, which may come out as anything
    assert math.isfinite(result["without_views"]["ratio"])


def check_comb_patches(result, file): check_without_views(result)


def check_regions(result, file):
    assert result["map"] == [16, 16] and 0.4 < math.prod(result["window"]) / 256 < 0.6
    assert result["flop_ratio"] < 1 and 0 < result["choosing_share"] < 1


def check_suncet(result, file):
    assert result["support"] == 4 and all(result[method]["flop_ratio"] > 1 for method in ("simclr", "moco_v3"))
    for method in ("simclr", "moco_v3"): check_without_views(result[method])


def check_step_share(result, file):
    shares = {method: result[method]["share"] for method in ("simclr", "moco_v2")}
    assert all(sum(share.values()) == pytest.approx(1) for share in shares.values())
    # MoCo's keys have a pass and a memory of their own; all other parts are in every step
    assert [part for part, share in shares["simclr"].items() if not share] == ["encoder_keys"]
    assert all(shares["moco_v2"].values())
    assert shares["simclr"]["encoder"] > shares["simclr"]["data"] and result["simclr"]["operators"] > 100


def check_utilisation(result, file):
    convolutions = result["each_convolution"]
    assert sum(c["times"] * c["gflop"] for c in convolutions) == pytest.approx(1e3 * result["convolutions"]["tflop"])
    assert result["encoder"]["tflop"] == pytest.approx(result["convolutions"]["tflop"])
    assert result["step"]["tflop"] > result["encoder"]["tflop"]  # it has heads
    assert sum(result["share_of_step"].values()) == pytest.approx(1)


def check_time_to_knn(result, file):
    assert result["ended_by"] == "target" and len(result["curve"]) == result["reached_epoch"] == 1
    assert result["settings"]["speedups"] == "intermediate"
    assert file.with_suffix(".png").stat().st_size > 10_000


def check_trains(result, file):
    assert list(result["losses"]) == ["simclr, plain", "simclr, accumulate"] and not result["failed"]


def check_speedups(result, file):
    assert [(r["config"], r["seed"], len(r["epochs"])) for r in result["rows"]] == [
        ("moco_v3+all", 3, 1), ("simclr+suncet", 3, 1)]
    assert [r["config"] for r in result["table"]] == ["moco_v3+all", "simclr+suncet"]
    assert [r["optimizer_tflop"] for r in result["table"]] == [0, 0]  # AdamW's
    # what is there is not run again, and can be drawn
    again = "accuracy", "speedups", "--quick", "--device=cpu", f"--out={file.parent}"
    invoke(*again, "--plot")
    assert file.with_suffix(".png").stat().st_size > 10_000
    file.write_text(json.dumps(json.loads(file.read_text()) | dict(mark=1)))
    invoke(*again)
    assert "mark" in json.loads(file.read_text())
    assert "other settings: bs (512, now 64)" in CliRunner().invoke(make_app(), [*again, "--bs=64"]).stderr
    # seconds are measured of all that have run, and of epochs that have steps enough
    seconds = [*again, "--seconds"]
    assert "moco_v3+all ran, too" in CliRunner().invoke(make_app(), [*seconds, "--configs=simclr+suncet"]).stderr
    assert "batches is too short" in CliRunner().invoke(make_app(), seconds).stderr
    file.write_text(json.dumps(result | dict(rows=[dict(row, threads=99) for row in result["rows"]])))
    assert "runs with 99 threads" in CliRunner().invoke(make_app(), [*again, "--seeds=4"]).stderr


def check_race(result, file):
    assert [(r["name"], r["seed"], len(r["epochs"]), r["done"]) for r in result["rows"]] == [
        ("simclr", 3, 2, True), ("simclr+dcl", 3, 2, True)]
    base, other = result["table"]
    assert base["sooner"] >= 1 and base["sooner_than_it"] == 1 and base["epochs_to"] <= 2
    assert base["knn_at_end"] == base["knn20"] and base["seconds"] > result["rows"][0]["decode_s"] > 0
    assert file.with_suffix(".png").stat().st_size > 10_000
    assert [path.name for path in (file.parent / "runs").iterdir()] == ["noise"]  # unfinished runs would be here


def check_headlines(result, file):
    from headlines import HEADLINES
    headline = HEADLINES[file.name.removeprefix("headlines_").split("_digits")[0].replace("_", "-")]
    assert [r["config"] for r in result["rows"]] == list(headline.configs)
    assert {r["config"] for r in result["table"]} == set(headline.configs) and file.with_suffix(".png").exists()
    base, *others = result["table"]
    assert base["epoch_to_base"] <= 2 and len(base["seconds_to_base_by_seed"]) == 1
    if headline.labels:
        assert [len(r["epochs"]) for r in result["rows"]] == [2, 1, 1]
        assert all(0 < row["finetuned"] < 1 for row in result["rows"]) and base["finetuned"] < 1
        assert file.with_name(f"{file.stem}_finetuned.png").exists() and result["protocol"] == "full"
        assert base["labelled"] == result["rows"][0]["epochs"][-1]["labelled"] > 0
    assert not list((file.parent / "runs").iterdir())  # checkpoints of what is done are gone


def check_protocols(result, file):
    scores = result["scores"]
    assert [*scores] == ["SimCLR, 1 epochs", "random", f"all labels, {result['labelled_epochs']} epochs"]
    assert {*map(tuple, scores.values())} == {tuple(scores["random"])}  # the same measures of all three
    assert len({measures["kNN, k=20, τ=0.07"]["mean"] for measures in scores.values()}) > 1
    assert file.with_suffix(".md").read_text().count("\n") == 2 + len(scores["random"])
    assert file.with_suffix(".png").stat().st_size > 10_000
    again = "transfer", "protocols", "--quick", "--device=cpu", f"--out={file.parent}"
    invoke(*again)  # what is done is not done again, and the same
    assert json.loads(file.read_text())["scores"] == scores
    assert "other settings: lr (0.1, now 0.2)" in CliRunner().invoke(make_app(), [*again, "--lr=0.2"]).stderr


def check_raccoon(result, file):
    assert file.name == "transfer_raccoon_64_cpu.json" and result["n_train"] > result["n_valid"]
    assert [(row["start"], row["seed"]) for row in result["rows"]] == [("encoder", 3), ("random", 3)]
    assert [row["seeds"] for row in result["table"]] == [1, 1]
    file.write_text(json.dumps(result | dict(note="here")))
    again = "transfer", "raccoon", "--quick", "--device=cpu", f"--out={file.parent}"
    invoke(*again)  # what is done is not done again
    assert json.loads(file.read_text()) == result | dict(note="here")
    invoke(*again, "--seeds=3,4")
    more = json.loads(file.read_text())
    assert more["rows"][:2] == result["rows"] and len(more["rows"]) == 4 and more["note"] == "here"
    assert "other settings: epochs (1, now 2)" in CliRunner().invoke(make_app(), [*again, "--epochs=2"]).stderr


# ---- how it is used ----


def test_help_says_what_each_measurement_answers():
    text = invoke("--help")
    assert all(group in text for group in GROUPS)
    for group in GROUPS:
        text = " ".join(invoke(group, "--help").split())
        for name, measurement in importlib.import_module(group).group.measurements.items():
            assert "?" in measurement.question, f"the docstring of {name} doesn't begin with the question it answers"
            assert measurement.words[-1] in text and measurement.question in text
            assert all(option in text for option in ("--device", "--quick", "--out"))
    assert "by default 256" in invoke("speed", "step-time", "--help")


def test_a_trial_keeps_nothing_unless_it_is_told_where():
    before = sorted(common.RESULTS.rglob("*"))
    said = invoke("speed", "--quick", "--device=cpu", "knn")
    assert "results in" in said and sorted(common.RESULTS.rglob("*")) == before


@pytest.mark.parametrize("arguments, words", [
    ("speed throughput", "--data=FOLDER"), ("speed throughput --data nowhere", "no folder 'nowhere'"),
    ("speed throughput --only=encodr", "encodr is no library here: there are ours, encoder, lightly"),
    ("speed throughput --only=lightly --small-input --data=.", "small_input is for ours and the encoder only"),
    ("speed throughput --peers lightly2=python", "'lightly2' is none of lightly"),
    ("speed throughput --peers solo-learn=nowhere/python", "no interpreter 'nowhere/python'"),
    ("speed step-time --methods nothing", "nothing is no method with a loop"),
    ("checkpoints size --methods nothing", "nothing is no method: there are"),
    ("accuracy curves", "--data=FOLDER"), ("accuracy time-to-knn --data=digits", "give --target --bs --epochs"),
    ("race", "--data=FOLDER"), ("race --data=nowhere", "no folder 'nowhere'"),
    ("race --data=. --k=5", "k is 20 or 200"), ("race --data=.", "give --sizes"),
    ("race --data=. --sizes=8,8", "2 sides for 1 folders"),
    ("race --data=. --sizes=8 --only=simclr+", "simclr+ is no contestant here: there are simclr"),
    ("headlines dcl --data=nowhere", "no folder 'nowhere'"), ("transfer raccoon", "--data=FOLDER"),
    ("transfer raccoon --data=.", "--encoder=RUN"), ("transfer protocols", "--data=FOLDER"),
    ("transfer raccoon --data=. --encoder=nowhere", "no encoder 'nowhere'"),
    ("memory step --device=tpu", "cpu or cuda"), ("devices waits", "nothing was checked"),
    ("devices gpu", "it needs a GPU")])
def test_what_lacks_is_said_in_a_sentence(arguments, words):
    arguments = shlex.split(arguments)
    if "--device=tpu" not in arguments: arguments.append("--device=cpu")
    result = CliRunner().invoke(make_app(), arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1


def test_a_group_goes_on_after_a_measurement_that_fails(capsys):
    group = common.Group("some", "of which some fail")

    @group.measurement(quick={})
    def lacks(run): raise common.Lacking("it needs something")

    @group.measurement(quick={})
    def fails(run): raise SystemExit("no luck")

    @group.measurement(quick=dict(n=1), gpu=dict(n=3))
    def works(run, n: int = 2): print(n, run.settings, run.command)

    @group.measurement(quick={}, alone=True)
    def by_name(run): raise AssertionError
    assert not group.run_all("cpu", True, None)
    said = capsys.readouterr().out
    assert "left out: it needs something" in said and "failed: fails" in said
    assert "1 {'n': 1} python benchmarks/run.py some works --device=cpu --quick" in said
    group.measurements["works"].run("cpu", n=5)
    assert "5 {'n': 5} python benchmarks/run.py some works --n=5 --device=cpu" in capsys.readouterr().out


def test_every_result_stands_in_the_page_and_every_command_is_one():
    page = (BENCHMARKS / "README.md").read_text()
    cited = set(re.findall(r"[\w.-]+\.(?:json|png|md)", page))
    assert cited - {"README.md"} == {path.name for path in common.RESULTS.iterdir() if path.is_file()}
    for file in sorted(name for name in cited if name.endswith(".json")):
        commit = json.loads((common.RESULTS / file).read_text())["commit"][:7]
        assert re.search(rf"{re.escape(file)}\S*[^\n]*{commit}", page), f"{file} was measured at {commit}"
    commands = re.findall(r"python benchmarks/run.py ([^`\n]+)", page)
    assert len(commands) > 20
    app = typer.main.get_command(make_app())
    for command in commands:
        group, *options = [word for word in shlex.split(command, comments=True) if word != "--help"] or [""]
        if not group or group.startswith("--"): continue
        program = app.commands[group]
        if hasattr(program, "commands"):
            if not options or options[0].startswith("--"): continue
            program = program.commands[options.pop(0)]
        program.make_context(group, options)


# ---- digits, waits, gpu ----


def test_digits_runs_what_a_newcomer_runs(tmp_path, monkeypatch):
    import accuracy
    results = {"trained encoder": dict(knn=0.5)}
    commands = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")

    def pretrain(command, **options):
        if "pretrain" not in command: return run(command, **options)
        assert options["env"]["CUDA_VISIBLE_DEVICES"] == ""  # a CPU is measured
        commands.append(command)
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(dict(
            epochs=18, batch_size=64, cost=dict(seconds=27.2), results=results)))
    run = subprocess.run
    monkeypatch.setattr(accuracy.subprocess, "run", pretrain)
    invoke("accuracy", "digits", "--device=cpu", "--seeds=0,3", f"--out={tmp_path}")
    runs = json.loads((tmp_path / "accuracy_digits_fast_cpu.json").read_text())["runs"]
    assert [(r["seed"], r["trained encoder"]) for r in runs] == [(0, dict(knn=0.5)), (3, dict(knn=0.5))]
    assert commands[1][1:8] == ["-m", "fastcontrast", "pretrain", "--seed", "3", "--method", "fast"]


def test_who_is_killed_on_a_cpu_sees_no_gpu(monkeypatch):
    import checkpoints
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(checkpoints, "judged", lambda out: {})
    seen = []

    def start(command, env, **options):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        if len(seen) == 2: raise RuntimeError
    monkeypatch.setattr(checkpoints.subprocess, "run", start)
    monkeypatch.setattr(checkpoints.subprocess, "Popen", start)
    with pytest.raises(RuntimeError): invoke("checkpoints", "kills", "--quick", "--device=cpu")
    assert seen == ["", ""]  # the run that nobody kills, and the first of those that are killed


def test_waits_are_found_where_they_are():
    from devices import waits_in_step

    class Wait(Callback):
        def after_pred(self):
            if modes[-1:] == ["warn"]: warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            warnings.warn("something else", stacklevel=1)
    modes: list[str] = []
    dls = image_dls(common.Labelled(72, 16), size=16, bs=8, valid=0, device="cpu")
    learn = contrastive_learner(dls, "test_resnet", "simclr", cbs=Wait(), knn_pictures=0)
    (place, n), = waits_in_step(learn, switch=modes.append).items()
    assert n == 1 and "test_benchmarks.py" in place and modes[0] == "warn" and modes[-1] == "default"
    with learn.removed_cbs(learn.wait): assert not waits_in_step(learn, switch=modes.append)


def test_the_gpu_program_goes_on_after_a_part_that_fails(tmp_path, monkeypatch):
    import devices
    broken = devices.Part(1, 1, "pytest --noconftest --no-such-option")  # which would import torch
    monkeypatch.setitem(devices.PARTS, "tests", broken)
    command = ["devices", "gpu", "--quick", "--device=cpu", "--parts=tests,throughput_128,trains",
               "--imagenette=nowhere", f"--out={tmp_path}"]
    assert "failed (4)" in invoke(*command, code=1)
    parts = json.loads((tmp_path / "devices_gpu_quick_cpu.json").read_text())["parts"]
    assert {name: part["outcome"] for name, part in parts.items()} == dict(
        tests="failed (4)", throughput_128="no data at nowhere", trains="done")
    assert "simclr, accumulate: trains" in parts["trains"]["said"][-1]
    trains = json.loads((tmp_path / "devices_trains_cpu.json").read_text())
    assert trains["settings"]["bs"] == 8
    assert len(invoke(*command, "--show").splitlines()) == 3


def test_every_gpu_part_is_a_command():
    import devices
    app = typer.main.get_command(make_app())
    for part in devices.PARTS.values():
        if part.command.startswith("pytest"): continue
        folders = dict(imagenette="i", cifar10="c")
        script, group, name, *options = part.arguments(folders, "", False, Path("out"))
        context = app.commands[group].commands[name].make_context(name, options)
        assert Path(script).name == "run.py" and context.params["out"] == "out"
        assert {k: context.params[k] for k in part.settings} == {
            k: v.format(**folders) if isinstance(v, str) else v for k, v in part.settings.items()}
        assert part.lacks(folders) == ("i" if "imagenette" in str(part.settings) else "c" if "cifar10" in str(
            part.settings) else None)
    tests = devices.PARTS["tests"].arguments({}, "", False, Path())
    assert [Path(word).name for word in tests if word.endswith(".py")] == ["test_losses.py", "test_views.py"]
    assert all(Path(word).exists() for word in tests if word.endswith(".py"))


def test_groups_fit_into_nine_minutes():
    import devices
    minutes: dict[int, float] = {}
    for part in devices.PARTS.values(): minutes[part.group] = minutes.get(part.group, 0) + part.minutes
    assert max(minutes.values()) <= 9


def test_what_a_part_started_ends_with_it(tmp_path):
    from devices import run_part
    child = "import time; time.sleep(60)"
    parent = (f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
              "print(p.pid, flush=True); time.sleep(60)")
    assert run_part(["-c", parent], tmp_path / "log", 8) == "over time"
    assert (tmp_path / "log").read_text().strip().isdigit()
    for _ in range(50):  # whoever takes over the child has to notice its end
        state = Path(f"/proc/{(tmp_path / 'log').read_text().strip()}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z": break
        time.sleep(0.1)
    else: pytest.fail("the child is still running")


# ---- headlines ----


@pytest.mark.slow
def test_a_headline_that_is_broken_off_goes_on(tmp_path, monkeypatch):
    from trials import OnLabels
    arguments = ["headlines", "suncet", "--quick", "--device=cpu", f"--out={tmp_path}"]
    judge, epochs = OnLabels.after_train, []

    def broken_off(self):
        if self.epoch == 1: raise KeyboardInterrupt
        judge(self)
    monkeypatch.setattr(OnLabels, "after_train", broken_off)
    assert CliRunner().invoke(make_app(), arguments).exit_code
    assert not list(tmp_path.glob("*.json")) and list((tmp_path / "runs").iterdir())

    def listen(self):
        epochs.append(self.epoch)
        judge(self)
    monkeypatch.setattr(OnLabels, "after_train", listen)
    invoke(*arguments)
    (file,) = tmp_path.glob("*.json")
    base, *halves = json.loads(file.read_text())["rows"]
    assert [e["epoch"] for e in base["epochs"]] == [1, 2] and all(e["labelled"] > 0 for e in base["epochs"])
    assert epochs == [1, 0, 0] and len(halves) == 2  # the base's second epoch, and the only one of the others


# ---- a race ----


@pytest.mark.parametrize("name", [pytest.param("simclr", marks=pytest.mark.slow), "lightly"])
def test_a_race_that_is_broken_off_goes_on(name, tmp_path, monkeypatch):
    if name == "lightly": pytest.importorskip("lightly")
    from race import Course
    arguments = ["race", "--quick", "--device=cpu", f"--only={name}", f"--reference={name}", f"--out={tmp_path}"]
    note = Course.note

    def broken_off(course, row, report, last):
        if report["epoch"] == 2: raise KeyboardInterrupt
        return note(course, row, report, last)
    monkeypatch.setattr(Course, "note", broken_off)
    assert CliRunner().invoke(make_app(), arguments).exit_code
    file = tmp_path / "race_noise_16_test_resnet_cpu.json"
    (begun,) = json.loads(file.read_text())["rows"]
    assert [e["epoch"] for e in begun["epochs"]] == [1] and not begun["done"]
    told = []

    def listen(course, row, report, last):
        told.append(report["epoch"])
        return note(course, row, report, last)
    monkeypatch.setattr(Course, "note", listen)
    invoke(*arguments)
    (row,) = json.loads(file.read_text())["rows"]
    assert row["epochs"][0] == begun["epochs"][0] and row["done"] and row["linear"] > 0
    assert [e["epoch"] for e in row["epochs"]] == [1, 2] and told == [2]  # the second epoch is not trained again
    assert row["epochs"][1]["seconds"] > row["epochs"][0]["seconds"]
    assert row["epochs"][1]["tflop"] == pytest.approx(2 * row["epochs"][0]["tflop"])


def test_whoever_fails_is_left_for_the_next_sitting(tmp_path, monkeypatch):
    import race
    monkeypatch.setattr(race.Course, "command", lambda *_: ([sys.executable, "-c", "raise SystemExit('no luck')"],
                                                            dict(epochs=2)))
    arguments = ["race", "--quick", "--device=cpu", "--only=simclr", f"--out={tmp_path}"]
    assert "no luck" in invoke(*arguments, code=1)


def run_of(name, seed, seconds, knn, family=None):
    """A row of a race whose epochs take so many seconds"""
    epochs = [dict(epoch=i, seconds=seconds * i, tflop=i, knn20=v, knn200=v) for i, v in enumerate(knn, 1)]
    return dict(name=name, family=family or name, library="", seed=seed, lr=1, untrained_knn20=0.2, linear=0.5,
                done=True, epochs=epochs)


def test_the_others_begin_as_in_their_benchmarks():
    from race import as_others_begin
    ours, theirs = (make_encoder("test_resnet") for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    as_others_begin(theirs)
    changed = [name for name, t in ours.state_dict().items() if not torch.equal(t, theirs.state_dict()[name])]
    assert changed and all(re.fullmatch(r"layer\d\.\d\.bn\d\.weight", name) for name in changed)
    assert all((theirs.state_dict()[name] == 1).all() and not ours.state_dict()[name].any() for name in changed)
    first = next(p for p in theirs.parameters() if p.ndim == 4)
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_what_is_there_of_a_race_is_put_into_its_table(tmp_path, monkeypatch):
    from race import Course
    monkeypatch.setattr(Course, "small", False)
    settings = dict(data="noise", size=16, small_stem=False, arch="test_resnet", bs=16, epochs=2, our_epochs=2,
                    setting="", pictures=0, valid_pictures=0, workers=0)
    rows = [run_of("simclr", 0, 10, (0.3, 0.4)), dict(run_of("x", 0, 10, (0.3, 0.5)), library="lightly", threads=99)]
    file = tmp_path / "race_noise_16_test_resnet_cpu.json"
    file.write_text(json.dumps(settings | dict(rows=rows, table=[], commit="then")))
    arguments = ["race", "--quick", "--device=cpu", f"--out={tmp_path}"]
    assert "the reference is simclr" in invoke(*arguments, "--plot")
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["table"]] == ["simclr", "x"] and result["table"][0]["sooner"] == 1
    assert result["commit"] == "then" and result["rows"] == rows  # where and when it was measured stays
    assert file.with_suffix(".png").stat().st_size > 10_000
    assert "the reference is x" in invoke(*arguments, "--plot", "--reference=best")
    result = json.loads(file.read_text())
    assert result["reference"] == "x" and ["sooner" in row for row in result["table"]] == [False, True]
    assert "runs with 99 threads" in CliRunner().invoke(make_app(), [*arguments, "--seeds=1"]).stderr


def test_every_configuration_can_be():
    from trials import CONFIGS
    for config in CONFIGS.values():
        config.recipe("small").resolve("small").check()
        assert len(config.make_speedups(0)) == len(parse_speedups(config.with_seed(0))) + bool(config.more)
    whole = CONFIGS["fast"].recipe("small").resolve("small")
    parts = [CONFIGS[f"fast without {part}"].recipe("small").resolve("small")
             for part in ("multi_view", "growing", "muon", "mild views")]
    assert [(len(r.speedups), r.opt, r.views) for r in parts] == [
        (1, whole.opt, whole.views), (2, whole.opt, whole.views), (2, "lars", whole.views), (2, whole.opt, "simclr")]


def trained(arch, *cbs, **kwargs):
    """A learner after an epoch of two steps"""
    dls = common.random_dls(16, 32, 8, "cpu")
    learn = contrastive_learner(dls, arch, "simclr", cbs=cbs, small_input=False, knn_pictures=0, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit_contrastive(1)
    return learn


def test_what_was_tried():
    from tried import DropPatches, LeaveOut, MeanWeights, SelfAssign, SettleNorms
    learn = trained("test_resnet", SelfAssign(), some := LeaveOut(0.5))
    assert learn.train_iter == len(learn.dls.train) == 1  # of two batches
    left = some.losses == 1e6
    assert left.sum() == 8 and not set(left.nonzero().flatten().tolist()) & set(some.of_epoch.tolist())
    assert set(some.drawn(1, 8).tolist()) == set(left.nonzero().flatten().tolist())  # whoever was not seen
    trained("test_resnet", means := MeanWeights())
    assert any((a != b).any() for a, b in zip(means.state, means.own))
    learn = trained("test_resnet", settled := SettleNorms(1), precision="fp32")
    images, _ = next(iter(settled.pictures))
    first = learn.model.encoder.conv1[0], learn.model.encoder.conv1[1]
    cells = first[0](learn.normalize(images / 255)).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(first[1].running_mean, cells.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[1].running_var, cells.var(0), rtol=1e-4, atol=1e-5)
    assert first[1].momentum == 0.1
    learn = trained("test_vit", DropPatches(0.25))
    drop = learn.model.encoder.patch_drop
    assert drop.train()(torch.zeros(2, drop.num_prefix_tokens + 16, 3)).shape[1] == drop.num_prefix_tokens + 4


def test_four_views_of_half_the_side():
    from race import OURS
    speedups = OURS["simclr+multi_view half-size"].make_speedups(0)
    learn = contrastive_learner(common.random_dls(4, 32, 2, "cpu"), "test_resnet", cbs=speedups, knn_pictures=0)
    assert learn.plan.views.main.n == 4 and speedups[1].sizes == (16,)


def test_a_peer_that_ended_before_it_was_judged_tells_of_its_end(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    import clock
    told = []
    monkeypatch.setattr(clock, "tell", lambda **report: told.append(report))

    def taken_up():
        race = clock.Race(SimpleNamespace(folder=tmp_path, epochs=2, bs=4, device="cpu"))
        race.tflop_a_step = 1.0
        clock.RacingCallback(race, None).on_fit_start(None, None)  # all that Lightning calls of a training that is over
        return race
    race = taken_up()
    race.start(3)
    for reports in (1, 2):
        race.end_epoch(torch.nn.Linear(1, 1))
        assert len(told) == reports
        if reports == 1: taken_up()
    assert len(told) == 2  # a training that goes on starts by itself
    taken_up()
    assert told[2] == told[1] and (told[2]["epoch"], told[2]["tflop"]) == (2, 6)


def test_standings():
    from race import accuracy_at, standings
    rows = [run_of("b", 0, 10, (0.3, 0.4, 0.4)), run_of("b", 1, 12, (0.3, 0.5, 0.6)),
            run_of("b lr x2", 0, 10, (0.3, 0.3, 0.45), "b"), run_of("a", 0, 2, (0.4, 0.6)),
            run_of("a", 1, 4, (0.4, 0.5)), run_of("c", 0, 1, (0.1,)), dict(run_of("d", 0, 1, (0.9,)), done=False)]
    table = {row["name"]: row for row in standings(rows, "b", "knn20")}
    assert list(table) == ["b", "b lr x2", "a", "c"]
    a, b = table["a"], table["b"]
    # the goal is 0.5, after 33 s; the mean curve of b is there in its last epoch, that of a in its second
    assert b["seconds"] == 33 and b["sooner"] == 1 and b["is_best_lr"] and not table["b lr x2"]["is_best_lr"]
    assert a["seconds_to"] == 6 and a["sooner"] == 5.5 and a["seconds_to_by_seed"] == [4, 8]
    assert a["seconds_to_std"] == pytest.approx(8 ** 0.5) and a["knn_at_end"] == pytest.approx(0.55)
    assert table["b"]["seconds_to_by_seed"] == [None, 24] and "seconds_to_std" not in b
    assert "sooner" not in table["c"] and table["c"]["knn20_std"] is None
    assert accuracy_at(rows[3], 1, "knn20") == pytest.approx(0.3) and accuracy_at(rows[3], 3, "knn20") == 0.5


def test_what_is_not_known_is_a_dash():
    from trials import spelled_table
    rows = [dict(name="a", x=0.5, x_std=0.01), dict(name="b", x=None)]
    text = spelled_table(rows, {"": "{name}", "x": "{x:.0%}{x_std:.0%}"})
    assert text.splitlines()[2:] == ["| a | 50% ± 1% |", "| b | – |"]


def test_figures_leave_out_what_stopped(tmp_path, monkeypatch):
    import trials
    path, draw_runs, drawn = tmp_path / "figure.png", trials.draw_runs, []

    def note(axis, x, runs, *rest, **style):
        drawn.append(len(runs))
        draw_runs(axis, x, runs, *rest, **style)
    monkeypatch.setattr(trials, "draw_runs", note)
    run = dict(config="simclr", epochs=[dict(epoch=1, seconds=2, tflop=3, knn=0.5)])
    trials.draw([dict(run, stopped="it collapsed")], path)
    assert not path.exists() and not drawn  # nothing is there to draw
    trials.draw([run, run, dict(run, stopped="it collapsed")], path)
    assert path.exists() and drawn == [2, 2, 2]


# ---- parts of measurements ----


# an epoch's end would be on the clock, and its features at the peak of memory
@pytest.mark.parametrize("words", [
    "speed throughput --only=ours", "speed throughput --only=encoder", "speed step-time", "speed step-share",
    "speed utilisation", "speed multi-crop", "speed queue-share", "speedups partial", "memory step",
    "memory accumulate", "devices processes", "checkpoints epoch-time"])
def test_what_is_timed_judges_nothing(words, monkeypatch):
    class Made(Exception): pass
    def made(*arguments, knn_pictures=None, **options): raise Made(knn_pictures)
    for name in ("common", "speed", "speedups", "memory", "devices", "checkpoints"):
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "contrastive_learner", made)
        monkeypatch.setattr(module, "apart", lambda function, *_, **given: function(**given), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with pytest.raises(Made, match="^0$"): invoke(*words.split(), "--quick", "--device=cpu")


def test_an_epoch_of_few_batches_is_timed_by_those_it_has():
    from transfer import seconds_of_epochs
    dls = image_dls("digits", size=16, bs=256, device="cpu")

    def unlabelled(): return contrastive_learner(dls, "test_resnet", knn_pictures=0)

    def labelled(n):
        protocol = Protocol(n, 0.1, 0.1, wd=5e-4, bs=128, scaled=False)
        return classifier_learner(unlabelled().model.encoder, dls, "all", protocol, epochs=n, judge_every=n)
    assert len(dls.train) < 15  # of which two go before the clock starts, and twelve are asked for
    took = seconds_of_epochs(unlabelled, labelled, quick=False)
    assert all(len(seconds) == 3 and 0 < min(seconds) <= max(seconds) < 100 for seconds in took.values())
    for batches in (2, 3):
        short = SimpleNamespace(dls=SimpleNamespace(train=range(batches)), cbs=[])
        with pytest.raises(common.Lacking, match=f"{batches} batches is too short"): common.steps_to_time(short, 2, 9)


def test_all_sizes_of_growing_views_are_on_the_clock():
    epoch = SimpleNamespace(train=range(78))
    assert common.steps_to_time(SimpleNamespace(dls=epoch, cbs=[MultiView()]), 2, 10) == 10
    assert common.steps_to_time(SimpleNamespace(dls=epoch, cbs=[MultiView(), ProgressiveSize()]), 2, 10) == 75


def test_the_trial_says_how_many_epochs_fit():
    from accuracy import Budget, fitting
    dls = image_dls("digits", size=16, bs=256, device="cpu")
    learn = contrastive_learner(dls, "test_resnet", "simclr", knn_pictures=0)
    epochs = [fitting(Budget(0.5, 1, minutes, 1.0), 50, learn) for minutes in (0.001, 1e4)]
    assert epochs == [1, 50]


def test_what_intervals_cover():
    from speed import covered
    assert covered([(5, 7), (0, 2), (1, 3), (6, 6.5)]) == 5 and covered([]) == 0


def test_turns_change_their_order():
    assert list(common.turns("ab", 3)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    calls = []
    a, b, before = (lambda name=name: calls.append(name) for name in "ab-")
    got = common.alternate(a, b, 2, warm=1, before=before)
    assert "".join(calls) == "-a-b-b-a-a-b"
    assert len(got["ratios"]) == 2 and got["ratio"] == pytest.approx(sum(got["ratios"]) / 2)


def test_libraries_are_compared_in_the_same_precision():
    from speed import compare
    speeds = {"ours": (6, 9), "ours fp32": (3, 3), "lightly": (2, 3), "lightly bf16": (4, 3), "solo-learn": (1, 1)}
    alone = {"encoder": [dict(images_per_s=8, step_over_encoder=0.75), dict(images_per_s=9, step_over_encoder=1)]}
    got = alone | {name: [dict(images_per_s=x) for x in xs] for name, xs in speeds.items()}
    assert compare(got) == {
        "ours over encoder": [0.75, 1], "ours over lightly": [3, 3], "ours fp32 over lightly": [1.5, 1],
        "ours over lightly bf16": [1.5, 3], "ours over solo-learn": [6, 9], "ours fp32 over solo-learn": [3, 3]}


def test_ours_and_lightly_train_on_files(tmp_path, monkeypatch, capsys):
    from speed import measure_peer, ours
    folder = str(common.noise_folder(tmp_path / "noise", 16, 16))
    shape = dict(data=folder, arch="test_resnet", size=16, bs=4, warm=1, steps=1)
    figures = ours(**shape, device="cpu", precision="fp32", small_input=False)
    assert figures["images_per_s"] > 0 and figures["decode_s"] > 0
    pytest.importorskip("lightly")
    theirs = measure_peer("lightly", "cpu", dict(lightly=sys.executable), dict(shape, workers=0))
    assert theirs["images_per_s"] > 0 and len(theirs["losses"]) == 2 and theirs["versions"]["lightly"]


def test_the_peers_clock(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS / "peers")
    from clock import Clock, settings
    given = dict(data="x", size=8, bs=4, warm=1, steps=2, device="cpu")
    monkeypatch.setattr(sys, "argv", ["runner", json.dumps(given)])
    a = settings()
    assert vars(a) == given

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


@pytest.mark.parametrize("method", importlib.import_module("loops").METHODS)
def test_the_hand_written_loop_does_the_same_arithmetic(method, monkeypatch):
    from loops import Loop

    def learner():
        dls = common.random_dls(18, 16, 6, "cpu")
        # the memory is no multiple of a batch and gets round once; gradients are so small that nothing would be clipped
        changes = dict(clip_each=0.02) if method == "dino" else {}
        return common.settled_learner(dls, "test_resnet", method, rows=14, changes=changes)

    by_hand, ours, seen = learner().to_fp32(), learner().to_fp32(), Seen()
    train = by_hand.dls.train
    ours.remove_cbs(SmallMaps)  # which round otherwise, on CPUs where the learner has them; the loop convolves
    monkeypatch.setattr(fastcontrast.step, "seed_generators", lambda *numbers: None)  # the loop draws on and on
    torch.manual_seed(1)
    torch.randint(2**62, ())  # what a fit begins with
    expected = torch.stack(Loop(by_hand, copied=False, lr=0.1).epoch(train._order(0)))
    torch.manual_seed(1)
    common.train(ours, lr=0.1, cbs=seen)
    # where the learning rate starts at 0, the third loss is the first to see an update
    assert torch.isfinite(expected).all() and len(expected.unique()) == 3
    torch.testing.assert_close(torch.stack(seen.each), expected, rtol=1e-4, atol=1e-5)
    # encoder, heads, moving average, memory, centre
    states = [learn.model.state_dict() for learn in (ours, by_hand)]
    a, b = ({k: v for k, v in state.items() if not k.endswith("written")} for state in states)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
