"The page of a report in a browser: it sorts, stays within a phone, is dark where that is asked for, and obeys no name"
import html
import json
import re
import shutil
import subprocess

import pytest
from helpers.runs import run_folder

from fastcontrast.evaluate.report import report

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no browser: apt-get install chromium")

ODD = '"><img src=x onerror="document.title=\'!\'"><script>document.title="!"</script>'
KNN = dict(a=(.50, .52, .57), b=(.61, .60, .70), c=(.40, .45, .55), d=(None, None, None))
LOSSES = dict(b='dcl', c=ODD, d='dclw')


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The page of a sweep of four settings, of which one was not judged, and a fifth was refused"
    folder = tmp_path_factory.mktemp('report')
    for i, (name, values) in enumerate(KNN.items()):
        for seed, value in enumerate(values):
            run_folder(folder/'r'/f'{name}{seed}', (value, value), seconds=10. * (4 - i), notes=[ODD],
                       settings=dict(seed=seed, loss=LOSSES.get(name)), results=value)
    (folder/'r/sweep.json').write_text(json.dumps(dict(
        control='a', axes=dict(loss=[]), runs=[dict(run='a0', setting='a', seed=0, differs={})],
        refused=[dict(setting='e', differs=dict(loss='swav'), reason=ODD)])))
    report(folder/'r', folder/'out')
    return (folder/'out/index.html').read_text()


@pytest.fixture(scope='module')
def opened(tmp_path_factory):
    "What a browser makes of a page"
    tmp_path = tmp_path_factory.mktemp('browser')
    def opened(text, *options):
        (tmp_path/'page.html').write_text(text)
        command = [BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', *options,
                   f'--user-data-dir={tmp_path}/profile', '--dump-dom', (tmp_path/'page.html').as_uri()]
        got = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert got.returncode == 0 and '</html>' in got.stdout, got.stderr[-2000:]
        return got.stdout
    return opened


def acted(page, script):
    "The page with a script of a visitor's, which its own policy would not run"
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', page)
    return page.replace(policy[0], '').replace('</body>', f'<script>{script}</script></body>')


CLICKS = [('kNN, %', 'bacd'), ('kNN, %', 'cabd'), ('kNN, %', 'bacd'),  # what has no value stays below
          ('seconds', 'dcba'), ('seconds', 'abcd'),                    # the best first
          ('setting', 'cbda'), ('setting', 'adbc')]


def test_a_click_on_a_head_sorts(page, opened):
    script = f'''
const table = document.querySelector('table'), buttons = [...table.querySelectorAll('button')];
const names = () => [...table.querySelectorAll('tbody th')].map(cell => cell.textContent.slice(0, 9));
const seen = [[names(), []]];
for (const head of {json.dumps([head for head, _ in CLICKS])}) {{
  buttons.find(button => button.textContent === head).click();
  seen.push([names(), [...table.querySelectorAll('[aria-sort]')].map(head => head.textContent + ' ' + head.ariaSort)]);
}}
document.body.dataset.seen = JSON.stringify(seen);
'''
    known = {'simclr': 'a', 'loss=dcl': 'b', 'loss="><i': 'c', 'loss=dclw': 'd', 'loss=swav': 'e'}
    seen = json.loads(html.unescape(re.search('data-seen="(.*?)"', opened(acted(page, script)))[1]))
    orders = [''.join(known[name] for name in names) for names, _ in seen]
    assert orders == [f'{order}e' for order in ('abcd', *(order for _, order in CLICKS))]  # the refused stay below
    assert seen[0][1] == [] and [said for _, (said,) in seen[1:]] == [
        'kNN, % descending', 'kNN, % ascending', 'kNN, % descending', 'seconds ascending', 'seconds descending',
        'setting ascending', 'setting descending']


def test_no_name_is_obeyed(page, opened):
    dom = opened(acted(page, ''))  # not even without its policy
    assert '<title>r</title>' in dom and '<img src="x"' not in dom


def test_no_script_runs_but_the_page_s_own(page, opened):
    dom = opened(page.replace('</body>', '<script>document.title = "ran"</script></body>'))
    assert '<title>r</title>' in dom


def test_a_phone(page, opened):
    "What is wide scrolls in itself, and the page does not"
    source = json.dumps(page).replace('</', '<\\/')
    frame = f'''<!doctype html><html><body><iframe style="width: 360px; height: 700px; border: 0"></iframe><script>
const frame = document.querySelector('iframe');
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  const wide = [...root.querySelectorAll('.scroll')].filter(part => part.scrollWidth > part.clientWidth).length;
  document.title = `${{frame.contentWindow.innerWidth}} ${{root.scrollWidth - root.clientWidth}} ${{wide > 0}}`;
}};
frame.srcdoc = {source};
</script></body></html>'''
    assert '<title>360 0 true</title>' in opened(frame)


@pytest.mark.parametrize('dark', [False, True])
def test_light_and_dark(page, opened, dark):
    script = '''
const style = getComputedStyle(document.body), text = getComputedStyle(document.querySelector('svg text'));
const light = colour => colour.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 765;
document.title = [style.backgroundColor, style.color, text.fill].map(colour => light(colour).toFixed(1)).join(' ');
'''
    dom = opened(acted(page, script), f'--blink-settings=preferredColorScheme={0 if dark else 1}')
    paper, ink, drawn = map(float, re.search('<title>(.*?)</title>', dom)[1].split())
    assert (paper < .2 and min(ink, drawn) > .8) if dark else (paper > .9 and max(ink, drawn) < .3)
