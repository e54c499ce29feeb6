"""Run notebooks and keep what their cells show, for the published pages: `python tests/outputs.py` for those below, or
with names."""
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

NBS = Path(__file__).parent.parent/'nbs'
KEPT = ['010_tutorial', '012_how_it_thinks', '016_is_it_learning', '018_how_long', '020_ablation', '022_fastai_habits',
        '024_coming_from', '026_transformers', '030_scaling', '140_step', '200_comb_patches', '220_intermediate',
        '230_regions', '240_suncet', '255_methods_one_by_one', '260_methods', '328_judge', '330_plots', '332_report',
        '340_cost', '352_use_everywhere', '358_search_pictures', '480_cli']


def keep(path):
    from fastcore.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    shell, nb = CaptureShell(path.parent), read_nb(path)
    for line in ("%matplotlib inline", "import warnings; warnings.filterwarnings('ignore')"): shell.run_cell(line)
    shell.run_all(nb, exc_stop=True)
    for cell in nb.cells:
        if cell.cell_type == 'code': cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    write_nb(nb, path)
    subprocess.run(['nbdev-clean', '--fname', str(path)], check=True)


if __name__ == '__main__':
    os.environ['FASTCONTRAST_PAGES'] = 'shown'  # a page may train longer for its pictures than for its test
    for name in sys.argv[1:] or KEPT:
        # a process each: what one page registers is not for the next
        process = multiprocessing.Process(target=keep, args=[NBS/f'{name}.ipynb'])
        process.start()
        process.join()
        if process.exitcode: sys.exit(process.exitcode)
