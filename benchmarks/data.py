"""How fast pictures are decoded, kept and read."""
import functools
import io
import os
import re
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Group, Lacking, Run, alternate, resident, seconds_of, spelled
from PIL import Image, features

from fastcontrast.cache import open_store
from fastcontrast.data import SPARE, find_pictures, image_dls
from fastcontrast.formats import PixelFormat
from fastcontrast.pictures import Files, attempt, decoded
from fastcontrast.views import ViewKind, Views, random_boxes

group = Group("data", "How fast pictures are decoded, kept and read")


@group.measurement(quick=dict(n=24, size=16, bs=4, workers=1, rounds=1))
def cache(
    run: Run,
    data: str = "",   # folder of pictures; generated photographs of 500 x 375 if not given
    n: int = 10_000,  # pictures, at most
    size: int = 128,  # side that a model sees; whole pictures are stored, with 1.5 times as much on their short side
    bs: int = 256,    # batch, for reading
    workers: int = 2, # processes, of both
    rounds: int = 5,  # measurements of each
) -> None:
    """How long does decoding JPEGs into the cache take, over a bare Pillow loop in as many processes that keeps
    nothing?

    The loop opens, decodes (JPEGs at 1/2, 1/4 or 1/8 where that is enough), converts and resizes whole pictures. The
    cache does the same, looks at the files' state, turns pictures as EXIF says, and writes everything to the disk. Both
    include starting their processes. Goal: at most 1.10. Beside it what an epoch's reading takes, from the cache
    over decoding again.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(data) if data else photographs(Path(folder, "pictures"), n)
        if not root.is_dir(): raise Lacking(f"there is no folder '{root}'")
        names, side, store = find_pictures(root)[:n], kept_side(size), Path(folder, "store.safetensors")
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
    run.save(dict(goal="ratio at most 1.10", n=len(names), side=side, **got, reading_images_per_s=rate,
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
    return lambda: open_store(pictures, PixelFormat(side, whole=True), store, workers)


def decode(paths: list[Path], side: int) -> None:
    """What a process of the bare loop does"""
    for path in paths:
        with Image.open(path) as picture:
            picture.draft("RGB", (side, side))
            np.asarray(picture.convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


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


@group.measurement(quick=dict(n=200, folders=4, bs=4, workers=0, rounds=1))
def listing(
    run: Run,
    n: int = 1_000_000,   # pictures
    folders: int = 1_000, # in which they lie, each a class
    size: int = 32,       # side that a model sees
    bs: int = 256,        # batch
    workers: int = 2,     # processes that decode
    rounds: int = 3,      # measurements of each
) -> None:
    """How long does it take from `image_dls` of so many small files to the first batch, over `os.walk` alone?

    The walk counts the files. Before the first batch their classes are found, a fifth of each is held out, some are
    looked into for their size, and the workers start. Goal: at most 2.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "pictures")
        dot = io.BytesIO()
        Image.new("RGB", (8, 8)).save(dot, "PNG")
        for k in range(folders):
            (root / f"{k:04}").mkdir(parents=True)
            for i in range(k, n, folders): (root / f"{k:04}" / f"{i:07}.png").write_bytes(dot.getvalue())

        def first_batch():
            loaders = image_dls(root, size=size, bs=bs, workers=workers, memory=1e-12, tell=lambda note: None)
            next(iter(loaders.train))

        got = alternate(first_batch, lambda: sum(len(files) for *_, files in os.walk(root)), rounds)
        print(f"{n:,} files: first batch after {got['a_s']:.1f} s, os.walk {got['b_s']:.1f} s: {spelled(got)}")
    run.save(dict(goal="ratio at most 2", **got))


