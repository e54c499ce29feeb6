"""A report in a folder: one page that needs nothing else, tables for papers and programs, figures for papers."""
import base64
import hashlib
import html
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from .. import __version__
from ..core import InputError, clipped, shown
from ..figures import save_figure
from ..files import check_file, user_path, write_whole
from ..records import VIEWS
from .ablation import column, is_clear
from .plots import draw_curves, last_knn
from .report import Report, head, number_texts, seeds_text
from .tables import latex, markdown, plain

FIGURES = 'curves', 'differences'
PAGE, TABLES = 'index.html', ('table.csv', 'runs.csv', 'table.md', 'table.tex')
_SUFFIXES = '.png', '.pdf'
_MARK = '<meta name="generator" content="fastcontrast report">' # by which a report knows an earlier one
LARGEST = 640, 480 # pixels of a run's views in the page


# --- figures

def accuracy_curves(
    report: Report,
) -> Figure | None: # None where no run has an accuracy for every epoch
    "Accuracy against epochs, time and compute: the mean of each setting, and a band of a deviation to either side"
    for name in ('knn', 'accuracy'):
        found = {setting: columns for setting, columns in report.curves.items() if name in columns}
        if not found: continue
        target = report.knn or last_knn(found.get(report.base, {})) if name == 'knn' else None
        return draw_curves(list(found.values()), [clipped(setting, 80) for setting in found], target, name)
    return None


def difference_bars(
    report: Report,
    measures: Sequence[str] | None = None, # columns; None: the accuracies, four at most
) -> Figure | None: # None where nothing can be compared
    "Paired differences to the control with their standard errors, a panel for each column"
    table = report.table.dropna(subset='difference')
    if measures is None: measures = [name for name in report.measures if column(name).share][:4]
    measures = [name for name in measures if name in set(table['measure'])]
    if not measures: return None
    order = [setting.name for setting in report.settings]
    names = [name for name in order[1:] if name in set(table['setting'])]
    figure = Figure(figsize=(3 + 2.6 * len(measures), 1.1 + .32 * len(names)), layout='constrained')
    for axis, name in zip(figure.subplots(1, len(measures), squeeze=False, sharey=True).flat, measures):
        rows = table[table['measure'] == name].set_index('setting').reindex(names)
        scale = 100 if column(name).share else 1
        places = range(len(names))
        # none where it is not known, as of a single pair; and the colour of the setting's curve
        axis.barh(places, scale * rows['difference'], xerr=scale * rows['error'], capsize=3, alpha=.7,
                  color=[f'C{order.index(name) % 10}' for name in names], ecolor='grey')
        axis.axvline(0, color='grey', linewidth=1)
        axis.set(title=column(name).title, xlabel='points' if column(name).share else 'difference')
        axis.grid(axis='x', alpha=.3)
        axis.set_yticks(places, [clipped(name, 44) for name in names])
        for label in axis.get_yticklabels(): label.set_parse_math(False)  # a name may look like a formula
    axis.invert_yaxis()  # of all: they share it
    return figure


def inline_svg(
    figure: Figure,
    label: str, # for those who do not see it
) -> str:
    "A figure as a part of a page, in the colour of its text"
    file = io.StringIO()
    nothing = dict.fromkeys(('Date', 'Creator', 'Format', 'Type'))
    with rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'report'}):  # the same runs make the same page
        figure.savefig(file, format='svg', transparent=True, metadata=nothing)
    svg = file.getvalue().partition('<svg')[2]
    svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S).replace('#000000', 'currentColor')
    used = set(re.findall(r'#([\w-]+)[")]', svg))
    svg = re.sub(r' id="([\w-]+)"', lambda match: match[0] if match[1] in used else '', svg)
    wide = figure.get_size_inches()[0] * 100  # pixels; half as large its words are too small, and it scrolls
    style = f'min-width: {.7 * wide:.0f}px; max-width: {wide:.0f}px'
    return f'<svg role="img" aria-label="{_text(label)}" style="{style}"{svg}'


# --- the page

