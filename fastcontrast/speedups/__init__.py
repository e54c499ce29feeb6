"The speedups, a file each: what registers itself here is known to the command line, `fastcontrast.all` and the tests."
from ..core import Registry, import_all

SPEEDUPS = Registry('speedup')


def load() -> Registry:
    "All speedups, those in files of somebody's own in this folder too"
    import_all(__name__)
    return SPEEDUPS
