"""The notebooks of nbs/ as pages: what is hidden left out, entries of the API where a notebook documents something, and
the code of modules folded away below them."""
import ast
import importlib
import os
import re
from pathlib import Path
from typing import Any

from fastcore.nbio import mk_cell, write_nb
from nbdev.process import NBProcessor

import reference
from links import REPOSITORY, SITE

ROOT = Path(__file__).parents[1]
NUMBERED = re.compile(r'^(?:(\d+)_)?(\w+)$')
TREE = { # from the numbers of notebooks; what no range has is the engine's
    'Start': (range(0, 100), [360, 480]),
    'Methods': (range(250, 300),),
    'Speedups': (range(200, 250),),
    'Judging and using': (range(300, 360),),
    'Data': ([365], range(400, 440)),
    'Engine': (range(0, 1000),),
}
LANGUAGE = dict(kernelspec=dict(name='python3', display_name='Python 3', language='python'),
                language_info=dict(name='python', pygments_lexer='ipython3'))


def page_name(path: Path) -> str:
    "What its page is called: the notebook's name without the number"
    return NUMBERED.match(path.stem)[2]


def tree(paths: list[Path]) -> dict[str, list[str]]:
    "Pages by the part of the site that they are in, in the order of their numbers"
    parts = {part: [] for part in TREE}
    for path in sorted(paths):
        number = NUMBERED.match(path.stem)[1]
        if number is None: continue
        part = next(part for part, places in TREE.items() if any(int(number) in place for place in places))
        parts[part].append(page_name(path))
    return {part: pages for part, pages in parts.items() if pages}


def toctrees(parts: dict[str, list[str]]) -> str:
    "The site's tree, for the front page"
    return '\n\n'.join(f'```{{toctree}}\n:hidden:\n:caption: {part}\n\n' + '\n'.join(pages) + '\n```'
                       for part, pages in parts.items())


def page_links(text: str, folder: Path) -> str:
    "Links to notebooks, to the published pages and to the repository's pictures as Sphinx checks them"
    text = re.sub(r'\]\((?:\d+_)?(\w+)\.(?:ipynb|html)(#[^)]*)?\)', r'](\1.ipynb\2)', text)
    text = re.sub(rf'\]\({SITE}/(\w+)\.html(?:\.md)?(#[^)]*)?\)', r'](\1.ipynb\2)', text)
    return text.replace(f'({REPOSITORY}/raw/main/', f'({os.path.relpath(ROOT, folder)}/')


class Names:
    "What a notebook's names are: those of the module that it makes, or that it imports from the package"
    def __init__(self, nb):
        self.places: list[tuple[str, str]] = []
        for cell in nb.cells:
            if cell.cell_type != 'code': continue
            exported = cell.directives_.get('default_exp')
            if exported: self.places.append((f'fastcontrast.{exported.strip()}', '*'))
            for node in cell.parsed_() or []:
                if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'fastcontrast':
                    self.places += [(node.module, alias.name) for alias in node.names]

    def find(self, name: str) -> tuple[str, Any]:
        "The path and the value of `function`, `Class` or `Class.method`"
        first, *rest = name.split('.')
        for module, known in self.places:
            value = getattr(importlib.import_module(module), first, None) if known in ('*', first) else None
            if value is None: continue
            module = value.__module__
            for part in rest: value = getattr(value, part)
            return f'{module}.{name}', value
        raise LookupError(f"{name} is documented in a notebook that does not import it from the package.")


class Page:
    "A notebook on its way to the site"
    def __init__(self, path: Path):
        self.path, self.name = path, page_name(path)
        self.nb = NBProcessor(path).nb
        self.names = Names(self.nb)
        self.shown = {name for cell in self.nb.cells if cell.cell_type == 'code' for name in show_docs(cell)}
        self.nb.metadata.update(LANGUAGE)

    @property
    def title(self) -> str: return self.nb.cells[0].source.splitlines()[0].lstrip('# ')

    @property
    def about(self) -> str:
        "The sentence below the title"
        found = re.search(r'^> (.*)$', self.nb.cells[0].source, re.MULTILINE)
        return found[1] if found else ''

    def entry(self, name: str, indexed: set[str]):
        "A cell with the entry of something; of several the index has the reference's, or the first"
        path, value = self.names.find(name)
        public = {entry.path for entry in reference.entries()}
        once = '\n:no-index:' * bool(path in indexed or {path, path.rpartition('.')[0]} & public)
        indexed.add(path)
        return mk_cell(f'```{{entry}} {reference.directive(path, value)} {path}{once}\n```', 'markdown')

    def cells(self, indexed: set[str], folder: Path):
        "The cells that a reader sees"
        for cell in self.nb.cells:
            if not seen(cell): continue
            if cell.cell_type == 'markdown':
                yield mk_cell(page_links(cell.source, folder), 'markdown')
                continue
            told = cell.directives_.keys()
            exported = {'export', 'exporti'} & told
            if exported and only_imports(cell): continue
            names = [name for name in defined(cell) if name not in self.shown] if exported else show_docs(cell)
            for name in names: yield self.entry(name, indexed)
            if show_docs(cell): continue
            if exported or 'hide_input' in told or only_imports(cell): cell.metadata['tags'] = ['hide-input']
            yield cell

    def write(self, folder: Path, indexed: set[str], more: str = ''):
        "Write the page for Sphinx"
        nb = type(self.nb)(self.nb, cells=[*self.cells(indexed, folder), *[mk_cell(more, 'markdown')] * bool(more)])
        write_nb(nb, folder/f'{self.name}.ipynb')

    def markdown(self) -> str:
        "The whole notebook as text, code included, for who reads without a browser"
        def text(cell):
            if cell.cell_type == 'markdown': return cell.source
            printed = ''.join(out.get('text', '') or out.get('data', {}).get('text/plain', '') for out in cell.outputs)
            return f'```python\n{cell.source}\n```' + f'\n\n```text\n{printed.rstrip()}\n```' * bool(printed.strip())
        return '\n\n'.join(text(cell) for cell in self.nb.cells if seen(cell) and not show_docs(cell)) + '\n'


def seen(cell) -> bool:
    "Whether it is for readers"
    if cell.cell_type != 'code': return cell.cell_type == 'markdown'
    return bool(cell.source.strip()) and not {'hide', 'default_exp'} & cell.directives_.keys()


def only_imports(cell) -> bool:
    "Whether it imports what a page needs and does nothing else; a reader's own first line is no such thing"
    nodes = cell.parsed_() or [None]
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in nodes) \
        and not any(getattr(node, 'module', None) == 'fastcontrast.all' for node in nodes)


def show_docs(cell) -> list[str]:
    "The names that a cell shows the documentation of"
    calls = (node.value for node in cell.parsed_() or [] if isinstance(node, ast.Expr))
    return [ast.unparse(call.args[0]) for call in calls
            if isinstance(call, ast.Call) and getattr(call.func, 'id', None) == 'show_doc']


def defined(cell) -> list[str]:
    "The public functions and classes that a cell defines"
    return [node.name for node in cell.parsed_() or []
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')]


def write(folder: Path) -> list[Page]:
    "Write the pages of all notebooks"
    pages = [Page(path) for path in sorted((ROOT/'nbs').glob('*.ipynb'))]
    indexed: set[str] = set()
    parts = tree([page.path for page in pages]) | {'Reference': ['api', f'Source code <{REPOSITORY}>']}
    for page in pages: page.write(folder, indexed, toctrees(parts) if page.name == 'index' else '')
    return pages
