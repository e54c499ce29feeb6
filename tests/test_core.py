"""The checks of arguments, registries, and names that have moved."""
import importlib
import math
import os
import pickle

import numpy as np
import pytest
from helpers.refusals import refusal
from helpers.timers import await_timers, timers

from fastcontrast.core import (InputError, MissingPath, Registry, clipped, moved, number, one_of, suggest, usable_cores,
                               waiting, whole)


def test_cores_are_those_that_may_be_used(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {2, 3, 7}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, 'sched_getaffinity')  # as on macOS
    assert usable_cores() == 64


class Owner:
    "Something that has arguments"


def test_a_sentence_shows_names_and_obeys_none():
    "Python prints an error's text as it is"
    assert str(InputError("no folder '\x1b[2Ja\nb\udcff'")) == "no folder '\\x1b[2Ja\\nb\\xff'."


@pytest.mark.parametrize('value', [0, -1, 1.0, '1', None, True, math.nan, 4])
def test_what_is_no_whole_number_from_1_to_3(value):
    text = refusal(whole, Owner(), least=1, most=3, n=value)
    assert text == f"n={value!r} of Owner must be a whole number from 1 to 3."


@pytest.mark.parametrize('value', [1, 3, np.int64(2)])
def test_whole_numbers(value): whole(least=1, most=3, n=value)


@pytest.mark.parametrize('value', [0, -0.5, 1, 1.5, math.nan, math.inf, '0.5', None, True])
def test_what_is_no_number_between_0_and_1(value):
    text = refusal(number, 'it', above=0, below=1, x=value)
    assert text.startswith(f"x={value!r} of it must be a finite number above 0") and 'below 1' in text


def test_bounds_are_in_or_out():
    number(least=0, most=1, x=0, y=1, z=np.float32(0.5))
    number(optional=True, above=0, x=None)
    refusal(number, above=0, x=0)
    refusal(number, below=1, x=1)
    assert refusal(whole, optional=True, n=0).endswith("or None.")


def test_one_of_suggests():
    one_of(('mean', 'max'), merge='max')
    text = refusal(one_of, ('mean', 'max'), Owner(), merge='maxx')
    assert text.startswith("unknown merge of Owner 'maxx': did you mean max")
    refusal(one_of, ('mean', 'max'), merge=1)


def test_names_are_suggested_however_they_are_spelt():
    assert suggest('SimCLR', ('simclr', 'byol'), 'method') == "unknown method 'SimCLR': did you mean simclr?"
    assert suggest('hardregions', ('HardRegions', 'Queue'), 'callback').endswith('did you mean HardRegions?')


def test_a_registry_takes_a_name_once():
    registry = Registry('thing')
    @registry.register('first')
    def make(): return 1
    assert registry.find('first') is make and registry.register('first')(make) is make
    def other(): return 2
    other.__module__ = 'elsewhere'
    assert "there is a thing 'first' already" in refusal(registry.register('first'), other)
    assert refusal(registry.find, 'frist') == "unknown thing 'frist': did you mean first?"
    assert list(registry) == ['first']


@pytest.mark.parametrize('kind', [InputError, MissingPath])
def test_sentences_show_names_and_obey_none(kind):
    "Whoever prints them, and also when they have come from another process"
    error = kind("no picture in 'a\x1b[2J\n\udcff'")
    for same in (error, pickle.loads(pickle.dumps(error))):
        assert str(same) == same.message == same.args[0] == "no picture in 'a\\x1b[2J\\n\\xff'."
    assert clipped('\x1b\n' * 200, 9) == '\\x1b\\n\\x…' and clipped(ValueError('a\n  b')) == 'a b'


@pytest.mark.parametrize('old, name, new', [
    ('step', 'MultiCrop', 'multi_crop'), ('step', 'PairLoss', 'pairs'), ('step', 'FiniteLoss', 'guards'),
    ('step', 'Together', 'together'), ('device', 'has_bf16', 'precision')])
def test_names_that_moved_are_found_where_they_were(old, name, new):
    before, now = (importlib.import_module(f'fastcontrast.{module}') for module in (old, new))
    assert getattr(before, name) is getattr(now, name) and name not in vars(before)


def test_other_names_are_missing_as_ever():
    get = moved('step', PairLoss='pairs')
    with pytest.raises(AttributeError, match="module 'fastcontrast.step' has no attribute 'Nothing'"): get('Nothing')
    with pytest.raises(ImportError): exec('from fastcontrast.step import Nothing')
    assert issubclass(InputError, ValueError)


def test_who_waits_is_told(capsys):
    with waiting('for a\nbus', 30): pass
    assert capsys.readouterr().err == ''
    with waiting('for a\nbus', 0.01): await_timers()
    assert capsys.readouterr().err == 'for a\\nbus\n'
    with waiting('for a bus', 0.01), waiting('for its wheels', 0.01): await_timers()
    assert capsys.readouterr().err == 'for a bus\n'
    with pytest.raises(KeyError), waiting('for nothing', 30): raise KeyError
    with waiting('for another', 0.01): await_timers()
    assert capsys.readouterr().err == 'for another\n'
    assert all(timer.finished.is_set() for timer in timers())
