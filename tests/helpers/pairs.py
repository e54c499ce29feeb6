"""Two axes of a test that do not depend on each other: not all of their pairs are worth the time of every change."""
import pytest


def paired(first, second, each=1, always=()):
    """All pairs, to parametrise with, of which most are slow

    Every value of the longer axis is left with `each` values of the other, by turns, and those of `always` with all."""
    first, second = [*first], [*second]
    n = min(len(first), len(second))
    def kept(i, j):
        long, short = (i, j) if len(first) > len(second) else (j, i)
        return (short - long - long // n) % n < each or first[i] in always or second[j] in always
    return [pytest.param(a, b, marks=[] if kept(i, j) else pytest.mark.slow)
            for i, a in enumerate(first) for j, b in enumerate(second)]
