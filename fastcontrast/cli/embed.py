"""`fastcontrast embed`: the features of pictures, in a file."""
from typing import Annotated

from typer import Argument, Option

from .inputs import Column, LabelColumn, encoder_file, read_pictures, split_of, tell_notes, tell_undecodable
from .output import console, out_file
from .settings import read_range
from .verbs import verb


@verb(35, "fastcontrast embed runs/fast-resnet18-pictures pictures -o features.parquet")
def embed(
    encoder: Annotated[str, Argument(help="A run's folder, an exported folder or file, or hf-hub:owner/name")],
    data: Annotated[str, Argument(help="A folder of pictures, a .csv file of their paths, shards, or 'digits'")],
    out: Annotated[str, Option('--out', '-o', help="The .npz, .csv or .parquet file to write")] = 'features.npz',
    unlabelled: Annotated[bool | None, Option(
        '--unlabelled', help="Leave labels alone, and take a folder as it is: loose pictures and nested ones",
        show_default="as in the run")] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    value_range: Annotated[str | None, Option(
        '--range', metavar='LOW,HIGH', help="The values that become black and white in pictures of more than 8 bits",
        show_default="as in the run, else found from a sample of the pictures")] = None,
):
    """Write what an encoder sees in pictures: a row of features for each, with its name and label.

    A .npz has the arrays features, names, parts and labels; a .csv a column for each feature; a .parquet, which needs
    pyarrow, one column of lists. Pictures of the same kind have features that point in the same direction."""
    from ..embed import SUFFIXES, embed
    from ..export import load_encoder
    path = encoder_file(encoder)
    file, model = out_file(out, *SUFFIXES), load_encoder(path)
    given = dict(unlabelled=unlabelled, column=column, label_column=label_column, value_range=read_range(value_range))
    split = split_of(path, data) | {key: value for key, value in given.items() if value is not None}
    channels, size = model.pretrained_cfg['input_size'][0], model.pretrained_cfg['input_size'][-1]
    dls = read_pictures(data, 2, size=size, **split | dict(valid=0., channels=channels))
    tell_notes(dls)
    embedded = embed(model.to(dls.device), dls)
    embedded.save(file)
    tell_undecodable(dls)
    console.print(f"{len(embedded):,} pictures, {embedded.features.shape[1]:,} features each, are in {file}")
