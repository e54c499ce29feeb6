"""One picture of what measures say of encoders: accuracies, the labels that they take, and what is taken for what."""
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ..core import InputError, clipped
from ..figures import Figure, add_legend, save_figure
from .judge import Score

Results = Mapping[str, Mapping[str, Score]] # by encoder and measure

# nearly the same as others of the picture; the table has them
LEFT_OUT = ('kNN, k=20, τ=0.07', 'kNN, k=200, τ=0.07', 'recall at 5', 'recall at 10')
READABLE = 20 # classes at most of a matrix whose names can be read
PAIRS = 12    # of classes that are taken for one another


def _name(text: object, most: int = 24) -> str:
    "A name for the picture: short, and never taken for a formula"
    return clipped(str(text), most).replace('$', r'\$')


def _bars(axis: Axes, results: Results, measures: list[str], colours: dict[str, str]) -> None:
    "Accuracies of every encoder, measure by measure, with the standard error over the pictures"
    thick = 0.8 / len(results)
    for i, (encoder, scores) in enumerate(results.items()):
        for row, measure in enumerate(measures):
            if measure not in scores: continue
            score, place = scores[measure], row + (i - (len(results) - 1) / 2) * thick
            mean, error = 100 * score.mean, 100 * (score.error or 0)
            axis.barh(place, mean, thick, xerr=error or None, color=colours[encoder], alpha=.85,
                      error_kw=dict(elinewidth=1, capsize=0, ecolor='.25'))
            axis.text(min(mean + error, 100) + 1, place, f'{mean:.1f}', va='center', fontsize=7)
    axis.set_yticks(range(len(measures)), [_name(measure, 40) for measure in measures], fontsize=8)
    largest = max(scores[measure].mean for scores in results.values() for measure in measures if measure in scores)
    axis.set(xlim=(0, 100 * largest + 10), ylim=(len(measures) - 0.4, -0.6),
             xlabel='%, with the standard error over the pictures')
    axis.set_title('accuracy', fontsize=10)
    _bare(axis, 'x')


def _bare(axis: Axes, grid: str) -> None:
    axis.grid(axis=grid, alpha=.3)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)


def _label_curve(axis: Axes, results: Results, colours: dict[str, str]) -> None:
    "Accuracy of the linear classifier against the labels that it learned from, with the deviation over draws"
    every = set()
    for encoder, scores in results.items():
        points = sorted(((score.labels, score.mean, score.std or 0.) for score in scores.values()
                         if score.labels is not None), key=lambda point: point[0])
        if not points: continue
        labels, means, spreads = zip(*points)
        every.update(labels)
        low, high = ([100 * (m + sign * s) for m, s in zip(means, spreads)] for sign in (-1, 1))
        axis.plot(labels, [100 * mean for mean in means], color=colours[encoder], marker='o', markersize=4)
        axis.fill_between(labels, low, high, color=colours[encoder], alpha=.2, linewidth=0)
    axis.set_xscale('log')
    axis.minorticks_off()
    axis.set_xticks(*_ticks(sorted(every)))
    axis.set(xlabel='labels a class; the last are all', ylabel='%, and the deviation over draws')
    axis.set_title('linear classifier of few labels', fontsize=10)
    _bare(axis, 'both')


def _ticks(
    labels: list[float], # ascending, from above 0
) -> tuple[list[float], list[str]]:
    "Those that can be written beside one another on a logarithmic scale, from the last on"
    near, chosen = (labels[-1] / labels[0]) ** 0.08, []
    for x in reversed(labels):
        if not chosen or chosen[-1] / x > near: chosen.append(x)
    return chosen, [f'{x:,.0f}' if x >= 10 or x == round(x) else f'{x:.1f}' for x in chosen]


def _matrix(axis: Axes, confusion: pd.DataFrame) -> None:
    "The share of each class, a row, that is taken for every class"
    share = 100 * confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0).to_numpy()
    axis.imshow(share, cmap='Blues', vmin=0, vmax=100)
    names = [_name(name, 16) for name in confusion.index]
    size = 8 if len(names) <= 12 else 6.5
    axis.set_xticks(range(len(names)), names, rotation=45, ha='right', rotation_mode='anchor', fontsize=size)
    axis.set_yticks(range(len(names)), names, fontsize=size)
    for row, column in np.argwhere(share >= 0.5):
        value = share[row, column]
        axis.text(column, row, f'{value:.0f}', ha='center', va='center', fontsize=size - 1,
                  color='white' if value > 55 else '.15')
    axis.set(xlabel='taken for', ylabel='class')
    axis.set_title('% of a class, by what it is taken for', fontsize=10)


