"""`fastcontrast pretrain`: train an encoder and say how good it became."""
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..core import InputError
from ..files import user_path
from ..signals import watched
from .expand import plain, read_seeds, sweep_of_runs
from .folder import claimed
from .inputs import Device, Workers, unlabelled_option, valid_option
from .launch import check_size, hear_signals, launch, rank
from .output import this_command
from .resume import begun_with, check_changes, kept_start, run_to_resume
from .settings import DIGITS, SETTINGS, SETTINGS_FILE, Run, folder_of, named_run, read_calls, resolve
from .sweeping import carry_out, conclude
from .training import accompany, train
from .verbs import verb


def _default(key: str) -> str:
    "The default of a setting, for the help"
    digits = f"; for digits {DIGITS[key]}" if key in DIGITS else ''
    return f"{getattr(Run, key)}{digits}"


@verb(10, "fastcontrast pretrain pictures --loss dcl --with \"comb_patches, suncet(weight=2)\" --labels 0.1")
def pretrain(
    data: Annotated[str | None, Argument(
        help="A folder of pictures, a .csv file of their paths, shards in quotes like 'shards/{000..146}.tar', "
             "or 'digits' (built in)",
        show_default=_default('data'))] = None,
    run: Annotated[str | None, Option(
        help="Take the settings from this section of settings.ini in the current folder; "
             "the options given here beat it. Several with commas between them are a run each")] = None,
    config: Annotated[str | None, Option(
        metavar='FILE', help="The file that has the section", show_default=SETTINGS_FILE)] = None,
    method: Annotated[str | None, Option(
        help="Recipe: {methods}; with other values of its fields like "
             "[bold]--method \"simclr(projector=(512, 128), warmup=5)\"[/]", show_default=_default('method'))] = None,
    loss: Annotated[str | None, Option(
        help="Loss: {losses}; with arguments like [bold]--loss \"dcl(0.2)\"[/]", show_default="the recipe's")] = None,
    speedups: Annotated[str | None, Option(
        '--with', metavar='SPEEDUPS', show_default="none",
        help="Speedups, with commas between them: {speedups}; with arguments where the defaults don't do, "
             "like [bold]--with \"comb_patches, suncet(weight=2, until=50)\"[/] or "
             "[bold]--with \"intermediate(('layer2', 'layer3')), partial\"[/]")] = None,
    arch: Annotated[str | None, Option(
        help="Encoder: any timm architecture, like resnet50, convnext_tiny or vit_small_patch16_224",
        show_default=f"{_default('arch')}; that of --weights if they say it")] = None,
    weights: Annotated[str | None, Option(
        help="Weights that the encoder begins with: a timm tag like resnet50.a1_in1k, hf-hub:… or local-dir:…, an "
             "encoder.safetensors or the folder of a run, or a state dict in a .pth or .safetensors",
        show_default="drawn at random")] = None,
    head_epochs: Annotated[int | None, Option(
        help="Epochs at the beginning in which the encoder stands still while the head learns",
        show_default="1 with --weights, else 0")] = None,
    size: Annotated[int | None, Option(
        help="Side in pixels at which the encoder sees a picture",
        show_default="the pictures' own if all are squares of one size up to 256, else 224")] = None,
    store_size: Annotated[int | None, Option(
        help="Short side in pixels at which pictures are kept, of which crops are cut; not more than their own. A "
             "smaller one takes less memory, and enlarges more of the crops",
        show_default="1.5 times --size")] = None,
    epochs: Annotated[int | None, Option(
        help="Passes over the pictures", show_default=_default('epochs'))] = None,
    batch_size: Annotated[int | None, Option(
        help="Pictures in a batch, of all processes together",
        show_default=f"256, or the pictures there are; for digits {DIGITS['batch_size']}")] = None,
    lr: Annotated[float | None, Option(
        help="Peak learning rate", show_default="the recipe's, in proportion to the batch but for Muon")] = None,
    labels: Annotated[str | None, Option(
        help="Labels that training may use: 'all', a fraction like 0.1, or a file of picture names; "
             "these speedups use them, nothing else does: {labelled_speedups} (one comes with {labelled_methods})",
        show_default="none")] = None,
    valid: Annotated[str | None, valid_option(show_default=_default('valid'))] = None,
    unlabelled: Annotated[bool | None, unlabelled_option(show_default="folders are classes")] = None,
    column: Annotated[str | None, Option(
        help="The column of a .csv file that has the pictures' paths, which begin in its folder",
        show_default="path, file, filename or image")] = None,
    label_column: Annotated[str | None, Option(
        help="The column of a .csv file that has their classes", show_default="label, class or target")] = None,
    channels: Annotated[int | None, Option(
        help="Channels of the pictures: 1 is grey, in a third of the memory; 4 takes transparency for a channel; "
             "arrays (.npy, .npz) have any number, and so have TIFF files (by the extra tiff), whose pages may be "
             "channels",
        show_default="3, or those of the first picture if it isn't grey or colour")] = None,
    value_range: Annotated[str | None, Option(
        '--range', metavar='LOW,HIGH',
        help="The values that become black and white in pictures of more than 8 bits, integers or floats, like 0,4095 "
             "or -1000,3000: the same in all of them, and what lies outside is clipped",
        show_default="found from a sample of the pictures, and said")] = None,
    small_input: Annotated[bool | None, Option(
        help="Give the encoder the stem for small pictures: a ResNet's first convolution has no stride and no pooling "
             "after it, a ViT's patches have 4 pixels",
        show_default="for a ResNet, up to 64 pixels, not for the digits")] = None,
    setting: Annotated[str | None, Option(
        help="Which of the recipe's constants: {settings}",
        show_default="digits for the digits, small for up to 100,000 pictures; "
                     "for more, cifar up to 64 pixels, else imagenet")] = None,
    precision: Annotated[str | None, Option(
        help="Of the model's arithmetic: {precisions}; auto is bf16 on a GPU or CPU that has instructions for it, "
             "else fp32", show_default=_default('precision'))] = None,
    compile: Annotated[bool | None, Option(
        help="Compile the encoder with torch.compile: takes a minute, and is meant for GPUs",
        show_default='no-compile')] = None,
    accumulate: Annotated[int | None, Option(
        help="Run a batch through the encoder in so many parts, for batches larger than the memory: "
             "loss and gradient stay those of the whole batch", show_default=_default('accumulate'))] = None,
    controls: Annotated[bool | None, Option(
        help="Also judge raw pixels and the untrained encoder", show_default='controls')] = None,
    seed: Annotated[int | None, Option(
        help="Seed of the split, the weights and the views", show_default=_default('seed'))] = None,
    seeds: Annotated[str | None, Option(
        help="Make a run with each of these seeds, like [bold]--seeds 0 1 2[/]; the data stand before it",
        show_default="one run")] = None,
    workers: Workers = None,
    device: Device = None,
    processes: Annotated[int | None, Option(
        help="Train in so many processes, one on each GPU, or on a CPU sharing its cores; "
             "the batch is divided among them and the result is the same", show_default=_default('processes'))] = None,
    cache: Annotated[bool | None, Option(
        help="Keep the pictures of a folder decoded on the disk, in NAME.cache beside it: later runs need not decode, "
             "and pictures that do not fit in memory are read at its speed", show_default='no-cache')] = None,
    cache_folder: Annotated[str | None, Option(
        help="Keep them in this folder instead; this alone does for --cache", show_default="NAME.cache")] = None,
    schedule: Annotated[str | None, Option(
        help="Of the learning rate, after the warm-up: {schedules}", show_default="the recipe's")] = None,
    stop_on_collapse: Annotated[bool | None, Option(
        '--stop-on-collapse', help="End the run when all pictures get nearly the same embedding",
        show_default="a warning")] = None,
    log: Annotated[str | None, Option(
        help="Who else is told of the run, with commas between them: {logs}; the settings, views.png and every column "
             "of the epoch table", show_default="history.csv alone")] = None,
    checkpoint: Annotated[str | None, Option(
        help="When the run's whole state is kept, to go on from: 'epoch', 500 steps, 10 minutes, or several of these "
             "with commas; 'none': never", show_default=_default('checkpoint'))] = None,
    resume: Annotated[str | None, Option(
        metavar='RUN', help="Go on with the run in this folder, from its newest checkpoint, by the settings it was "
                            "begun with; --epochs may grow, and a run whose learning rate stays up goes on from "
                            "before it fell, while the finished encoder stays as encoder-EPOCHS.safetensors",
        show_default="a new run")] = None,
    out: Annotated[str | None, Option(
        help="Folder for the results, or for the folders of several runs; goes on with what has begun there",
        show_default="a new one in runs/")] = None,
):
    """Train an encoder on pictures, and say how good it became.

    Training uses no labels, unless a speedup asks for them. If the pictures lie in one folder a class, a part of them
    is kept aside to judge the encoder by. The results are encoder.safetensors (timm's weights), config.json (every
    setting), history.csv, curves.png and views.png; also labeled.txt if training knows the labels of some pictures
    only: their names. A run that ended early goes on with --resume, from its newest checkpoint.

    Several runs, by --seeds or --run, are made one after the other, as those of a sweep are: the same command goes on
    with them, and begins none anew that is finished."""
    given = {key: value for key, value in locals().items() if key in SETTINGS}
    if config is not None and run is None:
        raise InputError(f"--config {config} says where the section of --run is: give --run NAME too.")
    file = SETTINGS_FILE if config is None else config
    with watched() as signals:
        hear_signals()
        if seeds is not None or ',' in (run or ''): return _several(given, run, file, seeds, resume, out)
        path = run_to_resume(resume, out)
        begun = begun_with(path) if path else {}
        settings = resolve(given, run, begun, file)
        if path: check_changes(path, begun, settings)
        elif run and out is None: folder_of(run)
        if rank() is None and settings.processes > 1:
            return launch(settings.processes, signals)
        check_size(settings.processes)
        kept = kept_start(path, settings) if path else None
        if rank(): return accompany(settings, kept)
        with claimed(path or out, run or _name(settings), path is not None) as folder:
            train(settings, folder, signals, kept)


