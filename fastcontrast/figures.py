"""Figures that a notebook shows as they are, and their files."""
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import figure

from .core import InputError, clipped
from .files import user_path, whole_file

__all__ = ['Figure', 'add_legend', 'png_of', 'save_figure']


def png_of(
    drawn: figure.Figure,
) -> bytes: # of the file
    "A figure as a picture"
    file = io.BytesIO()
    drawn.savefig(file, format='png')
    return file.getvalue()


class Figure(figure.Figure):
    "matplotlib's, which Jupyter shows as a picture even where nobody asked for `%matplotlib inline` or drew by pyplot"
    def _repr_png_(self) -> bytes: return png_of(self)


def add_legend(drawn: figure.Figure, handles: Sequence[Any], names: Iterable[str], **settings: Any) -> None:
    "A legend with names of any characters: they may look like a formula, or begin with _, which a label may not"
    legend = drawn.legend(handles, range(len(handles)), frameon=False, **settings)
    for text, name in zip(legend.get_texts(), names):
        text.set_parse_math(False)
        text.set_text(name)


def save_figure(
    drawn: figure.Figure,
    path: str | Path | None, # where to; the suffix (.png, .svg, .pdf) says how; None: nowhere
) -> None:
    "Write a figure to a file, whole or not at all; makes its folder. Raises `InputError` where that can't be"
    if path is None: return
    path = user_path(path, 'path')
    try:
        with whole_file(path) as partial: drawn.savefig(partial, dpi=150)
    except (OSError, ValueError) as e:
        raise InputError(f"the figure cannot be saved to '{path}' ({clipped(e)}): give a file in a folder that you may "
                         "write to, ending in .png.") from e
