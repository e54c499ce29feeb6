"""`fastcontrast export`: hand an encoder on."""
from typing import Annotated

from typer import Argument, Option

from .inputs import encoder_file
from .output import console, out_file
from .verbs import verb


@verb(60, "fastcontrast export runs/fast-resnet18-pictures -o r18.safetensors")
def export(
    encoder: Annotated[str, Argument(help="A run's folder, or an encoder.safetensors")],
    out: Annotated[str, Option('--out', '-o', help="The .safetensors file to write")],
    to: Annotated[str, Option(help="The library whose model is to load it: {libraries}")] = 'timm',
):
    "Write a checked copy of a trained encoder for other libraries to load."
    from ..export import export_copy
    file = export_copy(encoder_file(encoder), out_file(out, '.safetensors'), to=to)
    console.print(f"the encoder is in {file}")
