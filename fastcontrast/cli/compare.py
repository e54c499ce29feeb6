"""`fastcontrast compare`: whether a speedup is one is seen beside the run without it."""
from contextlib import suppress
from typing import Annotated, Any

from rich.table import Column, Table
from typer import Argument, Option

from ..core import InputError, clipped, number
from ..files import user_path
from .folder import read_record
from .output import console, errors, out_file
from .verbs import verb

# what config.json says of the pictures that judge a run
_PICTURES = dict(data="data", n_train="pictures to train on", n_valid="pictures to judge by", classes="classes",
                 judged_within="judged within")


@verb(90, "fastcontrast compare runs/moco_v3-resnet18-pictures runs/moco_v3+comb_patches-resnet18-pictures")
def compare(
    runs: Annotated[list[str], Argument(
        metavar='RUN', help="The folders of two runs or more, the base first", show_default=False)],
    out: Annotated[str, Option('--out', '-o', help="The .png, .svg or .pdf file for the drawing")] = 'compare.png',
    knn: Annotated[float | None, Option(
        help="The kNN accuracy to reach, like 0.9", show_default="the last of the first run")] = None,
):
    "Draw the kNN accuracy of runs against epochs, time and compute, and say what each took to reach an accuracy."
    from ..evaluate.plots import compare_runs
    if knn is not None: number(above=0, most=1, **{'--knn': knn})
    _, rows = compare_runs(runs, out_file(out, '.png', '.svg', '.pdf'), target=knn)
    for row in rows:
        state = '' if row['state'] in ('', 'finished') else f" ({row['state']})"
        console.print(f"{row['run']}{state}: {row['setup'] or 'there is no config.json that says what it is'}")
    console.print(comparison_table(rows))
    pictures = [_pictures_of(run) for run in runs]
    for row, own in zip(rows, pictures):
        if other := _other_pictures(pictures[0], own):
            errors.print(f"warning: {row['run']} has other pictures than {rows[0]['run']}, and accuracies can't be "
                         f"compared: {other}.")
    console.print(f"the drawing is in {out}")


def _pictures_of(run: str) -> dict[str, Any]:
    "What a run says of its pictures, by the words of `_PICTURES`; nothing where it says nothing"
    record: dict[str, Any] = {}
    with suppress(InputError): record = read_record(user_path(run, 'run'))
    record = record | dict(data=(record.get('settings') or record).get('data'))  # as it is found from anywhere
    return {words: record[key] for key, words in _PICTURES.items() if record.get(key) is not None}


def _other_pictures(first: dict[str, Any], other: dict[str, Any]) -> str:
    "In what two runs differ of which both say it; '': they may have the same pictures"
    differ = [words for words in first if words in other and other[words] != first[words]]
    return ', '.join(f"{words} {_said(other[words])}, not {_said(first[words])}" for words in differ)


def _said(value: Any) -> str:
    if isinstance(value, list): return f"{len(value)} ({clipped(', '.join(map(str, value)), 40)})"
    if isinstance(value, int): return f'{value:,}'
    return f"'{clipped(value)}'" if value else 'none'


def comparison_table(
    rows: list[dict[str, Any]], # from `compare_runs`
) -> Table:
    "A row for each run; – for what is not known or was not reached"
    costs = [f"{cost} to\n{rows[0]['target']:.1%}" for cost in ('epochs', 'TFLOP', 'seconds')]
    columns = [Column(name, justify='right', no_wrap=True) for name in ('epochs', 'kNN', 'best', *costs)]
    table = Table(Column('run', overflow='fold'), *columns)
    for row in rows:
        reached = [_written(row[key]) for key in ('epochs_to', 'tflop_to', 'seconds_to')]
        table.add_row(row['run'], str(row['epochs']), f"{row['knn']:.1%}", f"{row['best']:.1%}", *reached)
    return table


def _written(value: float | None) -> str:
    if value is None: return '–'
    return f'{value:,.0f}' if value >= 100 or value == int(value) else f'{value:.3g}'