_STYLE = '''
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b6570; --paper: #fff; --line: #d9dee3; --tint: #f3f5f7;
  --good: #08702f; --bad: #a3281e; --link: #0b57d0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #a3adb8; --paper: #15181c; --line: #363d45;
  --tint: #1f242a; --good: #74d693; --bad: #ff9b8e; --link: #8ab4f8 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 84rem; margin: 0 auto; padding: 1.5rem 1rem 3rem }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p, li { max-width: 56rem; overflow-wrap: anywhere }
.soft, small, figcaption { color: var(--soft); font-size: .87rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; background: var(--paper) }
tbody:last-child tr:last-child > * { border-bottom: 0 }
thead th { background: var(--tint); vertical-align: bottom; border-bottom: 1px solid var(--line) }
th.text, td.text, th[scope=row] { text-align: left }
tbody th { font-weight: 600; white-space: normal; min-width: min(15rem, 36vw); max-width: 22rem;
  overflow-wrap: anywhere }
th:first-child { position: sticky; left: 0; z-index: 1 }
td.text { white-space: normal; min-width: 8rem; max-width: 40rem; overflow-wrap: anywhere }
th button { all: unset; cursor: pointer; white-space: pre-line }
th button:focus-visible { outline: 2px solid var(--link) }
th button::after { content: "\\2195"; opacity: .35; padding-left: .3em }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1 }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1 }
.difference { display: block; color: var(--soft); font-size: .87rem }
.better, .worse { font-weight: 600 } .better { color: var(--good) } .worse { color: var(--bad) }
.scroll svg { display: block; width: 100%; height: auto; color: var(--ink) }
svg text { fill: currentColor }
.views { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem }
figure { margin: 0 } figure img { width: 100%; height: auto; border-radius: 4px }
'''

# rows that have no value stand at the end in either order; the body of refused settings stays where it is
_SCRIPT = '''
for (const table of document.querySelectorAll('table.sorts')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, at) => row.cells[at].dataset.v ?? row.cells[at].textContent;
  heads.forEach((head, at) => head.querySelector('button').addEventListener('click', () => {
    const falls = head.ariaSort ? head.ariaSort === 'ascending' : head.className === 'descending';
    const sign = falls ? -1 : 1;
    const compare = (a, b) => {
      const [x, y] = [value(a, at), value(b, at)];
      if (x === '' || y === '') return (x === '') - (y === '');
      return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y, 'en', {numeric: true}) : x - y);
    };
    body.append(...[...body.rows].sort(compare));
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.ariaSort = falls ? 'descending' : 'ascending';
  }));
}
'''

# nothing is fetched, and no script runs but this one, whatever a name may hold
_POLICY = ("default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
           f"{base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()}'")


def _text(value: Any) -> str:
    "As text in a page, whatever it holds"
    return html.escape(shown(value))


def _table(
    heads: Sequence[tuple[str, str]], # what stands above columns; the order of numbers' first sorting, or 'text'
    rows: Sequence[str],              # of cells
    others: Sequence[str] = (),       # rows that stay below
) -> str:
    "A table that sorts by its heads, and scrolls where it is too wide"
    cells = ''.join(f'<th scope="col" class="{first}"><button type="button">{_text(name)}</button></th>'
                    for name, first in heads)
    bodies = ''.join(f"<tbody>{''.join(f'<tr>{row}</tr>' for row in part)}</tbody>" for part in (rows, others) if part)
    return f'<div class="scroll"><table class="sorts"><thead><tr>{cells}</tr></thead>{bodies}</table></div>'


def _named_row(name: Any, *cells: str) -> str: return f'<th scope="row">{_text(name)}</th>' + ''.join(cells)
def _word(value: Any) -> str: return f'<td class="text">{_text(value)}</td>'


def _number(row: Any, seeds: int) -> str:
    "A cell of the main table; `row` is of a summary"
    if pd.isna(row.mean): return '<td data-v="">–</td>'
    text = ' ± '.join(number_texts(row, row.mean, row.std))
    if row.n < seeds: text += f' <small>{row.n} of {seeds}</small>'
    if not pd.isna(row.difference):
        gain = row.difference * column(row.measure).better
        kind = 'better' if gain > 0 else 'worse'
        mark = f' {kind}' if gain and is_clear(row) else ''
        said = ' ± '.join(number_texts(row, row.difference, row.error, signed=True))
        text += f'<span class="difference{mark}">{said}</span>'
    return f'<td data-v="{row.mean!r}">{text}</td>'