@group.measurement(quick=dict(n=40, classes=2, workers=2, rounds=1))
def small(
    run: Run,
    n: int = 50_000,    # pictures
    classes: int = 10,  # folders in which they lie
    size: int = 32,     # their side, and that which a model sees
    workers: int = 2,   # processes that decode
    rounds: int = 3,    # measurements of each
) -> None:
    """How long does `image_dls` take to bring many small files into memory, over one process that decodes?

    Both times have everything that comes before the first batch. The pictures are noise.
    """
    with tempfile.TemporaryDirectory() as folder:
        draws = np.random.default_rng(0)
        for i in range(n):
            path = Path(folder, str(i % classes), f"{i}.png")
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(draws.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)

        def read(processes): return image_dls(folder, size=size, bs=n // 4, workers=processes, tell=lambda note: None)
        got = alternate(lambda: read(workers), lambda: read(0), rounds)
        print(f"{n:,} files: {got['a_s']:.1f} s with {workers} processes, {got['b_s']:.1f} s with one: {spelled(got)}")
    run.save(got)


def kept_side(size: int, width: int = 500, height: int = 375) -> int:
    """The side of the square that pictures of this shape are kept as for a model that sees `size` pixels"""
    short, long = sorted((width, height))
    return round(min(SPARE * size, short) * (long / short) ** 0.5)


@group.measurement(quick=dict(n=1000, width=50, height=40, square=50, size=24, bs=4, rounds=1))
def crops(
    run: Run,
    width: int = 500,  # of the pictures, pixels
    height: int = 375,
    square: int = 500, # side of others, which are squares, pixels
    size: int = 224,   # side of the views
    n: int = 200_000,  # crops that are drawn
    bs: int = 64,      # batch of which views are made
    rounds: int = 5,   # of views, in turn; 0: only the shares, which take a second
) -> None:
    """How many crops of 0.08 to 1 of the area are enlarged, having fewer pixels than the view, with pictures kept as
    they are now; how many were with centre squares of 1.15 times the view, and how many are with the authors'
    originals?

    Beside it those with fewer pixels across, and down; the bytes of a picture; and the time of a batch of SimCLR's
    views, as pictures are kept now over centre squares. The same for pictures that are squares.
    """
    result = crops_of(run, (width, height), size, n, bs, rounds)
    result["square"] = crops_of(run, (square, square), size, n, bs, rounds)
    run.save(result)


def crops_of(run: Run, shape: tuple[int, int], size: int, n: int, bs: int, rounds: int) -> dict[str, Any]:
    """The same for pictures of one width and height"""
    short, now, before = min(shape), kept_side(size, *shape), round(1.15 * size)
    is_square = shape[0] == shape[1]
    shares = dict(authors=enlarged(shape, shape, size, n), before=enlarged((short, short), (before, before), size, n),
                  after=enlarged(shape, (now, now), size, n))
    sizes = dict(before=PixelFormat(before).nbytes, after=PixelFormat(now, whole=not is_square).nbytes)
    print(f"pictures of {shape[0]} x {shape[1]}, views of {size} px")
    for name, share in shares.items():
        kept = f", {sizes[name]:,} bytes a picture" if name in sizes else ""
        print(f"{name:8} {share['pixels']:.1%} of crops enlarged (across {share['across']:.1%}, down "
              f"{share['down']:.1%}){kept}", flush=True)
    result = dict(shares=shares, sides=dict(before=before, after=now), bytes=sizes)
    if not rounds: return result
    got = alternate(views_of_noise(run, now, size, bs, None if is_square else shape[0] / shape[1]),
                    views_of_noise(run, before, size, bs), rounds)
    print(f"a batch's views: {1000 * got['a_s']:.0f} ms, before {1000 * got['b_s']:.0f} ms: {spelled(got)}")
    return result | got


def enlarged(shape: tuple[int, int], kept: tuple[int, int], size: int, n: int) -> dict[str, float]:
    """Share of crops with fewer pixels than the view, of pictures of this width and height that are kept at another"""
    torch.manual_seed(0)
    _, _, w, h = random_boxes(n, shape[1], shape[0], ViewKind.scale, ViewKind.ratio).unbind(1)
    across, down = w * (kept[0] / shape[0]), h * (kept[1] / shape[1])
    few = dict(pixels=across * down < size ** 2, across=across < size, down=down < size)
    return {name: crops.float().mean().item() for name, crops in few.items()}


def views_of_noise(run: Run, side: int, size: int, bs: int, aspect: float | None = None) -> Callable[[], object]:
    """A function that makes views of a batch of pictures of this side, which are whole if there is an aspect"""
    images = torch.randint(0, 256, (bs, 3, side, side), dtype=torch.uint8, device=run.device)
    aspects = None if aspect is None else torch.full((bs,), aspect, device=run.device)
    views = Views(size)

    def make():
        torch.manual_seed(0)
        return views(images, None, aspects)
    return make


@group.measurement(quick=dict(side=1000))
def odd(
    run: Run,
    side: int = 13_300, # of the largest pictures, pixels; Pillow opens no more than 178,956,970 in all
    size: int = 147,    # side that they are decoded to
) -> None:
    """How much memory do pictures take that are hostile or odd: small files of many pixels, in many formats?

    Each is decoded alone, and eight at once by threads, in a process of its own that has decoded a small one before.
    Counted is by how much that process grows at its peak, also where a picture is refused. Goal: at most 500 MB.
    """
    with tempfile.TemporaryDirectory() as folder:
        paths = list(odd_pictures(Path(folder), side))
        rows = []
        for path in paths:
            peak, (reason,) = peak_of([path], size)
            rows.append(dict(name=path.name, file_kb=path.stat().st_size / 1000, peak_mb=peak, refused=reason))
            print(f"{path.name:28} {rows[-1]['file_kb']:9,.0f} kB  {peak:6.0f} MB  {reason}", flush=True)
        eights = [peak_of(paths[i::-(-len(paths) // 8)], size)[0] for i in range(-(-len(paths) // 8))]
    alone, eight = max(row["peak_mb"] for row in rows), max(eights)
    print(f"{len(paths)} pictures: {alone:.0f} MB at most alone, {eight:.0f} MB eight at once")
    run.save(dict(goal="at most 500 MB", alone_mb=alone, eight_mb=eight, eights_mb=eights, rows=rows))


def peak_of(paths: list[Path], size: int) -> tuple[float, list[str]]:
    """MB by which a process grows that decodes pictures at once, and why each could not be decoded, or ''"""
    context = get_context("fork")
    mine, other = context.Pipe()
    process = context.Process(target=decode_at_once, args=(paths, size, other))
    process.start()
    other.close()  # the process alone has it, so its end is seen here, whatever ends it
    try: got = mine.recv()
    except EOFError: raise SystemExit(f"decoding {', '.join(path.name for path in paths)} ended the process") from None
    process.join()
    return got


def decode_at_once(paths: list[Path], size: int, pipe: Any) -> None:
    """What the process does"""
    warnings.simplefilter("ignore")  # Pillow's, of large pictures
    small = io.BytesIO()
    Image.new("RGB", (500, 400)).save(small, "JPEG")
    decoded(small, PixelFormat(size))
    before = resident()  # with what it has from this program
    with ThreadPoolExecutor(len(paths)) as threads:
        reasons = list(threads.map(lambda path: attempt(decoded, path, PixelFormat(size))[1], paths))
    # of this process alone; getrusage also counts what has started it
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    pipe.send(((peak - before) / 1e6, reasons))


def odd_pictures(folder: Path, side: int) -> Iterator[Path]:
    """Writes them"""
    shapes = dict(square=(side, side), half=(side // 2, side // 2), wide=(side * 8, side // 8), line=(side**2 // 4, 1))
    for name, (width, height) in shapes.items():
        for kind, (colour, depth) in PNGS.items():
            path = folder / f"{kind}-{name}.png"
            path.write_bytes(png(width, height, colour, depth))
            yield path
    inner = png(side, side, 6, 8)
    for name, content in dict(ico=icon(inner), icns=icon_of_mac(inner)).items():
        (folder / f"icon.{name}").write_bytes(content)
        yield folder / f"icon.{name}"
    third = side // 3
    for name, mode, options in OTHERS:
        path = folder / f"{mode.replace(';', '')}-{name}"
        if path.suffix == ".avif" and not features.check("avif"): continue
        Image.new(mode, (third, third)).save(path, **options)
        yield path


# a PNG's kinds: type of colour and bits
PNGS = {"grey1": (0, 1), "grey8": (0, 8), "grey16": (0, 16), "rgb8": (2, 8), "rgb16": (2, 16), "palette1": (3, 1),
        "palette8": (3, 8), "grey-alpha8": (4, 8), "grey-alpha16": (4, 16), "rgb-alpha8": (6, 8),
        "rgb-alpha16": (6, 16)}
OTHERS = [("a.jpg", "RGB", {}), ("b.jpg", "RGB", dict(progressive=True)), ("c.jpg", "CMYK", dict(progressive=True)),
          ("a.tif", "I;16", {}), ("b.tif", "I", {}), ("c.tif", "F", dict(compression="tiff_adobe_deflate")),
          ("d.tif", "RGBA", dict(compression="tiff_lzw")), ("e.tif", "LAB", {}), ("a.webp", "RGBA", {}),
          ("a.gif", "P", {}), ("a.bmp", "RGB", {}), ("a.tga", "RGBA", dict(compression="tga_rle")),
          ("a.jp2", "RGB", {}), ("a.avif", "RGB", dict(speed=10)), ("a.ppm", "RGB", {}), ("a.sgi", "RGB", {}),
          ("a.pcx", "RGB", {})]


def png(width: int, height: int, colour: int, depth: int) -> bytes:
    """The file of a picture of zeros, which takes hardly any memory to write; a palette is half transparent"""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" * (1 + -(-width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8))
    pack = zlib.compressobj(1)
    packed = b"".join([pack.compress(row) for _ in range(height)]) + pack.flush()
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if colour == 3: parts += [chunk(b"PLTE", bytes(6)), chunk(b"tRNS", b"\x80\xff")]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*parts, chunk(b"IDAT", packed), chunk(b"IEND", b"")])


def icon(inner: bytes) -> bytes:
    """A Windows icon that says it is of 16 x 16 pixels and holds a PNG"""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def icon_of_mac(inner: bytes) -> bytes:
    """One of a Mac's, of 128 x 128"""
    return b"icns" + struct.pack(">I", len(inner) + 16) + b"ic07" + struct.pack(">I", len(inner) + 8) + inner