def largest_confusions(
    confusion: pd.DataFrame, # pictures of each class (rows) by what they were taken for (columns)
    most: int = PAIRS,       # pairs
) -> pd.DataFrame:           # columns class, taken_for, pictures, share (of the class's pictures)
    "The pairs of classes with the most pictures of one taken for the other, from the largest on"
    counts, size = confusion.to_numpy(), confusion.sum(axis=1).to_numpy()
    rows = [(-counts[i, j], i, j) for i, j in np.argwhere(counts) if i != j]
    names, chosen = list(confusion.index), sorted(rows)[:most]
    pairs = pd.DataFrame([(-n, -n / size[i]) for n, i, _ in chosen], columns=['pictures', 'share'])
    for place, column in enumerate(('class', 'taken_for')):  # as objects: a class may have a name that is no UTF-8
        pairs.insert(place, column, pd.Series([names[pair[1 + place]] for pair in chosen], dtype=object))
    return pairs


def _pairs(axis: Axes, confusion: pd.DataFrame, most: int) -> None:
    pairs = largest_confusions(confusion, most)
    axis.barh(range(len(pairs)), pairs['pictures'], color='tab:red', alpha=.7)
    for row, pair in enumerate(pairs.itertuples()):
        axis.text(pair.pictures, row, f' {pair.pictures:,} ({pair.share:.0%})', va='center', fontsize=7)
    names = [f'{_name(pair[1], 16)} → {_name(pair[2], 16)}' for pair in pairs.itertuples()]
    axis.set_yticks(range(len(pairs)), names, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=.18)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel='pictures, and their share of the class')
    axis.set_title('largest confusions' if len(pairs) else 'nothing is taken for anything else', fontsize=10)
    _bare(axis, 'x')


def _legend(figure: Figure, axis: Axes, colours: dict[str, str]) -> None:
    handles = [axis.barh(0, 0, color=colour, alpha=.85) for colour in colours.values()]
    add_legend(figure, handles, [clipped(name, 40) for name in colours], loc='outside upper center',
               ncols=min(4, len(handles)), fontsize=9)


def _confused(results: Results) -> tuple[str, pd.DataFrame] | None:
    "The confusion matrix of the first encoder that has one, and whose it is"
    return next(((encoder, score.confusion) for encoder, scores in results.items() for score in scores.values()
                 if score.confusion is not None), None)


def plot_scores(
    results: Results,               # what `judge_features` says, by encoder; the first is the one that is looked into
    path: str | Path | None = None, # where to save the figure; the suffix (.png, .svg, .pdf) says how
) -> Figure:
    """Accuracies of every encoder with their errors; accuracy against labels, with the deviation over draws; and of the
    first encoder what each class is taken for, and the largest confusions: of more than 20 classes these alone

    Raises `InputError` where there is nothing to draw, and for a file that cannot be written."""
    measures = list(dict.fromkeys(
        measure for scores in results.values() for measure, score in scores.items()
        if score.share and measure not in LEFT_OUT and (score.labels is None or score.confusion is not None)))
    if not measures:
        raise InputError("there is no accuracy to draw: give what judge_features says, by the name of its encoder.")
    colours = {encoder: f'C{i % 10}' for i, encoder in enumerate(results)}
    learns = any(score.labels is not None for scores in results.values() for score in scores.values())
    confused = _confused(results)
    top = max(3.2, 0.9 + len(measures) * (0.14 + 0.16 * len(results)))
    below = 4.6 if confused else 0
    figure = Figure(figsize=(11, 0.4 + top + below), layout='constrained')
    rows = figure.subfigures(2, 1, height_ratios=[top, below]) if confused else [figure.subfigures(1, 1)]
    bars, *curve = rows[0].subplots(1, 1 + learns, squeeze=False)[0]
    _bars(bars, results, measures, colours)
    if learns: _label_curve(curve[0], results, colours)
    if confused: _confusions(rows[1], *confused)
    _legend(figure, bars, colours)
    save_figure(figure, path)
    return figure


def _confusions(figure, encoder: str, confusion: pd.DataFrame) -> None:
    "The lower half"
    figure.suptitle(f'{_name(encoder, 40)}: linear classifier of all labels', fontsize=10)
    if len(confusion) > READABLE: return _pairs(figure.subplots(), confusion, 20)
    matrix, pairs = figure.subplots(1, 2)
    _matrix(matrix, confusion)
    _pairs(pairs, confusion, PAIRS)