def _settings_table(report: Report) -> str:
    cells = {(row.setting, row.measure): row for row in report.table.itertuples()}
    heads = [('setting', 'text'), ('runs', 'descending')]
    heads += [(head(name, report.knn), 'ascending' if column(name).better < 0 else 'descending')
              for name in report.measures]
    rows = [_named_row(setting.name, f'<td data-v="{len(setting.counted)}">{seeds_text(setting)}</td>',
                       *(_number(cells[setting.name, name], len(setting.seeds)) if setting.counted else
                         '<td data-v="">–</td>' for name in report.measures)) for setting in report.settings]
    refused = [_named_row(name, f'<td class="text" colspan="{len(heads) - 1}">refused: {_text(reason)}</td>')
               for name, reason in report.refused]
    return _table(heads, rows, refused)


def _references_table(report: Report) -> str:
    "Without differences, which are to the control"
    if not len(report.references): return ''
    cells = {(row.setting, row.measure): row._replace(difference=math.nan) for row in report.references.itertuples()}
    names, measures = (dict.fromkeys(key) for key in zip(*cells))
    rows = [_named_row(name, *(_number(cells[name, measure], 0) for measure in measures)) for name in names]
    return _table([('features', 'text'), *((head(measure), 'descending') for measure in measures)], rows)


def _differing_table(report: Report) -> str:
    heads = [('setting', 'text'), *((name, 'text') for name in report.differing)]
    return _table(heads, [_named_row(key, *map(_word, cells)) for key, *cells in report.differing.itertuples()])


def _runs_table(report: Report) -> str:
    names = {id(run): setting.name for setting in report.settings for run in setting.runs}
    rows = []
    for run in report.runs:
        notes = run.record.get('notes')
        said = [run.reason, *map(str, notes if isinstance(notes, list) else ())]
        done = f"{len(run.rows)} of {run.record.get('epochs', '?')}"
        seed = run.seed if run.record else ''
        rows.append(_named_row(
            run.path, _word(names.get(id(run), '')), f'<td>{seed}</td>', _word(run.state),
            f'<td data-v="{len(run.rows)}">{_text(done)}</td>', _word('; '.join(filter(None, said)))))
    rows += [_named_row(name, _word(''), '<td></td>', _word('not begun'), '<td data-v="">–</td>', _word(''))
             for name in report.missing]
    kinds = dict(run='text', setting='text', seed='ascending', state='text', epochs='descending', notes='text')
    return _table([*kinds.items()], rows)


def _facts_table(report: Report) -> str:
    rows = [_named_row(key, _word(value), f'<td>{count}</td>')
            for key, said in report.facts.items() for value, count in said]
    return _table([('what', 'text'), ('value', 'text'), ('runs', 'descending')], rows)


def _views(report: Report) -> str:
    "A picture of views for each setting that has one, made small"
    figures = []
    for setting in report.settings:
        picture = next(filter(None, (_small(run.path/VIEWS) for run in setting.counted)), None)
        if picture is None: continue
        figures.append(f'<figure><img alt="views of {_text(setting.name)}" src="data:image/jpeg;base64,{picture}">'
                       f'<figcaption>{_text(setting.name)}</figcaption></figure>')
    return f'<div class="views">{"".join(figures)}</div>' if figures else ''


def _small(file: Path) -> str | None:
    "A picture as JPEG in base 64; None where there is none that can be read"
    content = io.BytesIO()
    try:
        check_file(file)
        with Image.open(file) as picture:
            picture.thumbnail(LARGEST)
            picture.convert('RGB').save(content, 'JPEG', quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError): return None
    return base64.b64encode(content.getvalue()).decode()


def page(
    report: Report,
    figures: dict[str, Figure], # by their names in `FIGURES`
) -> str:
    "The whole report in one page: nothing is fetched, and names are shown as they are, whatever they hold"
    drawn = {name: f'<div class="scroll">{inline_svg(figure, _LABELS[name])}</div>' for name, figure in figures.items()}
    parts = [
        f'<h1>{_text(report.title)}</h1><p>{report.counts}. The control is <strong>{_text(report.base)}</strong>, '
        f'{_text(report.why)}.</p>',
        f'<ul>{"".join(f"<li>{_text(note)}</li>" for note in report.notes)}</ul>' if report.notes else '',
        f'<h2>Settings</h2>{_settings_table(report)}<p class="soft">{_how(report.knn)}</p>',
        _part('Features to compare with', _references_table(report), _REFERENCES),
        _part('Differences to the control', drawn.get('differences', ''), _BARS),
        _part('Accuracy on the way', drawn.get('curves', ''),
              _CURVES.format("the control's last" if report.knn is None else "what costs are told to")),
        _part('What settings differ in', _differing_table(report) if len(report.differing) else ''),
        _part('Views that training saw', _views(report)),
        _part('Runs', _runs_table(report)),
        _part('Versions and machines', _facts_table(report) if report.facts else ''),
        f'<p class="soft">fastcontrast {__version__}. The numbers of this page are in table.csv, those of each run in '
        'runs.csv.</p>']
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'{_MARK}<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f'<title>{_text(report.title)}</title><style>{_STYLE}</style></head><body><main>{"".join(parts)}</main>'
            f'<script>{_SCRIPT}</script></body></html>\n')


