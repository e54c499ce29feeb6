"""Measurements of this library: `python benchmarks/run.py --help` lists them by group.

Each compares two things that take turns on one machine, and prints a ratio. Results go to benchmarks/results/ with
the machine, versions and commit; what they say, and how each figure is made again, stands in benchmarks/README.md.
"""
import importlib
import signal
import sys
import warnings

import typer

GROUPS = ("speed", "speedups", "accuracy", "memory", "data", "devices", "checkpoints", "race", "headlines", "transfer")
HELP = """Measurements of this library, in groups.

    \b
    python benchmarks/run.py speed                          all of a group
    python benchmarks/run.py speed step-time --help         the question that one answers, and its settings
    python benchmarks/run.py speed step-time --methods simclr,moco_v3 --bs 128
    python benchmarks/run.py speed --quick                  a trial of the programs, which measures nothing
    python benchmarks/run.py race --data=FOLDER,FOLDER      ours and other libraries, to an accuracy

Results go to benchmarks/results, or --out. benchmarks/README.md has the figures, each with its command.
"""


def make_app() -> typer.Typer:
    """The program, with a sub-command for each group"""
    app = typer.Typer(help=HELP, rich_markup_mode=None, add_completion=False, no_args_is_help=True,
                      context_settings=dict(help_option_names=["-h", "--help"]))
    warnings.simplefilter("ignore", FutureWarning)  # other packages' own affairs
    for name in GROUPS: importlib.import_module(name).group.add_to(app)
    return app


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what a measurement has started ends too
    make_app()()
