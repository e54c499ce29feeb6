"""The walks of CONTRIBUTING.md, as they are written there, run in a copy of the library on the digits."""
import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WALKS = ['Add a method', 'Add a speedup', 'Add an evaluation', 'Use your own augmentation']


def section(title: str) -> str:
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    return text.split(f'\n## {title}\n')[1].split('\n## ')[0]


def blocks(title: str) -> list[tuple[str, str]]:
    "The fenced blocks of a walk: language and source"
    return re.findall(r'```(\w+)\n(.*?)```', section(title), re.DOTALL)


def imported(path: Path) -> set[str]:
    "The rooms that a file of another room imports from"
    package = path.relative_to(ROOT / 'fastcontrast').parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.level != len(package) + 1: continue
        found |= {node.module.split('.')[0]} if node.module else {alias.name for alias in node.names}
    return found - {'__version__'}


def test_every_room_stands_below_those_that_it_imports_from():
    rows = [line.split('|')[1] for line in section('Where things are').splitlines() if line.startswith('| `')]
    place = {room: i for i, row in enumerate(rows) for room in re.findall(r'`(\w+)/?`', row)}
    files = {path: path.relative_to(ROOT / 'fastcontrast').parts[0].removesuffix('.py')
             for path in (ROOT / 'fastcontrast').rglob('*.py')}
    files = {path: room for path, room in files.items() if room not in ('__init__', '__main__', '_modidx', 'all')}
    assert set(files.values()) == set(place)
    upwards = {f'{room}: {other}' for path, room in files.items() for other in imported(path)
               if place[other] > place[room]}
    assert not upwards


@pytest.fixture
def clone(tmp_path):
    "The library without the notebooks, where files can be added, and what runs a program in it"
    # with what is compiled: the files keep their times
    shutil.copytree(ROOT / 'fastcontrast', tmp_path / 'fastcontrast')
    environment = {**os.environ, 'PYTHONPATH': str(tmp_path), 'MPLBACKEND': 'Agg'}
    def run(*args: str) -> str:
        command = [sys.executable, '-W', 'ignore', *args]
        got = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert got.returncode == 0, got.stdout[-3000:] + got.stderr[-3000:]
        return got.stdout
    return tmp_path, run


def walk(title: str, clone) -> str:
    "Do what a walk says, and give what its programs print"
    folder, run = clone
    printed = ''
    for language, source in blocks(title):
        path = re.match(r'# (fastcontrast/\S+\.py)\n', source)
        if path: (folder / path[1]).write_text(source.split('\n', 1)[1])
        elif language == 'python': printed += run('-c', source)
        for line in source.splitlines() if language == 'sh' else ():
            if not line.startswith('fastcontrast '): continue  # pytest runs here
            words = re.findall(r'"[^"]*"|\S+', line)[1:]
            printed += run('-m', 'fastcontrast', *(word.strip('"') for word in words))
    return printed


@pytest.mark.parametrize('title', WALKS)
def test_a_walk_adds_one_file_at_most(title):
    assert sum(source.startswith('# fastcontrast/') for _, source in blocks(title)) == (title != WALKS[-1])


@pytest.mark.slow
def test_add_a_method(clone):
    folder, run = clone
    printed = walk('Add a method', clone)
    assert 'tico (digits): adamw' in printed and (folder / 'runs/tico/encoder.safetensors').exists()
    assert 'tico' in run('-m', 'fastcontrast', 'pretrain', '--help')
    known = run('-c', '''
import torch
from fastcontrast.all import *
from lightly.loss import TiCoLoss as Peer
recipe = tico(setting="cifar")
print(recipe.paper, TiCoLoss().rho)
print(recipe_table().loc["tico", "loss"], recipe.resolve("cifar").views)

# the same as lightly's, which adds a constant, from step to step
ours, peer = TiCoLoss(), Peer()
for step in range(3):
    q, k = torch.randn(2, 16, 8, dtype=torch.float64)
    pairs = [x.clone().requires_grad_() for x in (q, q)]
    mine, theirs = ours(pairs[0], k), peer(pairs[1], k) - 1
    torch.testing.assert_close(mine, theirs)
    mine.backward(); theirs.backward()
    torch.testing.assert_close(pairs[0].grad, pairs[1].grad)
    ours.update(q[None], k[None])

# its state moves once a step, also where another level and several views are scored
dls = image_dls('digits', bs=256)
learn = contrastive_learner(dls, 'resnet10t', 'tico', cbs=[IntermediateLoss(2)], knn_pictures=0)
seen = {level: [] for level in learn.loss_func.losses}
for level, loss in learn.loss_func.losses.items():
    def note(q, k, update=loss.update, level=level): update(q, k); seen[level].append(loss.covariance)
    loss.update = note
learn.fit_contrastive(1)
assert [len(s) for s in seen.values()] == [len(dls.train)] * 2, seen
final, middle = (loss.covariance for loss in learn.loss_func.losses.values())
assert final is not middle and final.shape == middle.shape
assert 'memory.losses.final.covariance' in learn.model.state_dict()
''')
    assert known.startswith('Zhu et al. 2022, arXiv:2206.10698 8.0\nTiCoLoss(beta=0.9, rho=8.0) byol_cifar\n')


@pytest.mark.slow
def test_add_a_speedup(clone):
    folder, run = clone
    assert 'simclr' in walk('Add a speedup', clone) and (folder / 'runs/strips/encoder.safetensors').exists()
    assert 'strips' in run('-m', 'fastcontrast', 'pretrain', '--help')
    run('-c', '''
from fastcontrast.all import *
dls = image_dls('digits', bs=256)
learn = contrastive_learner(dls, 'resnet10t', moco_v3(), cbs=Strips())
before = set(learn.model.state_dict())
learn.remove_cb(learn.strips)
assert before - set(learn.model.state_dict()) == {'memory.strip_draws._extra_state'}
try: Strips(keep=0)
except InputError as e: assert 'keep=0 of Strips must be a finite number above 0' in str(e), e
else: raise AssertionError
''')


def test_add_an_evaluation(clone):
    printed = walk('Add an evaluation', clone)
    columns = next(line.split() for line in printed.splitlines() if 'train_loss' in line)
    values = dict(zip(columns, printed.splitlines()[-1].split()))
    assert {'knn', 'participation', 'rankme'} < set(columns)
    assert 1 <= float(values['participation']) <= 512


@pytest.mark.slow
def test_use_your_own_augmentation(clone):
    printed = walk('Use your own augmentation', clone)
    assert 'moco_v3 (digits)' in printed and 'suncet' in printed
