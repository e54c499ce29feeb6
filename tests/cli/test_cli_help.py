"The program itself: its help says what is registered, and its verbs are files"
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from helpers.cli import ENV, PROGRAM

from fastcontrast import __version__
from fastcontrast.cli import app
from fastcontrast.cli.settings import parse_loss, parse_method, parse_speedups
from fastcontrast.export import LIBRARIES
from fastcontrast.losses import LOSSES
from fastcontrast.precision import PRECISIONS
from fastcontrast.recipes import METHODS, simclr
from fastcontrast.speedups import SPEEDUPS
from fastcontrast.views import VIEW_KINDS


@pytest.fixture
def shown(run):
    "The help of a command as one line"
    def shown(*args):
        code, out, _ = run(*args, '--help')
        assert code == 0
        return ' '.join(re.sub('[│╭╮╰╯─]', ' ', out).split())
    return shown


def commands(): return typer.main.get_command(app).commands


def test_help(run, shown):
    "An example each, and every name that an option can have"
    assert run()[0] == 0 and run()[1] == run('--help')[1]
    assert [*commands()] and {'pretrain', 'eval', 'views', 'export', 'compare'} <= {*commands()}
    for args in ((), *((name,) for name in commands())): assert 'Example: fastcontrast' in shown(*args)
    pretrain, views, export = shown('pretrain'), shown('views'), shown('export')
    for name in (*METHODS, *LOSSES, *SPEEDUPS, *PRECISIONS, *simclr().settings): assert name in pretrain, name
    assert 'like --seeds 0 1 2; the data stand before it' in pretrain
    assert '100; for digits' in pretrain and 'shards/{000..146}.tar' in pretrain
    for name in (*METHODS, *VIEW_KINDS): assert name in views, name
    for name in LIBRARIES: assert name in export, name


def test_verbs_come_in_the_order_of_their_use(run):
    listed = re.findall(r'^│ (\w+)  ', run('--help')[1].split('Commands')[1], re.M)
    order = ['pretrain', 'eval', 'views', 'export', 'compare']
    assert [name for name in listed if name in order] == order and set(listed) == {*commands()}


def test_help_says_what_is_registered(shown, monkeypatch):
    "Also what somebody registered a moment ago"
    class MyTerm(SPEEDUPS['suncet']): pass
    for registry, name, value in ((METHODS, 'my_method', simclr), (LOSSES, 'my_loss', LOSSES['dcl']),
                                  (SPEEDUPS, 'my_patches', SPEEDUPS['comb_patches']), (SPEEDUPS, 'my_term', MyTerm),
                                  (VIEW_KINDS, 'my_kind', VIEW_KINDS['byol'])):
        monkeypatch.setitem(registry, name, value)
    pretrain, views = shown('pretrain'), shown('views')
    assert 'my_method' in pretrain and 'my_loss' in pretrain and 'my_method' in views and 'my_kind' in views
    assert pretrain.count('my_term') == 2 and pretrain.count('my_patches') == 1  # the former uses labels


def test_no_help_names_a_method_by_hand():
    "But in examples, which work"
    examples = []
    for command in commands().values():
        for text in (command.help, command.epilog, *(param.help or '' for param in command.params)):
            examples += re.findall(r'\[bold\](.*?)\[/\]', text)
            for name in (*METHODS, *LOSSES, *SPEEDUPS):
                assert not re.search(rf'\b{name}\b', re.sub(r'\[bold\].*?\[/\]', '', text)), (name, text)
    options = [pair for text in examples for pair in zip(shlex.split(text), shlex.split(text)[1:])]
    def given(option): return {value for name, value in options if name == option}
    assert given('--with') and all(parse_speedups(value) for value in given('--with'))
    assert given('--loss') and all(map(parse_loss, given('--loss')))
    assert given('--method') and all(map(parse_method, given('--method')))


def test_a_new_verb_is_a_file(folder):
    (folder/'hello.py').write_text('''
from typing import Annotated
from typer import Option
from fastcontrast.cli.verbs import verb
from fastcontrast.cli.output import console

@verb(20, "fastcontrast hello --loss dcl")
def hello(loss: Annotated[str, Option(help="One of {losses}")] = 'dcl'):
    """Say
    hello."""
    console.print(f"hello {loss}")
''')
    code = f'''
import sys
import fastcontrast.cli as cli
from fastcontrast.core import import_all
cli.__path__.append({str(folder)!r})
import_all('fastcontrast.cli')
sys.argv = ['fastcontrast', *sys.argv[1:]]
cli.main()
'''
    def out(*args):
        got = subprocess.run([sys.executable, '-c', code, *args], capture_output=True, text=True, env=ENV, timeout=60)
        assert got.returncode == 0, got.stderr
        return got.stdout
    assert out('hello', '--loss', 'x') == 'hello x\n'
    assert re.search(r'pretrain  .*│ hello     Say hello\. .*│ eval ', out('--help'), re.S)
    text = out('hello', '--help')
    assert 'neg_cosine' in text and 'Example: fastcontrast hello --loss dcl' in text


def test_help_and_version_import_nothing_heavy():
    code = '''
import sys
sys.argv = ['x', {!r}]
from fastcontrast.cli import main
try: main()
finally: print([name for name in ('torch', 'timm', 'fastai', 'matplotlib', 'sklearn') if name in sys.modules])
'''
    for arg in ('--help', '--version'):
        command = [sys.executable, '-c', code.format(arg)]
        got = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=60)
        assert got.returncode == 0 and got.stdout.splitlines()[-1] == '[]', got
    assert f'fastcontrast {__version__}' in got.stdout


def test_mistakes_on_the_command_line(refused):
    assert 'Missing argument' in refused('eval') and 'See fastcontrast eval --help.' in refused('eval')
    assert "Did you mean 'pretrain'? See fastcontrast --help." in refused('pretrian')


def test_the_program_is_installed_and_a_module():
    for program in (PROGRAM, [Path(sys.executable).with_name('fastcontrast')]):
        got = subprocess.run([*program, '--version'], capture_output=True, text=True, env=ENV, timeout=60)
        assert (got.returncode, got.stdout, got.stderr) == (0, f'fastcontrast {__version__}\n', '')
