"""Build the site from the notebooks and the package, and check its links: `python docs/build.py [-o FOLDER]`.

Nothing is executed: pages show the outputs that notebooks are committed with. A warning is an error.
"""
import argparse
import shutil
import sys
from pathlib import Path

import links
import notebooks
import reference
from sphinx.cmd.build import main as sphinx

ROOT = notebooks.ROOT


def write_texts(pages: list[notebooks.Page], site: Path):
    "Beside each page its text, `NAME.html.md`, which docstrings lead to, and a list of all: `llms.txt`"
    for page in pages: (site/f'{page.name}.html.md').write_text(page.markdown())
    rows = [f'- [{page.title}]({links.SITE}/{page.name}.html.md): {page.about}' for page in pages]
    (site/'llms.txt').write_text('\n'.join(['# fastcontrast', '', *rows, '']))


def build(site: Path, jobs: str = 'auto') -> int:
    "Write the sources into _proc/, have Sphinx build them, and check the links: an exit code"
    if site.is_dir() and any(site.iterdir()) and not (site/'objects.inv').exists():
        sys.exit(f"{site} holds something else than a site: name another folder.")
    work = ROOT/'_proc'
    sources, made = work/'sources', work/'html' # beside which MyST-NB puts what it has no use for afterwards
    for folder in (work, site): shutil.rmtree(folder, ignore_errors=True)
    sources.mkdir(parents=True)
    pages = notebooks.write(sources)
    reference.write(sources)
    failed = sphinx(['-b', 'html', '-n', '-W', '-q', '-j', jobs, '-c', str(ROOT/'docs'), '-d', str(work/'doctrees'),
                     str(sources), str(made)])
    if not made.exists(): return failed
    site.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(made, site)
    write_texts(pages, site)
    broken = links.broken(site, ROOT) + links.written(site, ROOT)
    for link in broken: print(f'broken link in {link}', file=sys.stderr)
    return int(bool(failed or broken))


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('-o', '--out', type=Path, default=ROOT/'_docs', help='where it goes, in place of an old one')
    parser.add_argument('-j', '--jobs', default='auto', help='processes')
    args = parser.parse_args()
    sys.exit(build(args.out.resolve(), args.jobs))
