"""Tables as text for papers and pages; what stands in them may be called anything."""
import re

import pandas as pd

from ..core import shown

_TEX = str.maketrans({c: f'\\{c}' for c in '%&_#${}'} | {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}',
    '>': r'\textgreater{}', '|': r'\textbar{}', '±': r'$\pm$', '−': r'$-$', '–': '--', 'τ': r'$\tau$',
    'σ': r'$\sigma$'})


def markdown(
    table: pd.DataFrame, # cells are shown as their text
) -> str:
    "A table in Markdown"
    head, *body = _rows(table)
    rows = [head, ['---'] * len(head), *body]
    return '\n'.join(f"| {' | '.join(plain(cell) for cell in row)} |" for row in rows) + '\n'


def _rows(table: pd.DataFrame) -> list[list]:
    "The head, and a row for each of the index: a column may be called as the index is"
    return [[table.index.name, *table.columns], *([name, *row] for name, row in zip(table.index, table.to_numpy()))]


def plain(
    cell: object,
) -> str:
    "Its text, in which Markdown finds neither the end of a cell nor a page's markup"
    return shown(cell).replace('|', '/').replace('<', '&lt;')


def latex(
    table: pd.DataFrame, # alike
) -> str:
    "A table in LaTeX, with booktabs' rules, and minus signs before numbers"
    head, *body = (' & '.join(_tex(cell) for cell in row) + r' \\' for row in _rows(table))
    columns = 'l' + 'r' * len(table.columns)
    lines = [rf'\begin{{tabular}}{{{columns}}}', r'\toprule', head, r'\midrule', *body, r'\bottomrule',
             r'\end{tabular}']
    return '\n'.join(lines) + '\n'


def _tex(cell: object) -> str:
    return re.sub(r'(?<![\w.-])-(?=\d)', '$-$', shown(cell).translate(_TEX))  # a hyphen else
