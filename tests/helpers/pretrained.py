"""`fastcontrast pretrain`, which leaves at once what a run leaves: for what starts runs

Its accuracy comes of its settings. The loss barlow_twins is refused, the new run that DIES names is killed, that which
FULL names has no room, and epochs take EPOCH seconds, of one run alone if SLOW names it, and wait while there is a file
HOLD."""
import os
import signal
import time
from dataclasses import asdict

import fastcontrast.cli.pretrain as cli
from fastcontrast.cli.output import save_json
from fastcontrast.core import InputError, NoSpace
from fastcontrast.records import HISTORY, history_rows
from helpers.forks import Program


class Pretended(Program):
    "What `subprocess.Popen` makes of a sweep's run"
    def __init__(self, command, env, stderr, **others):
        with open(os.devnull, 'w') as nowhere:
            super().__init__(command[command.index('pretrain'):], '.', env, pretended, (nowhere, stderr))


def pretended(): cli.train, cli.rank = train, lambda: 0  # which launches no others


def train(config, folder, signals, kept):
    name = folder.path.name
    if config.loss == 'barlow_twins': raise InputError("barlow_twins does not go with that.")
    if name == os.environ.get('FULL'): raise NoSpace("there is no room for that.")
    folder.worth_keeping = True
    folder.running(asdict(config), 'pretrain')
    epochs = [row['knn'] for row in history_rows(folder.path)]
    dies = name == os.environ.get('DIES') and not folder.resumed
    seconds = float(os.environ.get('EPOCH', 0)) if name == os.environ.get('SLOW', name) else 0
    while len(epochs) < config.epochs:
        if epochs and dies: os.kill(os.getpid(), signal.SIGKILL)
        with signals.held():
            time.sleep(seconds)
            while os.path.exists(os.environ.get('HOLD', '')): time.sleep(0.05)
            epochs.append(str((config.seed + len(config.loss or '') + len(epochs))/100))
            (folder/HISTORY).write_text('\n'.join(['knn', *epochs]) + '\n')
    save_json(folder/'environment.json', dict(os.environ))
    results = {'trained encoder': dict(knn=float(epochs[-1]))}
    folder.save('pid', 'host', state='finished', seconds=1., results=results)
