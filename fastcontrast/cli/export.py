"""`fastcontrast export`: hand an encoder on."""
import tempfile
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..core import InputError, is_number
from ..records import ENCODER, read_record
from .inputs import encoder_file, is_tuned
from .output import console, out_file
from .verbs import verb


@verb(60, "fastcontrast export runs/fast-resnet18-pictures -o encoder")
def export(
    encoder: Annotated[str, Argument(
        help="A run's folder, also that of a fine-tuning, an exported folder or file, or hf-hub:owner/name")],
    out: Annotated[str | None, Option('--out', '-o', show_default="none, with --push", help=(
        "What to write: a folder that timm, transformers and others load, or a single file, if the name ends in "
        ".safetensors (or .onnx)"))] = None,
    to: Annotated[str | None, Option(
        help="What is to load it: {libraries}", show_default="timm, or onnx if the name ends in .onnx")] = None,
    push: Annotated[str | None, Option(
        metavar='OWNER/NAME', help="Upload the folder to the Hub of Hugging Face, under this name",
        show_default="none")] = None,
):
    """Write a checked copy of a trained encoder, or of a classifier, for other libraries to load.

    A folder has config.json, model.safetensors and a README.md that tells what was trained and how it is loaded. The
    page 'use everywhere' shows it in timm, fastai, torchvision, transformers, segmentation-models-pytorch and ONNX."""
    from ..artefact import find_classifier, is_file_name
    from ..export import encoder_info, export_copy
    if out is None and push is None: raise InputError("there is nowhere to export to: give --out, or --push.")
    file = encoder_file(find_classifier(encoder) if is_tuned(encoder) else encoder)
    facts = _facts(file) if file.name == ENCODER else _tuned_facts(file)
    tuned = encoder_info(file)['classes'] and Path(out or '').suffix != '.safetensors'
    thing, load = ('classifier', f"predict('hf-hub:{push}', pictures)") if tuned else (
        'encoder', f"load_encoder('hf-hub:{push}')")
    if out is not None:
        place = out_file(out, '.safetensors', '.onnx') if is_file_name(Path(out)) else out
        written = export_copy(file, place, to=to, facts=facts, push=push)
        console.print(f"the {thing} is in {written}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            export_copy(file, Path(folder)/thing, to=to, facts=facts, push=push)
    if push is not None: console.print(f"the {thing} is on the Hub: {load}")


def _facts(file: Path) -> dict[str, Any] | None:
    "What the record of a run, beside its encoder, says of the training; None if there is none"
    from ..artefact import training_facts
    try: record = read_record(file.parent)
    except InputError: return None
    result = (record.get('results') or {}).get('trained encoder') or {}
    judged = {name: value for name, value in result.items() if is_number(value)}
    return training_facts(
        record.get('loss'), record.get('speedups'), record.get('n_train'), record.get('epochs_done'),
        record.get('seconds'), judged.get('knn'), judged.get('few_labels'), judged.get('per_class'))


def _tuned_facts(file: Path) -> dict[str, Any] | None:
    "The same of a fine-tuning's classifier: what its folder says, and how good it was found; None where nobody says it"
    from ..artefact import facts_beside
    try: record = read_record(file.parent.parent)
    except InputError: return None
    judged = (record.get('results') or {}).get('classifier') or {}
    if record.get('verb') != 'finetune' or 'accuracy' not in judged: return None
    pictures = record.get('n_valid') or 0
    return facts_beside(file) | dict(accuracy=f"{judged['accuracy']:.1%} of {pictures:,} other pictures")
