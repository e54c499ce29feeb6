"""The `fastcontrast` command: train an encoder, fine-tune it, judge it, draw its views, hand it on, compare runs.

A file a verb: a new one beside these, with the decorator `verbs.verb`, is a new command.
What needs torch, timm or fastai imports it inside its functions, so that `fastcontrast --help` answers at once.

Docs: https://fastcontrast.github.io/fastcontrast/cli.html.md"""
import atexit
import gc
import os
import sys
import traceback
import warnings

import typer

from ..core import InputError, import_all
from ..files import FULL
from ..signals import Interrupted
from .launch import rank
from .output import Ended, console, errors, fail, launched, make_lenient
from .problems import exit_code, sentence, wants_memory
from .settings import parse_speedups
from .verbs import app

__all__ = ['app', 'main', 'parse_speedups']

import_all(__name__)  # the verbs join the application

_UsageError = typer.BadParameter.__base__  # click's; newer releases of typer have one of their own


def main() -> None:
    "The `fastcontrast` program: a user's mistake is one sentence and exit code 2, a full disk one and 1, Ctrl-C 130"
    make_lenient()
    if rank():
        console.quiet = errors.quiet = True  # of several processes, the first tells what happens
    if not sys.warnoptions: warnings.simplefilter('ignore')  # libraries' words to each other, not to our user
    atexit.register(gc.freeze)  # else Python looks through all that torch has made once more before it ends: a second
    command = typer.main.get_command(app)
    try:
        with command.make_context('fastcontrast', sys.argv[1:] or ['--help']) as context: command.invoke(context)
    except typer.Exit as e: sys.exit(e.exit_code)
    except Ended as e: fail(_apart(str(e), e.code), e.code)
    except InputError as e: fail(f"error: {e}", exit_code(e))
    except _UsageError as e:
        path = e.ctx.command_path if e.ctx else 'fastcontrast'
        message = e.format_message().rstrip('.')
        fail(f"error: {message}{'' if message.endswith('?') else '.'} See {path} --help.", 2)
    except KeyboardInterrupt as e:
        code = e.code if isinstance(e, Interrupted) else 130
        fail(_apart("interrupted", code), code)
    except BrokenPipeError:  # nobody reads on, as with `| head`; nor may Python's last flush fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as e:
        if wants_memory(e) or isinstance(e, OSError) and (e.errno in FULL or e.filename):  # or a file that is gone
            fail(f"error: {sentence(e, 'its device', next(iter(sys.argv[1:]), ''))}.", 1)
        if launched(): fail(traceback.format_exc(), 1)
        raise


def _apart(sentence: str, code: int) -> str:
    "A sentence that does not stand behind the terminal's ^C"
    return '\n' + sentence if code == 130 and errors.is_terminal and not launched() else sentence
