"""Whether the links of a built site lead somewhere, in it and in this repository; others are checked for their form."""
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SITE = 'https://fastcontrast.github.io/fastcontrast'
REPOSITORY = 'https://github.com/fastcontrast/fastcontrast'
WRITTEN = re.compile(rf'{SITE}/[^\s)>"\'`\]]+')


class Document(HTMLParser):
    "The places of a page, and what it leads to"
    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[name] for name in ('id', 'name') if attrs.get(name)}
        self.links |= {attrs[name] for name in ('href', 'src') if attrs.get(name)}


def well_formed(link: str) -> bool:
    "An address of the web or of mail, as far as its letters say"
    parts = urlsplit(link)
    if parts.scheme == 'mailto': return '@' in parts.path
    return parts.scheme in ('http', 'https') and re.fullmatch(r'[\w.-]+\.\w+(:\d+)?', parts.netloc) is not None \
        and not re.search(r'\s', link)


def broken(site: Path, repository: Path) -> list[str]:
    "The links that lead nowhere, as `page: link`"
    pages = {path: Document(path.read_text()) for path in site.rglob('*.html')}

    def leads(page: Path, link: str) -> bool:
        if link.startswith(SITE): page, link = site/'index.html', link.removeprefix(SITE).lstrip('/') or 'index.html'
        inside = re.match(rf'{REPOSITORY}/(?:blob|raw|tree)/main/([^#?]*)', link)
        if inside: return (repository/unquote(inside[1])).exists()
        parts = urlsplit(link)
        if parts.scheme == 'data': return True
        if parts.scheme or parts.netloc: return well_formed(link)
        target = (page.parent/unquote(parts.path)).resolve() if parts.path else page
        place = unquote(parts.fragment)
        return target.exists() and (not place or target not in pages or place in pages[target].ids)

    return [f'{page.relative_to(site)}: {link}' for page, document in pages.items()
            for link in sorted(document.links) if not leads(page, link)]


def written(site: Path, repository: Path) -> list[str]:
    "Links to the published site in sources and documents that it has no page for"
    files = [*repository.glob('*.md'), *(path for folder in ('fastcontrast', 'benchmarks', 'tests')
                                         for kind in ('py', 'md') for path in (repository/folder).rglob(f'*.{kind}'))]
    found = {(file, link.rstrip('.,;:')) for file in files for link in WRITTEN.findall(file.read_text())}
    return [f'{file.relative_to(repository)}: {link}' for file, link in sorted(found)
            if not (site/urlsplit(link.removeprefix(f'{SITE}/')).path).exists()]
