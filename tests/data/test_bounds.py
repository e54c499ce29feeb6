"No picture hangs the program or takes more memory than it may, and the values stay as they are"
import io
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.forks import CONTEXT
from helpers.folders import STREAM, dls_of, everything, image_folder, picture
from helpers.memory import small_pages
from helpers.odd import KINDS, PNGS, icns, ico, no_file, png, within
from PIL import ExifTags, Image, ImageFile, ImageOps

from fastcontrast import decoding, pictures, values
from fastcontrast.core import LARGEST_SIDE, InputError
from fastcontrast.decoding import MEMORY, Memory
from fastcontrast.formats import PixelFormat, Span
from fastcontrast.pictures import attempt, decoded, square_pixels

# ---------------------------------------------------------------- only files are opened


@pytest.mark.parametrize('how', [{}, STREAM, dict(STREAM, workers=2), dict(cache=True)],
                         ids=['resident', 'streamed', 'workers', 'cached'])
@pytest.mark.parametrize('kind', KINDS)
def test_what_is_no_file_is_named_and_skipped(tmp_path, kind, how):
    root = image_folder(tmp_path/'x', dict(a=4, b=4))
    for name in ('a/000.jpg', 'b/x.PNG', 'b/y.tiff'): no_file(root/name, kind)
    with within(60):
        dls = dls_of(root, size=32, valid=0, **how)
        assert len(everything(dls.train.ordered())[0]) == (11 if dls.train.streaming else 8)
    assert '3 of 11 pictures could not be decoded' in dls.report()
    assert all(str(root/name) in dls.report() for name in ('a/000.jpg', 'b/x.PNG', 'b/y.tiff'))
    assert dls.report().endswith(f' ({KINDS[kind]}).') and dls.report().count(KINDS[kind]) == 1
    with pytest.raises(InputError, match='could not be decoded .a .*, not a file'), within(60):
        list(dls_of(root, size=32, valid=0, strict=True, **how).train)


def test_a_folder_of_nothing_else(tmp_path):
    for i in range(3): no_file(tmp_path/f'a/{i}.jpg', 'pipe')
    with pytest.raises(InputError, match='no picture could be decoded, the first is .*a named pipe'), within(20):
        dls_of(tmp_path)


@pytest.mark.parametrize('kind', KINDS)
def test_labels_are_read_from_files(tmp_path, kind):
    root = image_folder(tmp_path/'x', dict(a=4, b=4))
    with pytest.raises(InputError, match='names.txt'), within(20):
        dls_of(root, labels=no_file(tmp_path/'names.txt', kind))
    with pytest.raises(InputError, match="table.csv' can't be read"), within(20):
        dls_of(no_file(tmp_path/'table.csv', kind))


def test_labels_that_are_no_text(tmp_path):
    root = image_folder(tmp_path/'x', dict(a=4, b=4))
    with pytest.raises(InputError, match="names in '.*000.png' can't be read: it is no text in UTF-8, at byte 0"):
        dls_of(root, labels=root/'a/000.png')


# ---------------------------------------------------------------- memory

