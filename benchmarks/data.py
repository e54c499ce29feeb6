"""How fast pictures are decoded, kept and read."""
import functools
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from common import Group, Lacking, Run, alternate, seconds_of, spelled
from PIL import Image, ImageOps

from fastcontrast.cache import open_store
from fastcontrast.data import find_pictures, image_dls
from fastcontrast.pictures import Files

group = Group("data", "How fast pictures are decoded, kept and read")


@group.measurement(quick=dict(n=24, size=16, bs=4, workers=1, rounds=1))
def cache(
    run: Run,
    data: str = "",   # folder of pictures; generated photographs of 500 x 375 if not given
    n: int = 10_000,  # pictures, at most
    size: int = 128,  # side that a model sees; 1.15 times as much is stored
    bs: int = 256,    # batch, for reading
    workers: int = 2, # processes, of both
    rounds: int = 5,  # measurements of each
) -> None:
    """How long does decoding JPEGs into the cache take, over a bare Pillow loop in as many processes that keeps
    nothing?

    The loop opens, decodes (JPEGs at 1/2, 1/4 or 1/8 where that is enough), converts, crops and resizes. The cache
    does the same, looks at the files' state, turns pictures as EXIF says, and writes everything to the disk. Both
    include starting their processes. Goal: at most 1.05. Beside it what an epoch's reading takes, from the cache
    over decoding again.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(data) if data else photographs(Path(folder, "pictures"), n)
        if not root.is_dir(): raise Lacking(f"there is no folder '{root}'")
        names, side, store = find_pictures(root)[:n], round(1.15 * size), Path(folder, "store.safetensors")
        got = alternate(filling(root, names, side, store, workers), bare_loop(root, names, side, workers), rounds,
                        before=functools.partial(store.unlink, missing_ok=True))
        seconds = f"into the cache {got['a_s']:.1f} s, bare loop {got['b_s']:.1f} s"
        print(f"{len(names):,} pictures {seconds}: {spelled(got)}", flush=True)
        seconds = {}
        linked = links(root, names, Path(folder, "linked"))  # the same pictures, to be cached away from where they lie
        for kind, options in dict(cached=dict(cache=True), decoded=dict(memory=1e-12)).items():
            loader = image_dls(linked, size=size, bs=min(bs, len(names)), valid=0, workers=workers, **options).train
            next(iter(loader))  # workers have started, and pages are in memory where there is room
            seconds[kind] = seconds_of(lambda loader=loader: [None for _ in loader])
        rate = {kind: len(loader) * loader.bs / s for kind, s in seconds.items()}
        print(f"an epoch's pictures: {rate['cached']:,.0f}/s from the cache, {rate['decoded']:,.0f}/s decoded")
        shutil.rmtree(linked)
    source = Path(data).resolve().name if data else "generated"
    run.save(dict(goal="ratio at most 1.05", n=len(names), side=side, **got, reading_images_per_s=rate,
                  reading_ratio=seconds["cached"] / seconds["decoded"]), source)


def photographs(folder: Path, n: int) -> Path:
    """JPEGs with the spectrum and the weight (about 100 kB) of photographs; 100 different ones, again and again"""
    generator, kept = np.random.default_rng(0), []

    def layer(scale):
        noise = generator.integers(0, 256, (375 // scale + 1, 500 // scale + 1, 3), dtype=np.uint8)
        return np.asarray(Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC), np.float32)

    folder.mkdir()
    for i in range(n):
        path = folder / f"{i:06}.jpg"
        if i >= 100:
            path.write_bytes(kept[i % 100])
            continue
        mean = np.average([layer(scale) for scale in (64, 16, 4, 1)], axis=0, weights=(8, 4, 2, 1))
        Image.fromarray(mean.astype(np.uint8)).save(path, quality=96)
        kept.append(path.read_bytes())
    return folder


def links(root: Path, names: list, folder: Path) -> Path:
    """A folder of links to pictures"""
    folder.mkdir()
    for i, name in enumerate(names): (folder / f"{i:06}{Path(name).suffix}").symlink_to((root / name).resolve())
    return folder


def filling(root: Path, names: list, side: int, store: Path, workers: int) -> Callable[[], object]:
    """A function that decodes pictures into the cache's file"""
    pictures = Files(root, names, np.zeros(len(names), int))
    return lambda: open_store(pictures, side, store, workers)


def decode(paths: list[Path], side: int) -> None:
    """What a process of the bare loop does"""
    for path in paths:
        with Image.open(path) as picture:
            picture.draft("RGB", (side, side))
            np.asarray(ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BILINEAR))


def bare_loop(root: Path, names: list, side: int, workers: int) -> Callable[[], None]:
    """A function that decodes pictures in as many processes, and keeps nothing"""
    paths = [root / name for name in names]

    def loop():
        shares = [paths[k::workers] for k in range(workers)]
        processes = [get_context("fork").Process(target=decode, args=(share, side)) for share in shares]
        for process in processes: process.start()
        for process in processes: process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("the bare loop failed: are all files pictures that Pillow reads?")
    return loop