def _several(given: dict[str, Any], run: str | None, file: str, seeds: str | None, resume: str | None, out: str | None):
    "A run for each section and seed"
    if resume is not None: raise InputError("--resume goes on with one run: leave out --seeds, and name one --run.")
    if seeds is not None and given['seed'] is not None:
        raise InputError("--seed and --seeds are given: leave one of them out.")
    names = [name.strip() for name in run.split(',')] if run is not None else []
    own = {key: value for key, value in given.items() if value is not None}
    chosen = {name: named_run(name, file) | own for name in names} or {'': own}
    name = '+'.join(map(plain, names)) or _name(resolve(own))
    if len(chosen) == 1: name += '-seeds'
    sweep = sweep_of_runs(name, chosen, None if seeds is None else read_seeds(seeds))
    conclude(carry_out(sweep, Path('runs')/name if out is None else user_path(out, '--out')), this_command())


def _name(config: Run) -> str:
    "What a run is called that was not given a name: method and speedups, architecture, pictures"
    method = '+'.join([plain(config.method), *(name for name, *_ in read_calls(config.speedups))])
    folder = Path(config.data).parent if config.data.endswith('.tar') else Path(config.data)  # shards are many
    return f"{method}-{plain(config.arch)}-{folder.resolve().name or 'pictures'}"
