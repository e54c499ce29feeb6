"""Import time of `fastcontrast.all` over that of `fastai.vision.all`, each in a fresh process. Goal: at most 1.3.

    python benchmarks/import_time.py
"""
import subprocess
import sys

from common import alternate, save


def importing(module):
    def run(): subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
    return run


if __name__ == "__main__":
    got = alternate(importing("fastcontrast.all"), importing("fastai.vision.all"), rounds=7)
    print(f"fastcontrast.all {got['a_s']:.2f} s, fastai.vision.all {got['b_s']:.2f} s: {got['ratio']:.2f}")
    save("import_time", dict(ours_s=got["a_s"], fastai_s=got["b_s"], ratio=got["ratio"], ratio_quartiles=got["ratio_quartiles"], goal="ratio at most 1.3"))
