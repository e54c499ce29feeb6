"""`fastcontrast compare`: whether a speedup is one is seen beside the run without it."""
from typing import Annotated, Any

from rich.table import Column, Table
from typer import Argument, Option

from ..core import number
from ..files import user_path
from ..records import known_record, other_pictures, pictures_of, runs_in
from .output import DRAWINGS, console, errors, out_file
from .verbs import verb

@verb(90, "fastcontrast compare runs/moco_v3-resnet18-pictures runs/moco_v3+comb_patches-resnet18-pictures")
def compare(
    runs: Annotated[list[str], Argument(
        metavar='RUN', help="The folders of two runs or more, the base first; a folder of runs that differ in their "
                            "seeds alone stands for their mean", show_default=False)],
    out: Annotated[str, Option('--out', '-o', help="The .png, .svg or .pdf file for the drawing")] = 'compare.png',
    knn: Annotated[float | None, Option(
        help="The kNN accuracy to reach, like 0.9", show_default="the last of the first run")] = None,
):
    """Draw the kNN accuracy of runs against epochs, time and compute, and say what each took to reach an accuracy.

    Many settings with many seeds are for [bold]fastcontrast report[/]."""
    from ..evaluate.plots import compare_runs
    if knn is not None: number(above=0, most=1, **{'--knn': knn})
    _, rows = compare_runs(runs, out_file(out, *DRAWINGS), target=knn)
    for row in rows:
        state = '' if row['state'] in ('', 'finished') else f" ({row['state']})"
        seeds = f"the mean of {row['runs']} runs, " if row['runs'] > 1 else ''
        console.print(f"{row['run']}{state}: {seeds}{row['setup'] or 'there is no config.json that says what it is'}")
        if row['left_out']: console.print(f"left out of {row['run']}: {', '.join(row['left_out'])}")
    console.print(comparison_table(rows))
    pictures = [_pictures_of(run) for run in runs]
    for row, own in zip(rows, pictures):
        if other := other_pictures(pictures[0], own):
            errors.print(f"warning: {row['run']} has other pictures than {rows[0]['run']}, and accuracies can't be "
                         f"compared: {other}.")
    console.print(f"the drawing is in {out}")


def _pictures_of(run: str) -> dict[str, Any]:
    "What a run, or the first of a folder of them, says of its pictures"
    return pictures_of(known_record(runs_in(user_path(run, 'run'))[0]))


def comparison_table(
    rows: list[dict[str, Any]], # from `compare_runs`
) -> Table:
    "A row for each run; – for what is not known or was not reached"
    costs = [f"{cost} to\n{rows[0]['target']:.1%}" for cost in ('epochs', 'TFLOP', 'seconds')]
    columns = [Column(name, justify='right', no_wrap=True) for name in ('epochs', 'kNN', 'best', *costs)]
    table = Table(Column('run', overflow='fold'), *columns)
    for row in rows:
        reached = [_written(row[key]) for key in ('epochs_to', 'tflop_to', 'seconds_to')]
        knn = f"{row['knn']:.1%}" if row['knn_std'] is None else f"{row['knn']:.1%} ± {row['knn_std']:.1%}"
        table.add_row(row['run'], str(row['epochs']), knn, f"{row['best']:.1%}", *reached)
    return table


def _written(value: float | None) -> str:
    if value is None: return '–'
    return f'{value:,.0f}' if value >= 100 or value == int(value) else f'{value:.3g}'