def _memory(kind):
    "Bytes of this process alone: getrusage also counts what has started it"
    return int(re.search(kind + r':\s*(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024


def _decode(sender, limit, bits, file):
    small_pages()
    small = io.BytesIO()
    Image.new('RGB', (500, 400)).save(small, 'JPEG')
    decoded(small, PixelFormat(32))  # what is imported for it, and for all formats
    Image.init()
    form = PixelFormat(32, bits=bits, span=Span(0, 65535) if bits == 16 else None)
    taken, told, most = MEMORY.taken, [0], []

    @contextmanager
    def noted(need):
        told.append(need)
        with taken(need): yield
        most.append(_memory('VmHWM'))
    MEMORY.limit, MEMORY.taken = limit, noted
    before = _memory('VmRSS')
    reason = attempt(decoded, file, form)[1]
    grown = _memory('VmHWM')
    sender.send((grown - before, grown - max(most, default=before), max(told), reason))


def growth(file, limit, bits=8):
    "Bytes by which a process grows that decodes a file, those after what it asked for, what it asked for, and a reason"
    receiver, sender = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_decode, args=(sender, limit, bits, str(file)))
    process.start()
    sender.close()
    assert receiver.poll(120)
    got = receiver.recv()
    process.join(60)
    return got


MB = 2**20
DEEP = ['grey16', 'rgb16', 'grey_alpha16', 'rgb_alpha16', 'float', 'int', 'npy']
FILES = [*PNGS, 'float', 'int', 'npy', 'jpg', 'progressive', 'ppm', 'bmp', 'gif', 'tga', 'tif', 'webp', 'jp2']


def large(folder, kind, side):
    "A picture file of a kind"
    file = folder/f"x.{kind}"
    if kind in PNGS: file.write_bytes(png(side, side, kind))
    elif kind == 'npy': np.save(file, np.zeros((side, side), np.uint16))
    elif kind in ('float', 'int'): Image.new(kind[0].upper(), (side, side)).save(file, 'TIFF')
    elif kind == 'progressive': Image.new('RGB', (side, side)).save(file, 'JPEG', progressive=True)
    elif kind == 'tif': Image.new('RGBA', (side, side)).save(file, compression='tiff_lzw')
    else: Image.new('RGB', (side, side)).save(file)
    return file


@pytest.mark.parametrize('bits, kind', [(8, kind) for kind in FILES] + [(16, kind) for kind in DEEP])
def test_one_takes_what_it_asks_for(tmp_path, bits, kind):
    "If it took more, several at once would take more than they may; if less, they would wait for nothing"
    grown, after, told, reason = growth(large(tmp_path, kind, 2800), 400 * MB, bits)
    spare = (18 if kind in DEEP else 10) * MB  # for bands of rows and what the allocator keeps
    assert not reason and grown - spare < told <= 1.3 * grown and after < 2 * MB


def test_at_once_they_ask_for_no_more_than_there_is(tmp_path, monkeypatch):
    "Pictures of every format: each decodes when it has been given what it asked for"
    files, held = [large(tmp_path, kind, 1500) for kind in FILES], []
    load = ImageFile.ImageFile.load
    def noted(picture):
        held.append(MEMORY.used)
        return load(picture)
    monkeypatch.setattr(ImageFile.ImageFile, 'load', noted)
    limited(monkeypatch, 60 * MB)
    with ThreadPoolExecutor(len(files)) as threads:
        reasons = list(threads.map(lambda file: attempt(decoded, file, PixelFormat(32))[1], files))
    assert not any(reasons) and 0 < max(held) <= 60 * MB and MEMORY.used == 0


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    "A picture in an icon, too, which Pillow decodes as it opens the file"
    bomb = png(7000, 7000, 'rgb_alpha8')
    for name, content in {'a.png': bomb, 'b.ico': ico(bomb), 'c.icns': icns(bomb), 'd.jpg': ico(bomb)}.items():
        (tmp_path/name).write_bytes(content)
    grown, _, _, reasons = zip(*(growth(file, 100 * MB) for file in sorted(tmp_path.iterdir())), strict=True)
    assert reasons[0] == ("7,000 x 7,000 pixels take 196.1 MB to decode, and 104.9 MB is the most: make it smaller")
    assert reasons[1:] == ("an icon of 7,000 x 7,000 pixels is none: save it as PNG",) * 3 and max(grown) < 20 * MB


def limited(monkeypatch, limit): monkeypatch.setattr(MEMORY, 'limit', limit)


@pytest.mark.parametrize('how', [{}, STREAM, dict(cache=True)], ids=['resident', 'streamed', 'cached'])
def test_too_large_is_named_in_the_report(tmp_path, monkeypatch, how):
    root = image_folder(tmp_path/'x', dict(a=4, b=4))
    (root/'a/large.png').write_bytes(png(2000, 1500, 'grey_alpha8'))
    limited(monkeypatch, 10 * MB)
    dls = dls_of(root, size=32, valid=0, **how)
    list(dls.train.ordered())
    assert "a/large.png (2,000 x 1,500 pixels take 12.0 MB to decode, and 10.5 MB is the most: make it smaller)" in (
        dls.report())


@pytest.mark.parametrize('name, options, need', [
    ('x.jpg', {}, 0), ('x.jpg', dict(progressive=True, subsampling=0), 6), ('x.jpg', dict(progressive=True), 3),
    ('x.png', {}, 4), ('x.webp', {}, 18), ('x.jp2', {}, 21), ('x.tif', {}, 4),
])
def test_what_decoding_takes(tmp_path, name, options, need):
    "Of a JPEG that is decoded at an eighth nothing, unless all of its coefficients are kept"
    Image.new('RGB', (2000, 1600)).save(tmp_path/name, **options)
    with pictures.open_picture(tmp_path/name) as x:
        x.draft(None, (32, 32))
        small = 4 / 64 if name == 'x.jpg' else 0
        told = decoding.decoding_memory(x)
        assert told == pytest.approx((need + small) * 3.2e6, rel=.01) or told == need == 0
        x.load()
        assert x.size == ((250, 200) if name == 'x.jpg' else (2000, 1600))


def test_a_jpeg_in_several_scans_without_saying_so(tmp_path):
    "Its first scan has one component of three"
    Image.new('RGB', (2000, 1600)).save(tmp_path/'x.jpg')
    content = (tmp_path/'x.jpg').read_bytes()
    start = content.index(b'\xff\xda\x00\x0c\x03')
    assert decoding._first_scan(io.BytesIO(content)) == 3
    assert decoding._first_scan(io.BytesIO(content[:start] + b'\xff\xff\xda\x00\x08\x01' + content[start:])) == 1
    for cut in (0, 1, 2, 5, start, start + 3): assert decoding._first_scan(io.BytesIO(content[:cut])) == 0


def test_more_pixels_than_pillow_opens(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    picture(0, (20, 20)).save(tmp_path/'x.png')
    reason = attempt(decoded, tmp_path/'x.png', PixelFormat(8))[1]
    assert reason == 'more than 200 pixels, where Pillow suspects an attack'


def test_a_side_that_no_memory_has(tmp_path):
    for size in (LARGEST_SIDE + 1, 10**9, 10**30):
        with pytest.raises(InputError, match=f'size={size} must be a whole number from 1 to 8192, or None'):
            dls_of(image_folder(tmp_path, dict(a=4)), size=size)


# ---------------------------------------------------------------- at a time

def test_memory_is_shared_and_first_come_is_first_served():
    memory, held, most, order = Memory(100), [], [], []
    def take(need):
        with memory.taken(need):
            order.append(need)
            held.append(need)
            most.append(sum(held))
            time.sleep(.02)
            held.remove(need)
    threads = []
    for need in (60, 90, 10, 10, 40, 100, 1, 300):
        threads.append(threading.Thread(target=take, args=(need,)))
        threads[-1].start()
        while len(memory._waiting) + len(order) < len(threads): time.sleep(.001)
    for thread in threads: thread.join(60)
    assert not memory._waiting
    assert order == [60, 90, 10, 10, 40, 100, 1, 300] and memory.used == 0
    assert max(total for total in most if total != 300) <= 100 and most[-1] == 300


def test_a_fork_holds_nothing():
    with MEMORY.taken(MEMORY.limit):
        child = os.fork()
        if not child:
            with within(5), MEMORY.taken(1): os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(KeyError), MEMORY.taken(5): raise KeyError
    assert MEMORY.used == 0


# ---------------------------------------------------------------- the same values

SPANS = dict(I=Span(-1000, 3000), F=Span(-2, 3))


def as_it_was(picture, side):
    "All of it turned, made 8-bit, put on white and converted before it is resized"
    picture.load()
    if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1: picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(('I', 'F')):
        x, span = np.asarray(picture).astype(np.float64), SPANS.get(picture.mode, Span(0, 65535))
        share = (x - span.low) * (255 / (span.high - span.low))
        picture = Image.fromarray(np.rint(share).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        white = Image.new('RGBA', picture.size, 'white')
        picture = Image.alpha_composite(white, picture.convert('RGBA'))
    picture = ImageOps.fit(picture.convert('RGB'), (side, side), Image.Resampling.BILINEAR)
    return np.array(picture).transpose(2, 0, 1)


def alike(picture, side, expected):
    "The same values; of a tall picture Pillow may resize the columns first, which is rounded otherwise"
    got = square_pixels(picture, PixelFormat(side, span=SPANS.get(picture.mode)))
    tall = picture.height >= 2 * picture.width or picture.width >= 2 * picture.height
    assert np.abs(got.astype(int) - expected).max() <= tall * (pictures.BAND < picture.width * picture.height)


def noise(mode, size, seed=0):
    "A picture in which every place has another value"
    g, (width, height) = np.random.default_rng(seed), size
    if mode == 'I;16B': return Image.fromarray(g.integers(0, 65536, (height, width), dtype=np.uint16).astype('>u2'))
    if mode == 'I;16': return Image.fromarray(g.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode == 'I': return Image.fromarray(g.integers(-1000, 3000, (height, width), dtype=np.int32))
    if mode == 'F': return Image.fromarray(g.normal(size=(height, width)).astype(np.float32))
    bands = dict(L=1, P=1, LA=2, PA=4, RGBA=4, RGBa=4, CMYK=4).get(mode, 3)
    x = g.integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode == '1': return Image.fromarray(x[..., 0] > 127)
    if mode == 'P':
        made = Image.fromarray(x[..., 0])
        made = made.convert('P')
        made.putpalette(g.integers(0, 256, 768, dtype=np.uint8).tobytes())
        return made
    if mode in ('PA', 'RGBa'): return Image.fromarray(x).convert(mode)
    return Image.frombytes(mode, size, x.tobytes())


MODES = ['1', 'L', 'P', 'LA', 'PA', 'RGB', 'RGBA', 'RGBa', 'CMYK', 'YCbCr', 'HSV', 'I', 'I;16', 'I;16B', 'F']
SIZES = [(40, 40), (61, 37), (37, 62), (7, 90), (300, 1), (1, 300), (3, 2)]


@pytest.mark.parametrize('band', [2**20, 1, 40, 1000])
@pytest.mark.parametrize('mode', MODES)
def test_values_do_not_depend_on_bands(monkeypatch, mode, band):
    monkeypatch.setattr(pictures, 'BAND', band)
    for size in SIZES:
        for side in (1, 9, 37, 64):
            x = noise(mode, size)
            alike(x, side, as_it_was(x.copy(), side))


@pytest.mark.parametrize('mode', MODES)
def test_16_bits_do_not_depend_on_bands(monkeypatch, mode):
    "Two copies of what is scaled are alike to one of 65,535"
    for size in SIZES:
        for side in (1, 9, 64):
            for channels in (1, 3):
                form, got = PixelFormat(side, channels, 16, SPANS.get(mode, Span(0, 65535))), []
                for band in (2**20, 1, 40):
                    monkeypatch.setattr(pictures, 'BAND', band)
                    monkeypatch.setattr(values, 'BAND', band)
                    got.append(square_pixels(noise(mode, size), form).astype(int))
                tall = max(size) >= 2 * min(size)
                assert max(np.abs(x - got[0]).max() for x in got) <= (257 * tall if mode not in SPANS else 1)


@pytest.mark.parametrize('band', [2**20, 1, 100])
@pytest.mark.parametrize('orientation', range(10))
def test_turning_does_not_depend_on_bands(monkeypatch, orientation, band):
    "Nor what EXIF says that there is not"
    monkeypatch.setattr(pictures, 'BAND', band)
    exif = Image.Exif()
    exif[0x112] = orientation
    for mode, name in (('RGB', 'JPEG'), ('L', 'PNG'), ('I;16', 'PNG'), ('RGBA', 'TIFF'), ('L', 'JPEG')):
        for size in ((61, 37), (37, 62), (1, 30)):
            file = io.BytesIO()
            noise(mode, size).save(file, name, exif=exif)
            for side in (9, 37):
                with Image.open(file) as x: expected = as_it_was(x, side)
                with Image.open(file) as x: alike(x, side, expected)


@pytest.mark.parametrize('mode', ['L', 'RGB', 'P', '1'])
def test_a_colour_that_is_transparent(monkeypatch, mode):
    x = noise(mode, (50, 40))
    file = io.BytesIO()
    x.save(file, 'PNG', transparency=x.getpixel((20, 20)) if mode == 'RGB' else 1)
    for band in (2**20, 70):
        monkeypatch.setattr(pictures, 'BAND', band)
        with Image.open(file) as x: expected = as_it_was(x, 12)
        with Image.open(file) as x: alike(x, 12, expected)


def test_values_that_are_not_finite(monkeypatch):
    for band in (2**20, 10):
        monkeypatch.setattr(pictures, 'BAND', band)
        monkeypatch.setattr(values, 'BAND', band)
        for value in (np.nan, np.inf, -np.inf):
            x = np.zeros((20, 20), np.float32)
            x[13, 7] = value
            reason = attempt(square_pixels, Image.fromarray(x), PixelFormat(8))[1]
            kind = 'NaN, which is no value' if np.isnan(value) else 'infinite values, which are none'
            assert reason == f"holds {kind} of a pixel: mend it"
        assert (square_pixels(Image.fromarray(np.full((20, 20), -5, np.int32)), PixelFormat(8)) == 0).all()
