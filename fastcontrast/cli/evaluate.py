"""`fastcontrast eval`: judge an encoder by pictures with labels."""
from typing import Annotated, Any

from typer import Argument, Option

from ..core import InputError, is_number
from .inputs import encoder_file, read_pictures, split_of, tell_notes, tell_undecodable
from .judging import features, file_embedder, judge, results_table, unjudged
from .output import console, out_file, save_json
from .settings import number_or_name, read_range
from .verbs import verb


@verb(30, "fastcontrast eval runs/simclr-resnet18-pictures pictures", name='eval')
def evaluate(
    encoder: Annotated[str, Argument(help="A run's folder, or an encoder.safetensors")],
    data: Annotated[str, Argument(
        help="A folder of class folders of pictures, a .csv file of paths and classes, shards, or 'digits'")],
    valid: Annotated[str | None, Option(
        help="Share of the pictures (of the shards) to judge by, where the data has no folder for it; "
             "or a folder, .csv file or shards of other pictures, which are judged within themselves if their classes "
             "are others", show_default="as in the run, else 0.2")] = None,
    seed: Annotated[int | None, Option(help="Seed of that split", show_default="as in the run, else 0")] = None,
    column: Annotated[str | None, Option(
        help="The column of a .csv file that has the pictures' paths", show_default="as in pretrain")] = None,
    label_column: Annotated[str | None, Option(
        help="The column of a .csv file that has their classes", show_default="as in pretrain")] = None,
    value_range: Annotated[str | None, Option(
        '--range', metavar='LOW,HIGH', help="The values that become 0 and 1 in pictures of more than 8 bits",
        show_default="the run's, of its own pictures or if it was given one; else found from a sample")] = None,
    probe: Annotated[bool, Option(help="Also a linear classifier on all labels")] = True,
    out: Annotated[str | None, Option('--out', '-o', help="Also write the results to this .json file")] = None,
):
    """Judge an encoder by pictures with labels.

    Three classifiers look at its features: kNN and a linear one with all labels, and a linear one with ten labels a
    class."""
    from ..evaluate.linear import linear_probe
    from ..export import encoder_info
    path = encoder_file(encoder)
    info, embed = encoder_info(path), file_embedder(path)
    file = out_file(out, '.json') if out else None
    given = dict(valid=number_or_name(valid), seed=seed, column=column, label_column=label_column,
                 value_range=read_range(value_range))
    # share and seed as given, or as in the encoder's run: another seed holds out pictures that training has seen
    split = split_of(path, data) | {key: value for key, value in given.items() if value is not None}
    if info['in_chans'] != 3: split['channels'] = info['in_chans']  # the encoder takes no others
    dls = read_pictures(data, 2, size=info['size'], **split)
    if dls.channels != info['in_chans']:
        raise InputError(f"{encoder} takes pictures with {info['in_chans']} channels, and those of {data} have "
                         f"{dls.channels}: give others, or another encoder.")
    reason = unjudged(dls.bank.data, dls.valid.data)
    if reason: raise InputError(f"{data} can't judge an encoder: {reason}")
    tell_notes(dls)
    _tell_range(info['extra'].get('value_range'), dls.value_range)
    counts = dict(n_train=len(dls.bank.data), n_valid=len(dls.valid.data))
    console.print(f"{info['arch']}, {info['size']} px: {counts['n_train']:,} pictures to learn the classes from, "
                  f"{counts['n_valid']:,} to judge by")
    embedded = features(dls, embed)
    results = judge(*embedded)
    console.print(results_table({'encoder': results}, dls.within))
    if probe:
        results['linear_probe'] = linear_probe(*embedded)
        place = f' within {dls.within}' if dls.within else ''
        console.print(f"linear{place}, all labels: {results['linear_probe']:.1%}")
    tell_undecodable(dls)
    if file:
        about = {key: info[key] for key in ('arch', 'size', 'sha256')}
        save_json(file, dict(results, encoder=str(path), data=data, **counts, **split, **about))
        console.print(f"results in {file}")


def _tell_range(
    trained: Any, # the values that were 0 and 1 when the encoder was trained, as its file says it; None: it does not
    here: tuple[float, float] | None, # and those of the pictures that judge it
) -> None:
    "Say where a value is not as bright as the encoder knows it"
    if not (isinstance(trained, list) and len(trained) == 2 and all(map(is_number, trained))): return
    if here is None or list(here) == trained: return
    low, high = (f'{value:.17g}' for value in trained)
    console.print(f"the encoder was trained with values of {low} to {high} as 0 to 1: --range {low},{high} makes the "
                  "same values as bright here")
