"""The application that the verbs join, and their help."""
import inspect
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from .output import console
from .registries import with_names


class Verb(TyperCommand):
    "A command whose help has the registered names in place of {methods}, {losses}… (see `registries.LISTS`)"
    def __init__(self, *args,
        place: int, # among the verbs of the help
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.place = place

    def parse_args(self, ctx, args): return super().parse_args(ctx, _with_lists(args))

    # here and not before: the registries import torch, for which no other call should wait
    def format_help(self, ctx, formatter):
        for param in self.params: param.help = with_names(param.help or '')
        super().format_help(ctx, formatter)


def _with_lists(args: list[str]) -> list[str]:
    "`--seeds 0 1 2` as the one value that options have"
    joined: list[str] = []
    for word in args:
        last = joined[-2:]
        if word.isdecimal() and len(last) == 2 and last[0] == '--seeds': joined[-1] += f' {word}'
        else: joined.append(word)
    return joined


class Verbs(TyperGroup):
    "The commands in the order of their use, whatever their files are called"
    def list_commands(self, ctx): return sorted(self.commands, key=lambda name: self.commands[name].place)


app = typer.Typer(
    cls=Verbs, add_completion=False, rich_markup_mode='rich',
    help="Train image encoders by contrastive self-supervised learning, fast.",
    epilog="Example: [bold]fastcontrast pretrain digits[/] (about a minute on two cores)")


def verb(
    place: int,              # among the verbs of the help: they rise from training to comparing
    example: str,            # a command line
    name: str | None = None, # of the command; None: the function's
) -> Callable[[Callable], Callable]:
    "A decorator that makes a function a command; its docstring is the help, its annotations are the options"
    def add(function):
        paragraphs = inspect.getdoc(function).split('\n\n')
        # the terminal breaks the lines, but of what begins with \b
        text = '\n\n'.join(p if p.startswith('\b') else ' '.join(p.split()) for p in paragraphs)
        epilog = f"Example: [bold]{example}[/]"
        return app.command(name, cls=partial(Verb, place=place), help=text, epilog=epilog)(function)
    return add


def _show_version(asked: bool) -> None:
    if not asked: return
    console.print(f"fastcontrast {__version__}")
    raise typer.Exit()


@app.callback()
def program(
    version: Annotated[bool, typer.Option(
        '--version', help="Show the version and exit.", callback=_show_version, is_eager=True)] = False,
): pass
