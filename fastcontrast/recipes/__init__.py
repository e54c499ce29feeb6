"""The methods of the literature as data. A file in this folder whose functions are decorated by `method` adds some.

Docs: https://fastcontrast.github.io/fastcontrast/methods.html.md"""
from . import methods as methods, fast as fast # they lead every list
from .. import speedups
from ..core import import_all
from ..losses import LOSSES
from ..speedups import SPEEDUPS
from .recipe import (METHODS, RECIPES, SETTINGS, Recipe, check_parts, encoder_kind, make_part, method,
                     pick_setting, recipe_table, refused_pairs, shared_values)

speedups.load()
import_all(__name__)
globals().update(METHODS) # last, since a method may have the name of its module

__all__ = ['LOSSES', 'METHODS', 'RECIPES', 'SETTINGS', 'SPEEDUPS', 'Recipe', 'check_parts', 'encoder_kind', 'make_part',
           'method', 'pick_setting', 'recipe_table', 'refused_pairs', 'shared_values', *METHODS]
