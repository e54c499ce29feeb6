"""`fastcontrast runs`: how runs stand, and what goes on with those that ended early."""
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from rich.table import Column, Table
from typer import Argument, Option

from ..core import InputError
from ..files import user_path
from ..records import changed, find_runs, history_rows, read_record, state_of
from .folder import resume_command
from .output import console
from .verbs import verb

_UNITS = (('d', 86400), ('h', 3600), ('min', 60), ('s', 1))


@verb(70, "fastcontrast runs runs")
def runs(
    folder: Annotated[str, Argument(help="A folder of runs' folders, or a run's own")] = 'runs',
    as_json: Annotated[bool, Option('--json', help="Write what is known as JSON, for programs")] = False,
):
    "List runs: how they stand, how good they are, and the commands that go on with those that ended early."
    found = [run_row(path) for path in find_runs(user_path(folder, 'folder'))]
    if as_json: return console.print(json.dumps(found, indent=2))
    console.print(runs_table(found))
    for row in found:
        if row['reason'] and row['state'] != 'interrupted': console.print(f"{row['run']}: {row['reason']}")
    for row in found:
        if row['resume']: console.print(row['resume'] + _beginning(Path(row['run'])))


def _beginning(path: Path) -> str:
    "A comment behind the command of a run that has nothing to go on from"
    kept = any((path/'checkpoints').glob('step-*.json'))
    return '' if kept else '  # from its beginning: it has no checkpoint'


def run_row(
    path: Path, # a run's folder
) -> dict[str, Any]: # what is known; None for what is not
    "How a run stands"
    row = dict(run=str(path), state='broken', reason=None, pid=None, host=None, epochs_done=None, epochs=None, knn=None,
               accuracy=None, age=round(time.time() - changed(path)), resume=None)
    try: record = read_record(path)
    except InputError as e: return row | dict(reason=str(e))
    history, settings = history_rows(path), record.get('settings') or {}
    state = state_of(path, record)
    row |= dict(state=state, epochs_done=len(history), epochs=record.get('epochs', settings.get('epochs')),
                knn=_known(_judged(record, 'trained encoder', 'knn'), _last(history, 'knn')),
                accuracy=_known(_judged(record, 'classifier', 'accuracy'), _last(history, 'accuracy')),
                reason=record.get('reason'))
    if state == 'running': row |= dict(pid=record.get('pid'), host=record.get('host'))
    elif state != 'finished' and settings:
        row |= dict(resume=resume_command(path, record.get('verb', 'pretrain')))
    return row


def _known(at_end: float | None, before: float | None) -> float | None: return before if at_end is None else at_end


def _judged(record: dict[str, Any], product: str, measure: str) -> float | None:
    "How good what a finished run has made was found at its end"
    if record.get('state') != 'finished': return None
    return (record.get('results') or {}).get(product, {}).get(measure)


def _last(history: list[dict[str, str]], column: str) -> float | None:
    "The newest value: not every epoch has one"
    for row in reversed(history):
        with suppress(KeyError, TypeError, ValueError): return float(row[column])
    return None


def runs_table(
    rows: list[dict[str, Any]], # from `run_row`
) -> Table:
    "A row for each run; – for what is not known"
    tuned = any(row['accuracy'] is not None for row in rows)
    numbers = [Column(name, justify='right') for name in ('epoch', 'kNN', *['accuracy'] * tuned)]
    table = Table(Column('run', overflow='fold'), Column('state', overflow='fold'), *numbers,
                  Column('age', justify='right', no_wrap=True))
    for row in rows:
        owner = f" ({row['pid']}@{row['host']})" if row['pid'] else ''
        done = '–' if row['epochs'] is None else f"{row['epochs_done']}/{row['epochs']}"
        scores = ['–' if row[name] is None else f'{row[name]:.1%}' for name in ('knn', *['accuracy'] * tuned)]
        table.add_row(row['run'], row['state'] + owner, done, *scores, in_words(row['age']))
    return table


def in_words(
    seconds: float,
) -> str:
    "An age in its largest unit"
    unit, size = next(((unit, size) for unit, size in _UNITS if seconds >= size), _UNITS[-1])
    return f"{max(0, int(seconds // size))} {unit}"
