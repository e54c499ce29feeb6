"""Run notebooks and keep what their cells show, for the published pages: `python tests/outputs.py` for those below, or with names."""
import subprocess
import sys
from pathlib import Path

NBS = Path(__file__).parent.parent/'nbs'
KEPT = ['10_comb_patches', '11_intermediate', '12_regions', '13_suncet', '20_recipes', '32_plots', '33_cost', '60_tutorial', '61_ablation', '62_scaling']


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
    for name in sys.argv[1:] or KEPT: keep(NBS/f'{name}.ipynb')
