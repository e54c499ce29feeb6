"""A program in the place of `fastcontrast pretrain`, which leaves at once what a run leaves: for what starts runs

Its accuracy comes of its settings. The loss barlow_twins is refused, the new run that DIES names is killed, that which
FULL names has no room, and epochs wait while there is a file HOLD."""
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import typer

from fastcontrast.cli import app
from fastcontrast.cli.folder import claimed
from fastcontrast.records import HISTORY, history_rows
from fastcontrast.cli.output import save_json
from fastcontrast.cli.problems import exit_code
from fastcontrast.cli.resume import begun_with, check_changes, run_to_resume
from fastcontrast.cli.settings import SETTINGS, resolve
from fastcontrast.core import InputError, NoSpace
from fastcontrast.signals import watched

PRETEND = (sys.executable, __file__)


def pretend(params):
    path = run_to_resume(None, params['out'])
    begun = begun_with(path) if path else {}
    config = resolve({key: params[key] for key in SETTINGS}, begun=begun)
    if path: check_changes(path, begun, config)
    if config.loss == 'barlow_twins': raise InputError("barlow_twins does not go with that.")
    if Path(params['out']).name == os.environ.get('FULL'): raise NoSpace("there is no room for that.")
    with watched() as signals, claimed(params['out'], 'run', path is not None) as folder:
        folder.worth_keeping = True
        folder.running(asdict(config), 'pretrain')
        epochs = [row['knn'] for row in history_rows(folder.path)]
        dies = path is None and folder.path.name == os.environ.get('DIES')
        while len(epochs) < config.epochs:
            if epochs and dies: os.kill(os.getpid(), signal.SIGKILL)
            with signals.held():
                time.sleep(float(os.environ.get('EPOCH', 0)))
                while os.path.exists(os.environ.get('HOLD', '')): time.sleep(0.05)
                epochs.append(str((config.seed + len(config.loss or '') + len(epochs))/100))
                (folder/HISTORY).write_text('\n'.join(['knn', *epochs]) + '\n')
        save_json(folder/'environment.json', dict(os.environ))
        results = {'trained encoder': dict(knn=float(epochs[-1]))}
        folder.save('pid', 'host', state='finished', seconds=1., results=results)


if __name__ == '__main__':
    context = typer.main.get_command(app).commands['pretrain'].make_context('pretrain', sys.argv[2:])
    try: pretend(context.params)
    except InputError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(exit_code(e))
    except KeyboardInterrupt as e: sys.exit(e.code)
