"""`fastcontrast finetune`: an encoder learns classes from labels."""
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..signals import watched
from .folder import claimed
from .inputs import Column, Device, LabelColumn, Workers, encoder_name, range_option
from .job import carry_out
from .resume import begun_with, run_to_resume
from .tuning import Finetuning, Tuning, check_tuning, resolve_tuning
from .verbs import verb


@verb(20, "fastcontrast finetune runs/fast-resnet18-pictures --labels 0.1 --protocol semi")
def finetune(
    encoder: Annotated[str | None, Argument(
        metavar='RUN', help="A run's folder, or an encoder.safetensors; needed unless --resume is given",
        show_default=False)] = None,
    data: Annotated[str | None, Argument(
        help="A folder of class folders of pictures, a .csv file of paths and classes, or 'digits'",
        show_default="the run's own, with its split")] = None,
    labels: Annotated[str | None, Option(
        help="Labels to learn from: 'all', a share like 0.01, a whole number of each class like 10, or a file of "
             "picture names, as pretrain --labels leaves it in RUN/labeled.txt",
        show_default="those that the run knew, if the pictures are its own, else all")] = None,
    protocol: Annotated[str | None, Option(
        help="How to train: {protocols}; linear leaves the encoder as it is, full trains all of it, semi does either "
             "by the share of labels", show_default=Tuning.protocol)] = None,
    size: Annotated[int | None, Option(
        help="Side in pixels at which the classifier sees a picture; position embeddings of a ViT are resampled for "
             "it, as for 384 after 224", show_default="the encoder's")] = None,
    epochs: Annotated[int | None, Option(
        help="Passes over the pictures", show_default="the protocol's, and as many more as make 1,000 steps")] = None,
    lr: Annotated[float | None, Option(
        help="Peak learning rate of the layer on top; the encoder's keeps its proportion",
        show_default="the protocol's")] = None,
    encoder_lr: Annotated[float | None, Option(
        help="Peak learning rate of the encoder's last block; 0 leaves the encoder as it is",
        show_default="the protocol's")] = None,
    decay: Annotated[float | None, Option(
        help="Learning rate of each block of the encoder over that of the block above it, like 0.75",
        show_default="the protocol's, 1")] = None,
    batch_size: Annotated[int | None, Option(
        '--batch-size', '--bs', help="Pictures in a batch",
        show_default="256, at most an eighth of the pictures, at least 16")] = None,
    patience: Annotated[int | None, Option(
        help="Hold a tenth of the labels out, and end when their accuracy has not risen for so many epochs; the best "
             "weights come back", show_default="the epochs are fixed")] = None,
    valid: Annotated[str | None, Option(
        help="Share of the pictures to judge by, where the data has no folder for it; or a folder or .csv file of "
             "others", show_default="as in the run, else 0.2")] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    value_range: Annotated[str | None, range_option(show_default="as in the run, else found from a sample")] = None,
    precision: Annotated[str | None, Option(
        help="Of the model's arithmetic: {precisions}", show_default=Tuning.precision)] = None,
    seed: Annotated[int | None, Option(
        help="Seed of the choice of labels and of all draws", show_default="as in the run, else 0")] = None,
    workers: Workers = None,
    device: Device = None,
    log: Annotated[str | None, Option(
        help="Who else is told of the run, as in pretrain: {logs}", show_default="history.csv alone")] = None,
    checkpoint: Annotated[str | None, Option(
        help="When the run's whole state is kept, to go on from: as in pretrain",
        show_default=Tuning.checkpoint)] = None,
    resume: Annotated[str | None, Option(
        metavar='RUN', help="Go on with the fine-tuning in this folder, from its newest checkpoint, by the settings it "
                            "was begun with; --epochs may grow, while the finished classifier stays as "
                            "classifier-EPOCHS", show_default="a new run")] = None,
    out: Annotated[str | None, Option(
        help="Folder for the results; goes on with the run there, if one has begun",
        show_default="a new one in runs/")] = None,
):
    """Train a classifier that begins with an encoder, and say how good it became.

    The results are classifier/ (which timm loads by local-dir:…, with the names of the classes, and fastcontrast
    predict uses), config.json (every setting), history.csv and curves.png; also labeled.txt if the labels are some of
    those there are: their pictures. A run that ended early goes on with --resume, from its newest checkpoint."""
    given = {key: value for key, value in locals().items() if key not in ('resume', 'out')}
    with watched() as signals:
        path = run_to_resume(resume, out)
        begun = begun_with(path, Tuning, Finetuning.verb) if path else {}
        config = resolve_tuning(given, begun)
        if path: check_tuning(path, begun, config)
        with claimed(path or out, _name(config), path is not None) as folder:
            carry_out(Finetuning(config, folder, signals))


def _name(config: Tuning) -> str:
    "What a run is called that was not given a name: protocol, encoder, pictures"
    encoder, pictures = encoder_name(Path(config.encoder)), Path(config.data).resolve().name or 'pictures'
    return f"finetune-{config.protocol}-{encoder.removesuffix('.safetensors')}-{pictures}"
