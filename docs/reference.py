"""The API reference: a page a room, with an entry for every name of `fastcontrast.all`; and the hooks that make Sphinx
write signatures, docments and links as this project has them."""
import ast
import importlib
import inspect
import re
from dataclasses import dataclass
from enum import EnumType
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from fastcore.docments import docments
from myst_parser.mdit_to_docutils.base import make_document
from myst_parser.mocking import MockRSTParser
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

import fastcontrast.all as everything
from links import REPOSITORY, SITE

PACKAGE = Path(everything.__file__).parent
LESSON = re.compile(rf'^Docs: {re.escape(SITE)}/(\w+)\.html\.md', re.MULTILINE)
REST = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
WORDS = {'method', 'metric'} # a decorator's name that is an everyday word: a link only where it is called


@dataclass(frozen=True)
class Entry:
    "One public name"
    name: str   # in `fastcontrast.all`
    module: str # that defines it
    value: Any

    @property
    def path(self) -> str: return f'{self.module}.{self.name}'

    @property
    def room(self) -> str: return self.module.split('.')[1]

    @property
    def about(self) -> str:
        "One line"
        if isinstance(self.value, dict): return f"By name: {', '.join(f'`{name}`' for name in self.value)}"
        return f'`{self.value!r}`' if constant(self.value) else first_line(self.value)


def constant(value: Any) -> bool:
    "Whether it is neither a function nor a class, and so does not know where it is defined"
    return not isinstance(value, type) and not inspect.isfunction(value)


def first_line(value: Any) -> str:
    "The first paragraph of a docstring, as one line"
    return ' '.join((inspect.getdoc(value) or '').split('\n\n')[0].split())


def imported() -> dict[str, str]:
    "The modules that `fastcontrast.all` says its names are from: where constants are found, which don't know it"
    tree = ast.parse(Path(everything.__file__).read_text())
    return {name.asname or name.name: '.'.join(filter(None, ('fastcontrast', node.module)))
            for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}


@cache
def entries() -> list[Entry]:
    "The public names, a room's together, in the order of `__all__`"
    places = imported()
    values = {name: getattr(everything, name) for name in everything.__all__}
    found = [Entry(name, places[name] if constant(value) else value.__module__, value)
             for name, value in values.items()]
    return sorted(found, key=lambda entry: entry.room)


def rst(text: str) -> str:
    "A docstring, whose single backticks are code and whose other characters mean themselves, as reStructuredText"
    parts = re.split(r'`+([^`]+)`+', text)
    for i, part in enumerate(parts):
        if i % 2 == 0: parts[i] = re.sub(r'([*_|\\])', r'\\\1', part)
        else: parts[i] = f"{parting(parts[i - 1][-1:])}``{part}``{parting(parts[i + 1][:1])}"
    return ''.join(parts)


def parting(letter: str) -> str:
    "What has to stand between code and what it touches"
    return '\\ ' if letter.strip() else ''


@dataclass
class Source:
    "A value that is written as the source has it"
    value: Any

    def __repr__(self) -> str:
        if isinstance(self.value, partial):
            given = [*map(repr, map(Source, self.value.args)),
                     *(f'{name}={Source(value)!r}' for name, value in self.value.keywords.items())]
            return f"{Source(self.value.func)!r}({', '.join(given)})"
        return getattr(self.value, '__name__', None) or repr(self.value).replace('<factory>', '…')


def annotation(kind: Any) -> str:
    "A type as in the source, without the modules"
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    return re.sub(r'\b[a-z_]\w*\.(?=[\w.]*\w)', '', text).replace('NoneType', 'None')


