"""Decoding and resizing JPEGs into the cache, over a bare Pillow loop in as many processes; and an epoch's reading, cached over decoded.

The loop opens, decodes (JPEGs at 1/2, 1/4 or 1/8 where that is enough), converts, crops and resizes, and keeps nothing. The cache does the same, looks
at the files' state, turns pictures as EXIF says, and writes everything to the disk. Both include starting their processes. Goal: at most 1.05.

    python benchmarks/cache.py                              # 10,000 generated photographs of 500 x 375
    python benchmarks/cache.py data/imagenette --size 128   # those of a folder
"""
import argparse
import shutil
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from common import alternate, save
from PIL import Image, ImageOps

from fastcontrast.cache import open_store
from fastcontrast.data import find_pictures, image_dls
from fastcontrast.pictures import Files


def photographs(folder: Path, n: int) -> None:
    """JPEGs with the spectrum and the weight (about 100 kB) of photographs; 100 different ones, again and again"""
    rng, kept = np.random.default_rng(0), []
    for i in range(n):
        if i < 100:
            layers = [np.asarray(Image.fromarray(rng.integers(0, 256, (375 // s + 1, 500 // s + 1, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC), np.float32)
                      for s in (64, 16, 4, 1)]
            path = folder / f"{i:06}.jpg"
            Image.fromarray(np.average(layers, axis=0, weights=(8, 4, 2, 1)).astype(np.uint8)).save(path, quality=96)
            kept.append(path.read_bytes())
        else: (folder / f"{i:06}.jpg").write_bytes(kept[i % 100])


def bare(paths: list[Path], side: int) -> None:
    for path in paths:
        with Image.open(path) as picture:
            picture.draft("RGB", (side, side))
            np.asarray(ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BILINEAR))


def main():
    arg = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg.add_argument("data", nargs="?", help="folder of pictures; generated ones if not given")
    arg.add_argument("--n", type=int, default=10_000, help="pictures, at most")
    arg.add_argument("--size", type=int, default=128, help="side that a model sees; 1.15 times as much is stored")
    arg.add_argument("--bs", type=int, default=256)
    arg.add_argument("--workers", type=int, default=2, help="processes, of both")
    arg.add_argument("--rounds", type=int, default=5)
    arg.add_argument("--out", help="folder for the results")
    a = arg.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        root = Path(a.data or Path(temp, "pictures"))
        if not a.data:
            root.mkdir()
            photographs(root, a.n)
        names = find_pictures(root)[:a.n]
        pictures, side, store = Files(root, names, np.zeros(len(names), int)), round(1.15 * a.size), Path(temp, "store.safetensors")

        def loop():
            parts = [get_context("fork").Process(target=bare, args=([root / n for n in names[k::a.workers]], side)) for k in range(a.workers)]
            for p in parts: p.start()
            for p in parts: p.join()
            if any(p.exitcode for p in parts): raise SystemExit("the bare loop failed: are all files pictures that Pillow reads?")

        got = alternate(lambda: open_store(pictures, side, store, a.workers), loop, a.rounds, before=lambda: store.unlink(missing_ok=True))
        print(f"{len(names):,} pictures into the cache {got['a_s']:.1f} s, bare loop {got['b_s']:.1f} s: {got['ratio']:.3f} (quartiles {got['ratio_quartiles']})")

        linked = Path(temp, "linked")  # the same pictures, to be cached away from where they lie
        linked.mkdir()
        for i, n in enumerate(names): (linked / f"{i:06}{Path(n).suffix}").symlink_to((root / n).resolve())
        kwargs = dict(size=a.size, bs=min(a.bs, len(names)), valid=0, workers=a.workers)
        seconds = {}
        for name, how in dict(cached=dict(cache=True), decoded=dict(memory=1e-12)).items():
            train = image_dls(linked, **kwargs, **how).train
            next(iter(train))  # workers have started, and pages are in memory where there is room
            start = time.perf_counter()
            for _ in train: pass
            seconds[name] = time.perf_counter() - start
        rate = {k: len(train) * train.bs / s for k, s in seconds.items()}
        print(f"an epoch's pictures: {rate['cached']:,.0f}/s from the cache, {rate['decoded']:,.0f}/s decoded by {a.workers} workers")
        shutil.rmtree(linked)
    name = Path(a.data).resolve().name if a.data else "generated"
    a.data = name
    save(f"cache_{name}", dict(settings={k: v for k, v in vars(a).items() if k != "out"}, goal="ratio at most 1.05", n=len(names), side=side, **got,
                               reading_images_per_s=rate, reading_ratio=seconds["cached"] / seconds["decoded"]), a.out)


if __name__ == "__main__":
    main()