_LABELS = dict(curves="accuracy against epochs, seconds and TFLOP", differences="paired differences to the control")
_CELL = ("Mean ± standard deviation over seeds; {} the mean difference to the control's runs of the same seeds ± its "
         "standard error")
_HOW = (_CELL.format("below it") + ", coloured where zero lies outside of its 95% interval (Student's t; not corrected "
        "for the number of comparisons). Costs to {} are those of the first epoch that has {}, or more; seeds that "
        "never have it are missing from the mean, which says so.")
_PACKAGE = r"The rules need \usepackage{booktabs}."
_REFERENCES = ("What the same pictures say of features that were not trained here, over the control's seeds: an "
               "accuracy alone says little.")
_BARS = "Bars are mean differences to the runs of the same seeds, lines their standard errors."
_CURVES = "Means over seeds, with a band of a standard deviation to either side; dotted: {}."


def _how(
    knn: float | None, # accuracy that costs are told to; None: the control's last
) -> str:
    "What the table says"
    if knn is not None: return _HOW.format(f"{knn:.1%} kNN", "that accuracy")
    return _HOW.format("the control's kNN", "the last accuracy of the control's run of the same seed")


def _part(title: str, content: str, words: str = '') -> str:
    "A part of the page; nothing where it has no content"
    note = f'<p class="soft">{words}</p>' if words else ''
    return f'<h2>{title}</h2>{content}{note}' if content else ''


# --- the folder

def long_csv(
    report: Report,
) -> str:
    """A row for each setting and column: 'setting', 'measure', 'mean', 'std', 'n', 'difference', 'error', 'pairs', as
    `summary` says; and one for each combination that could not be, with the reason in 'refused'"""
    refused = pd.DataFrame(report.refused, columns=['setting', 'refused'], dtype=object)
    return pd.concat([report.table, refused]).to_csv(index=False)


def _check_own(folder: Path) -> None:
    "Raise `InputError` where a file of a report's name is there, and no report's: it would give way"
    try: ours = _MARK in (folder/PAGE).read_text(encoding='utf-8')
    except (OSError, ValueError): ours = False
    figures = [f'{name}{suffix}' for name in FIGURES for suffix in _SUFFIXES]
    there = [] if ours else [name for name in (PAGE, *TABLES, *figures) if (folder/name).exists()]
    if there:
        raise InputError(f"{folder} has a {there[0]} that is no earlier report's, and it would be replaced: give "
                         "another folder.")


def save_report(
    report: Report,
    out: str | Path, # a folder; files of an earlier report give way, anybody else's do not
) -> list[Path]: # the files
    "Write a page, tables and figures. Raises `InputError` where that can't be"
    folder = user_path(out, 'out')
    _check_own(folder)
    drawn = dict(curves=accuracy_curves(report), differences=difference_bars(report))
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    below = [_CELL.format("in parentheses") + "; [1 of 2]: one of two seeds has a number.",
             f"The control is {report.base}, {report.why}.",
             *(f"Refused: {name}: {reason}" for name, reason in report.refused), *report.notes]
    texts = {PAGE: page(report, figures), 'table.csv': long_csv(report),
             'runs.csv': report.values.to_csv(index=False),
             'table.md': '\n'.join([markdown(report.wide()), *(f'- {plain(line)}' for line in below), '']),
             'table.tex': latex(report.wide()) + ''.join(f'% {line}\n' for line in (*below, _PACKAGE))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items(): write_whole(folder/name, text)
        files = [folder/name for name in texts]
        for name, suffix in ((name, suffix) for name in FIGURES for suffix in _SUFFIXES):
            file = (folder/name).with_suffix(suffix)
            if name not in figures:
                file.unlink(missing_ok=True)
                continue
            save_figure(figures[name], file)
            files.append(file)
    except OSError as e: raise InputError(f"the report can't be written to {folder}: {e.strerror or e}.") from None
    return files
