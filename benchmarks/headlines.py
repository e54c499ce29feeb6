"""What each paper promises, in miniature: epochs, seconds and arithmetic to the accuracy that its base ends with."""
import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import Group, Run, words
from trials import CONFIGS, Trial, draw_ends, needs, spelled_table

group = Group("headlines", "What each paper promises, in miniature: how soon the accuracy of its base is reached")

IMAGENETTE = dict(data="data/imagenette-128", arch="resnet10t")
COLUMNS = {
    "": "{config}", "kNN": "{knn:.1%}{knn_std:.1%}", "seconds": "{seconds:,.0f}", "TFLOP": "{tflop:,.1f}",
    "epochs to the base's end": "{epoch_to_base:.3g}", "seconds to it": "{seconds_to_base:,.0f}",
    "TFLOP to it": "{tflop_to_base:,.1f}",
}
LABELLED = {"": "{config}", "fine-tuned, the labels given": "{finetuned:.1%}{finetuned_std:.1%}",
            "linear, the labels given": "{labelled:.1%}{labelled_std:.1%}", **COLUMNS}


@dataclasses.dataclass(frozen=True)
class Headline:
    """A paper's promise: the configurations that show it, the base first, and the settings they run with"""
    question: str
    configs: tuple[str, ...]
    settings: dict[str, Any]
    labels: float | None = None # share of the labels that runs may use, and are judged by
    quick: dict[str, Any] = dataclasses.field(default_factory=dict) # what a trial has instead of `QUICK`

    @property
    def metric(self) -> str: return "knn" if self.labels is None else "labelled"


HEADLINES = {
    "dcl": Headline(
        "Does DCL lift SimCLR, and the more so the smaller the batch?",
        tuple(f"simclr{dcl} bs{bs}" for bs in (32, 64, 256) for dcl in ("", "+dcl")),
        dict(data="data/cifar10", arch="resnet10t", size=32, bs=256, epochs=20, pictures=10000)),
    "suncet": Headline(
        "Fine-tuned with a tenth of the labels, does SimCLR with SuNCEt, which saw these labels before, get to where "
        "SimCLR gets in twice the epochs?",
        ("simclr", "simclr half", "simclr+suncet half"),
        dict(IMAGENETTE, size=96, bs=128, epochs=40, protocol="full"), labels=0.1,
        quick=dict(epochs=2, tune_epochs=1)),
    "fast-moco": Headline(
        "Do combined patches get to MoCo v3's last kNN in half of its epochs?",
        ("moco_v3", "moco_v3+comb_patches", "fast_moco"), dict(IMAGENETTE, size=128, bs=128, epochs=42)),
    "regions": Headline(
        "Do partial backpropagation and hard regions get to MoCo v3's last kNN in less time?",
        ("moco_v3", "moco_v3+partial", "moco_v3+regions", "moco_v3+partial+regions"),
        dict(IMAGENETTE, size=96, bs=128, epochs=20)),
    "together": Headline(
        "Do the three papers' speedups together get to MoCo v3's last kNN in a third of its seconds?",
        ("moco_v3", "moco_v3+all"), dict(IMAGENETTE, size=96, bs=128, epochs=20), quick=dict(size=32)),
}
HELP = """

    Every configuration runs with every seed, {configs}. Judged is {judged}, after every epoch, off the clock. A run
    that is broken off, by a signal or a power cut, goes on when the command is given again; the results are written
    after every run, and drawn. `..._to_base` is what it took until the mean of the seeds reached the base's last
    value, `..._by_seed` the same of each seed. Runs that were made beside other work have seconds that can't be
    compared: --seconds measures some steps of all configurations in turn instead, and table and figure then use these.
"""
JUDGED = {"knn": "kNN", "labelled": "a linear classifier that sees the labels which SuNCEt may use"}
TUNED = """
    At its end every run's encoder is fine-tuned with these labels, by a protocol of `learn.finetune`, full or semi:
    what `fastcontrast pretrain --method simclr --labels 0.1` and the fine-tuning after it come to, with SuNCEt and
    without, and without it in twice the epochs.
"""
QUICK = dict(data="digits", arch="test_resnet", size=16, bs=256, epochs=1, seeds="3", small_input=False)


def measure(
    run: Run,
    data: str = "",         # 'digits', or a folder with train/ and val/ or test/
    arch: str = "resnet10t", # encoder
    size: int = 96,         # side of a picture
    bs: int = 128,          # batch, where the configuration does not say it
    epochs: int = 20,       # of the base
    seeds: str = "0,1,2",   # with commas between them
    pictures: int = 0,      # of a folder's train/, a stratified choice; 0: all
    valid_pictures: int = 0, # of a folder's val/ or test/; 0: all
    small_input: bool | None = None, # the ResNets' stem for small pictures (up to 64 px if not given)
    setting: str = "",      # of the recipes: imagenet, cifar, small, digits (by the pictures if not given)
    minutes: float | None = None, # after which no further run begins
    state: str = "",        # folder of unfinished runs, 'runs' beside the results if not given
    protocol: str = "",     # by which encoders are fine-tuned at the end with the labels they might use; '': none is
    tune_epochs: int = 0,   # of that; 0: the protocol's
    threads: int | None = None, # of PyTorch on the CPU
    seconds: bool = False,  # train nothing, and measure the configurations' seconds in turn
    plot: bool = False,     # train nothing, and draw the results that are there
) -> None:
    """What a headline's command does; `named` gives it the headline's settings"""
    headline = HEADLINES[run.name.replace("_", "-")]
    if threads: torch.set_num_threads(threads)
    needs(data)
    trial = Trial(run, data, arch, size, bs, epochs, small_input, setting, pictures, valid_pictures, headline.labels,
                  Path(state or run.folder / "runs"), headline.metric, protocol, tune_epochs)
    if seconds: trial.time_epochs(headline.configs)
    elif not plot: trial.sit(headline.configs, list(map(int, words(seeds))), linear=True, minutes=minutes)
    table = trial.sheet.read()["table"]
    print(f"\n{spelled_table(table, LABELLED if headline.labels else COLUMNS)}\n")
    trial.draw()
    draw_ends(table, trial.sheet.path.with_name(f"{trial.sheet.path.stem}_finetuned.png"))


def named(name: str, headline: Headline) -> Callable[..., None]:
    """The measurement of a headline: `measure` with its own name, help and settings"""
    def own(run: Run, **settings) -> None: measure(run, **settings)

    signature = inspect.signature(measure)
    own.__wrapped__, own.__name__ = measure, name.replace("-", "_")  # the comments beside the settings are its
    own.__signature__ = signature.replace(parameters=[
        p.replace(default=headline.settings.get(p.name, p.default)) for p in signature.parameters.values()])
    own.__doc__ = headline.question + HELP.format(configs=", ".join(headline.configs), judged=JUDGED[headline.metric])
    if "protocol" in headline.settings: own.__doc__ += TUNED
    return own


assert all(name in CONFIGS for headline in HEADLINES.values() for name in headline.configs)
for name, headline in HEADLINES.items(): group.measurement(quick=QUICK | headline.quick)(named(name, headline))
