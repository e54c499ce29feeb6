"One picture of every kind as a square of bytes"
import io

import numpy as np
import pytest
from helpers.folders import dls_of, everything, picture
from helpers.odd import chunk
from PIL import Image

from fastcontrast.decoding import SMALL, decoding_memory
from fastcontrast.formats import PixelFormat
from fastcontrast.pictures import progress, square_pixels


def saved(picture, **kwargs):
    "What a decoder makes of the picture"
    file = io.BytesIO()
    picture.save(file, **kwargs)
    file.seek(0)
    return Image.open(file)


GREY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)
DEEP = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize('source, expected', [
    (saved(Image.fromarray(GREY), format='PNG'), GREY),
    (saved(Image.fromarray(GREY).convert('P'), format='PNG'), GREY),
    (saved(Image.fromarray(GREY).convert('P'), format='GIF'), GREY),
    (saved(Image.fromarray(np.stack([GREY] * 3, -1)).convert('CMYK'), format='TIFF'), GREY),
    (saved(Image.fromarray(GREY > 100), format='PNG'), (GREY > 100) * 255),
    (saved(Image.fromarray(DEEP), format='PNG'), np.rint(DEEP / 257)),
    (saved(Image.fromarray(DEEP), format='TIFF'), np.rint(DEEP / 257)),
    (saved(Image.fromarray(DEEP.astype(np.int32)), format='TIFF'), np.rint(DEEP / 257)),
    (Image.fromarray(DEEP.astype('>u2')), np.rint(DEEP / 257)),
    (Image.fromarray(DEEP.astype(np.int32) // 9), np.rint(DEEP // 9 / 257)),
    (saved(Image.fromarray(DEEP.astype(np.float32) / 65535), format='TIFF'), np.rint(DEEP / 257)),
    (Image.fromarray(DEEP.astype(np.float32) / 32768 - .5), np.rint((DEEP / 32768 - .5).clip(0, 1) * 255)),
    (saved(Image.fromarray(np.stack([GREY, 255 * (GREY > 100).astype(np.uint8)], -1)), format='PNG'),
     np.where(GREY > 100, GREY, 255)),
], ids='grey palette gif cmyk bilevel png16 tiff16 tiff32 big-endian int32 float clipped alpha'.split())
def test_modes(source, expected):
    pixels = square_pixels(source, PixelFormat(8))
    assert pixels.shape == (3, 8, 8) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_transparency_is_white():
    red = Image.new('RGBA', (8, 8), (200, 0, 0, 128))
    pixels = square_pixels(saved(red, format='PNG'), PixelFormat(8))
    assert pixels[:, 4, 4].tolist() == pytest.approx([227, 127, 127], abs=1)
    palette = Image.new('P', (8, 8), 3)
    palette.putpalette([0, 0, 0] * 256)
    assert (square_pixels(saved(palette, format='PNG', transparency=3), PixelFormat(4)) == 255).all()


def test_exif_rotation():
    lying = np.zeros((10, 10, 3), np.uint8)
    lying[:, 7:] = 255  # white on the right
    exif = Image.Exif()
    exif[0x112] = 6     # to be turned by 90 degrees clockwise: what was right is then below
    pixels = square_pixels(saved(Image.fromarray(lying), format='PNG', exif=exif), PixelFormat(10))
    assert (pixels[:, 7:] == 255).all() and (pixels[:, :7] == 0).all()


def test_exif_that_is_damaged_costs_no_picture():
    file = io.BytesIO()
    Image.fromarray(GREY).save(file, 'PNG')
    content = file.getvalue()
    header = len(b'\x89PNG\r\n\x1a\n') + 25
    for exif in (b'none at all', b'Exif\0\0MM', b'II*\0\xff'):
        damaged = Image.open(io.BytesIO(content[:header] + chunk(b'eXIf', exif) + content[header:]))
        assert (square_pixels(damaged, PixelFormat(8)) == GREY).all()


def test_large_jpegs_that_are_decoded_already():
    "As those of Hugging Face's data sets"
    loaded = saved(Image.new('RGB', (1100, 1000), 'red'), format='JPEG')
    loaded.load()
    assert loaded.width * loaded.height > SMALL and decoding_memory(loaded) == 0
    dls = dls_of([loaded] * 3, size=8, bs=2, valid=0)
    assert len(dls.train.data) == 3 and dls.report() == ''


def test_animation_shows_its_first_frame():
    frames = [Image.new('RGB', (6, 6), c) for c in ('red', 'blue')]
    pixels = square_pixels(saved(frames[0], format='GIF', save_all=True, append_images=frames[1:]), PixelFormat(6))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_single_pixel_and_shapes():
    dot = square_pixels(Image.new('RGB', (1, 1), (1, 2, 3)), PixelFormat(9))
    assert (dot == np.array([1, 2, 3])[:, None, None]).all()
    wide = np.zeros((10, 1000), np.uint8)
    wide[:, 495:505] = 255
    assert (square_pixels(Image.fromarray(wide), PixelFormat(10)) == 255).all()  # the centre
    assert square_pixels(picture(0, (3, 500)), PixelFormat(7)).shape == (3, 7, 7)


def test_large_jpegs_are_decoded_small(tmp_path):
    "...and look the same as the whole picture made small"
    tiles = np.asarray(picture(0, (12, 12)).convert('L').resize((168, 168), Image.Resampling.NEAREST))
    Image.fromarray(tiles).save(tmp_path/'a.jpg', quality=95)
    Image.fromarray(tiles).save(tmp_path/'b.png')
    x, _ = everything(dls_of(tmp_path, size=32).train.ordered())
    assert x.shape[-1] == 48 and (x[0].int() - x[1].int()).abs().float().mean() < 6


def test_progress_speaks_only_when_it_takes_long(capsys):
    assert list(progress(range(5), 'decoding')) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ''
    assert list(progress(range(5), 'decoding', patience=0)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err.splitlines() == ['decoding: 0 s to go', 'decoding: done']