def parameters(value: Any) -> list[tuple[str, str]]:
    "What a function or a class takes, and what it returns: `name: type = default`, and what its comment says"
    if isinstance(value, EnumType): return re.findall(r'^ +(\w+ = \S+) +# (.*)$', inspect.getsource(value), re.M)
    if isinstance(value, type) and not inspect.signature(value).parameters: return []
    rows = []
    for name, doc in docments(value, full=True, args_kwargs=True).items():
        kind, said = doc.anno, ' '.join((doc.docment or '').split())
        if name == 'self' or name.startswith('_') or not said and doc.get('kind') in REST: continue
        known = '' if kind in (None, inspect.Parameter.empty) else annotation(kind)
        if name == 'return' and kind is None or not known and not said: continue
        term = f'→ {known}'.strip() if name == 'return' else f'{name}: {known}' if known else name
        rows.append((term if doc.default is inspect.Parameter.empty else f'{term} = {Source(doc.default)!r}', said))
    return rows


def parameter_list(value: Any) -> list[str]:
    "They as a definition list"
    lines = []
    for term, said in parameters(value):
        lines += [f'   ``{term}``', f'       {rst(said) or ".."}']
    return ['', '.. container:: parameters', '', *lines, ''] if lines else []


def directive(path: str, value: Any) -> str:
    "The directive of autodoc that documents something"
    if isinstance(value, type): return 'autoexception' if issubclass(value, BaseException) else 'autoclass'
    if isinstance(value, property) or not callable(value): return 'autoproperty'
    outer = path.rpartition('.')[0]
    return 'autofunction' if outer == value.__module__ else 'automethod'


def data_entry(entry: Entry) -> str:
    "A registry's: its members, each with a line; of another constant, its value"
    rows = [f'.. py:data:: {entry.name}', f'   :module: {entry.module}', '']
    if not isinstance(entry.value, dict): return '\n'.join([*rows, f'   ``{entry.value!r}``', ''])
    rows += ['   What there is, by name:', '']
    public = {id(other.value): other for other in entries()}
    for name, member in entry.value.items():
        known = public.get(id(member))
        said = not constant(member) and first_line(member) or f'`{Source(member)!r}`'
        link = f':py:obj:`{known.name} <{known.path}>`: ' if known and known.name != name else ''
        term = f':py:obj:`{name} <{known.path}>`' if known and known.name == name else f'``{name}``'
        rows += [f'   {term}', f'       {link}{rst(said)}']
    return '\n'.join(rows) + '\n'


def code_entry(entry: Entry) -> str:
    "That of a function or a class, with its members"
    kind = directive(entry.path, entry.value)
    members = '\n   :members:' * (kind != 'autofunction')
    return f'.. {kind}:: {entry.path}{members}\n'


def heading(text: str, line: str = '=') -> str: return f'{text}\n{line * len(text)}\n'


def lessons(modules: set[str]) -> list[str]:
    "The pages that explain modules, as their docstrings say"
    docs = (importlib.import_module(name).__doc__ or '' for name in sorted(modules))
    return list(dict.fromkeys(page for doc in docs for page in LESSON.findall(doc)))


def about_room(room: str) -> str:
    "What a room's module says of itself"
    doc = importlib.import_module(f'fastcontrast.{room}').__doc__ or ''
    return ' '.join(LESSON.sub('', doc).split())


def write(folder: Path):
    "Write the overview and a page a room"
    rooms: dict[str, list[Entry]] = {}
    for entry in entries(): rooms.setdefault(entry.room, []).append(entry)
    (folder/'api').mkdir()
    overview = [heading('API reference'), 'What ``from fastcontrast.all import *`` has, by the module it is from.\n',
                '.. toctree::\n   :hidden:\n', *(f'   api/{room}' for room in rooms), '']
    for room, found in rooms.items():
        pages = ', '.join(f':doc:`/{page}`' for page in lessons({entry.module for entry in found}))
        page = [heading(f'API: {room}'), rst(about_room(room)) + '\n', f'Explained in {pages}.\n' * bool(pages)]
        page += [(data_entry if constant(entry.value) else code_entry)(entry) for entry in found]
        (folder/'api'/f'{room}.rst').write_text('\n'.join(page))
        overview += [heading(room, '-'), '.. list-table::\n   :widths: 30 70\n   :class: overview\n',
                     *(f'   * - ``{entry.name}``\n     - {rst(entry.about)}' for entry in found), '']
    (folder/'api.rst').write_text('\n'.join(overview))


