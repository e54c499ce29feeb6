"""`fastcontrast export`: hand an encoder on."""
import tempfile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..core import InputError, is_number
from ..records import read_record
from .inputs import encoder_file
from .output import console, out_file
from .verbs import verb


@verb(60, "fastcontrast export runs/fast-resnet18-pictures -o encoder")
def export(
    encoder: Annotated[str, Argument(help="A run's folder, an exported folder or file, or hf-hub:owner/name")],
    out: Annotated[str | None, Option('--out', '-o', show_default="none, with --push", help=(
        "What to write: a folder that timm, transformers and others load, or a single file, if the name ends in "
        ".safetensors (or .onnx)"))] = None,
    to: Annotated[str, Option(help="What is to load it: {libraries}")] = 'timm',
    push: Annotated[str | None, Option(
        metavar='OWNER/NAME', help="Upload the folder to the Hub of Hugging Face, under this name",
        show_default="none")] = None,
):
    """Write a checked copy of a trained encoder for other libraries to load.

    A folder has config.json, model.safetensors and a README.md that tells what was trained and how it is loaded. The
    page 'use everywhere' shows it in timm, fastai, torchvision, transformers, segmentation-models-pytorch and ONNX."""
    from ..export import export_copy
    if out is None and push is None: raise InputError("there is nowhere to export to: give --out, or --push.")
    file = encoder_file(encoder)
    facts = _facts(file) if file.name == 'encoder.safetensors' else None
    if out is not None:
        place = out_file(out, '.safetensors', '.onnx') if Path(out).suffix else out
        written = export_copy(file, place, to=to, facts=facts, push=push)
        console.print(f"the encoder is in {written}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            export_copy(file, Path(folder)/'encoder', to=to, facts=facts, push=push)
    if push is not None: console.print(f"the encoder is on the Hub: load_encoder('hf-hub:{push}')")


def _facts(file: Path) -> dict[str, Any] | None:
    "What the record of a run, beside its encoder, says of the training; None if there is none"
    from ..artefact import training_facts
    try: record = read_record(file.parent)
    except InputError: return None
    results = record.get('results')
    result = results.get('trained encoder') if isinstance(results, dict) else None
    judged = {name: value for name, value in (result or {}).items() if is_number(value)}
    return training_facts(
        record.get('loss'), record.get('speedups'), record.get('n_train'), record.get('epochs_done'),
        record.get('seconds'), judged.get('knn'), judged.get('few_labels'), judged.get('per_class'))
