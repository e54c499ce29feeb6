"""`fastcontrast report`: repeated runs become a paper's table."""
from typing import Annotated

from rich.table import Column, Table
from typer import Argument, Option

from ..core import InputError, number
from .output import console, errors
from .verbs import verb


@verb(95, "fastcontrast report runs/ablation --base runs/ablation/base--seed=0 -o report")
def report(
    runs: Annotated[list[str], Argument(
        metavar='FOLDER', help="Folders of runs, such as a sweep's, or the folders of single runs",
        show_default=False)],
    out: Annotated[str, Option(
        '--out', '-o', help="The folder for the page, the tables and the figures; those of an earlier report give way"
    )] = 'report',
    base: Annotated[str | None, Option(
        help="The control: the folder of a run, or the name of a setting as the report has it",
        show_default="the base of a sweep, else the setting with the fewest speedups")] = None,
    columns: Annotated[str | None, Option(
        help="The columns of table.md, table.tex and what is printed, by their names in table.csv, with semicolons "
             "between them", show_default="accuracies and costs")] = None,
    knn: Annotated[float | None, Option(
        help="The kNN accuracy that costs are told to, like 0.9",
        show_default="the last of the control's run of the same seed")] = None,
):
    """Say what runs of several settings and seeds have in common: mean ± standard deviation over seeds, and differences
    to a control, seed by seed.

    Runs that differ in nothing but their seeds, and in where and how they were carried out, are one setting. The folder
    has index.html (a page that needs nothing else), table.csv (a row for each setting and column: mean, std, n, and the
    paired difference to the control with its standard error and number of pairs), runs.csv (a row for each run),
    table.md and table.tex to read, and curves and differences as .pdf and .png. Only finished runs count; the others
    are listed, and so are combinations that a sweep could not train, with the reason. What fastcontrast eval RUN DATA
    -o RUN/eval.json has written there has columns too."""
    from ..evaluate.report import report as make
    if knn is not None: number(above=0, most=1, **{'--knn': knn})
    names = [name.strip() for name in (columns or '').split(';')]
    try: made = make(runs, out, base, knn, [name for name in names if name])
    except InputError as e:  # names of columns have commas themselves
        if len(names) > 1 or ',' not in names[0] or 'unknown column' not in str(e): raise
        raise InputError(f"{e} Several have semicolons between them.") from None
    console.print(f"{made.counts}; the control is {made.base}, {made.why}")
    console.print(_table(made))
    for name, reason in made.refused: console.print(f"refused: {name}: {reason}")
    for name, state, reason in made.uncounted: console.print(f"not counted: {name} ({state}){reason and f': {reason}'}")
    for note in made.notes: errors.print(f"note: {note}")
    console.print(f"the report is in {out}: open index.html")


def _table(made) -> Table:
    "A row for each setting, in the columns that were chosen or that a terminal has room for"
    from ..evaluate.ablation import column
    usual = [name for name in made.measures if column(name).share][:2] + ['seconds'] * ('seconds' in made.measures)
    wide = made.wide(made.chosen or usual, refused=False)
    table = Table(Column('setting', overflow='fold'), *(Column(name, justify='right') for name in wide))
    for name, *cells in wide.itertuples(): table.add_row(name, *(cell.replace(' (', '\n(') for cell in cells))
    return table