def signature(app, kind: str, path: str, value: Any, options, arguments: str | None, returns: str | None):
    "The names and defaults of what is taken, unless they are many: with the types they stand below"
    if arguments is None: return None
    if isinstance(value, EnumType): return '', None
    found = inspect.signature(value)
    taken = [p.replace(annotation=p.empty, default=p.default if p.default is p.empty else Source(p.default))
             for i, p in enumerate(found.parameters.values()) if (i, p.name) != (0, 'self')]
    text = str(found.replace(parameters=taken, return_annotation=found.empty))
    return text if len(text) < 200 else '(...)', None


def add_docments(app, kind: str, path: str, value: Any, options, lines: list[str]):
    "A docstring as reStructuredText, and below it what the parameters are"
    lines[:] = rst('\n'.join(lines)).split('\n')
    if kind in ('function', 'class', 'exception', 'method'): lines += parameter_list(value)
    if isinstance(value, ModuleType): lines[:] = []


def source_link(domain: str, info: dict[str, str]) -> str | None:
    "Where something is defined"
    value = importlib.import_module(info['module'])
    try:
        for name in info['fullname'].split('.'): value = getattr(value, name)
        value = inspect.unwrap(getattr(value, 'fget', value))
        file, (lines, start) = Path(inspect.getsourcefile(value)), inspect.getsourcelines(value)
        return f'{REPOSITORY}/blob/main/{file.relative_to(PACKAGE.parent)}#L{start}-L{start + len(lines) - 1}'
    except (AttributeError, TypeError, OSError, ValueError): return None


class EntryDirective(SphinxDirective):
    "An entry on a page: MyST's `eval-rst` counts empty lines for all cells before it, which takes minutes"
    required_arguments, option_spec = 2, {'no-index': directives.flag}

    def run(self) -> list[nodes.Node]:
        document, (kind, path) = make_document(), self.arguments
        document['source'], document.settings = self.state.document['source'], self.state.document.settings
        document.reporter = self.state.document.reporter
        MockRSTParser().parse(f'.. {kind}:: {path}' + '\n   :no-index:' * ('no-index' in self.options), document)
        return document.children


class NameLinks(SphinxPostTransform):
    "A name of the API in backticks is a link to its entry, outside headings, terms, links and the entry itself"
    default_priority = 20
    UNLINKED = (nodes.title, nodes.term, nodes.reference, addnodes.desc_signature)

    def run(self, **kwargs):
        objects = self.env.domains['py'].objects
        public = {entry.path: len(entry.module) + 1 for entry in entries()}
        owners = {path: path if path in public else path.rpartition('.')[0] for path in objects}
        targets = {path[public[owner]:]: objects[path] for path, owner in owners.items() if owner in public}
        for node in list(self.document.findall(nodes.literal)):
            name, called, _ = node.astext().partition('(')
            target = targets.get(name.lstrip('@'))
            if target is None or name in WORDS and not called or self.skipped(node, target.node_id): continue
            link = make_refnode(self.app.builder, self.env.docname, target.docname, target.node_id, node.deepcopy())
            node.replace_self(link)

    def skipped(self, node: nodes.Node, own: str) -> bool:
        "Whether it stands in a heading, a link, or the entry that it would lead to"
        while (node := node.parent) is not None:
            if isinstance(node, NameLinks.UNLINKED): return True
            if isinstance(node, addnodes.desc) and own in node[0].get('ids', ()): return True
        return False


def check_entries(app, env):
    "Every public name has its entry; that none has two is Sphinx's own warning"
    objects = env.domains['py'].objects
    for entry in entries():
        if entry.path not in objects:
            logging.getLogger(__name__).warning(f"{entry.name} of fastcontrast.all has no entry in the API reference.")


def setup(app):
    app.add_directive('entry', EntryDirective)
    app.connect('autodoc-process-signature', signature)
    app.connect('autodoc-process-docstring', add_docments)
    app.connect('env-check-consistency', check_entries)
    app.add_post_transform(NameLinks)
    return dict(parallel_read_safe=True, parallel_write_safe=True)
