"""`fastcontrast predict`: what a classifier takes pictures for."""
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from ..core import whole
from ..records import known_record
from .inputs import (Column, Device, LabelColumn, own_pictures, range_option, read_pictures, run_of, split_of,
                     tell_notes, tell_undecodable, unlabelled_option)
from .output import console, out_file
from .settings import read_range
from .verbs import verb

SHOWN = 20 # pictures on the terminal


@verb(25, "fastcontrast predict runs/finetune-full-pictures photos -o predictions.csv")
def predict(
    classifier: Annotated[str, Argument(help="The folder of a fine-tuning, or its classifier/")],
    data: Annotated[str, Argument(
        help="A picture, a folder of pictures, a .csv file of their paths, shards, or 'digits'")],
    out: Annotated[str | None, Option('--out', '-o', help="Also write them to this .csv or .json file")] = None,
    top: Annotated[int, Option(help="Classes of each picture, the most likely first")] = 5,
    unlabelled: Annotated[bool | None, unlabelled_option(show_default="folders are classes")] = None,
    column: Column = None,
    label_column: LabelColumn = None,
    value_range: Annotated[str | None, range_option(
        show_default="as given in the fine-tuning, else found from a sample of the pictures")] = None,
    device: Device = None,
):
    """Say what a classifier takes pictures for: classes with probabilities.

    Where the pictures have labels of the same names, the accuracy stands below."""
    from ..artefact import find_classifier, find_encoder
    from ..export import encoder_info, load_classifier
    from ..predict import SUFFIXES, as_source
    from ..predict import predict as predictions_of
    from ..values import other_range
    whole(**{'--top': top})
    weights = find_encoder(find_classifier(classifier))
    file, model = out_file(out, *SUFFIXES) if out else None, load_classifier(weights)
    given = dict(unlabelled=unlabelled, column=column, label_column=label_column, value_range=read_range(value_range),
                 device=device)
    split = split_of(weights, data) | {key: value for key, value in given.items() if value is not None}
    channels, _, size = model.pretrained_cfg['input_size']
    dls = read_pictures(as_source(data), 2, size=size, **split | dict(valid=0., channels=channels, training=False))
    tell_notes(dls)
    if note := other_range(encoder_info(weights)['extra'], dls.value_range): console.print(note)
    found = predictions_of(model.to(dls.device), dls)
    if file: found.save(file, top)
    console.print(_table(found, top))
    if len(found) > SHOWN: console.print(f"and {len(found) - SHOWN:,} more{'' if file else ': give -o FILE for all'}")
    tell_undecodable(dls)
    if found.known: console.print(f"accuracy {found.accuracy:.1%} of {found.known:,} pictures with a label")
    record = known_record(run_of(weights))
    if found.known and own_pictures(record, data):
        learned = (record.get('n_train') or 0) + (record.get('n_held') or 0)
        console.print(f"it was tuned with {learned:,} pictures of these data, and does better on them than on others")
    if found.unknown:
        console.print(f"no accuracy: the classifier does not know the pictures' class {found.unknown[0]}"
                      + (f", nor {len(found.unknown) - 1} others" if len(found.unknown) > 1 else ''))
    if file: console.print(f"predictions of {len(found):,} pictures are in {file}")


def _table(found, top: int) -> Table:
    "A row for each of the first pictures"
    labelled = found.known > 0
    table = Table('picture', *['label'] * labelled, 'class', 'probability', *['then'] * (top > 1))
    for row in found.rows(top)[:SHOWN]:
        (first, p), *others = row['classes'].items()
        rest = ', '.join(f'{name} {chance:.1%}' for name, chance in others)
        table.add_row(row['name'], *[row['label']] if labelled else [], first, f'{p:.1%}', *[rest] * (top > 1))
    return table
