"""Figures that a notebook shows as they are."""
import io

from matplotlib import figure

__all__ = ['Figure', 'png_of']


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
