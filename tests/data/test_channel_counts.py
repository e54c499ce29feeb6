"Pictures of any number of channels: grey, transparency, and arrays of many"
import io
import sys
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from helpers.deep import folder_of, plain_dls, png16, saved, source_of, values
from helpers.folders import image_folder, picture
from helpers.refusals import said_briefly
from PIL import Image

from fastcontrast.arrays import channel_axis, open_array
from fastcontrast.core import InputError
from fastcontrast.decoding import MEMORY
from fastcontrast.formats import PixelFormat, Span
from fastcontrast.pictures import attempt, decoded, open_picture

SIDE = 12
dls_of = partial(plain_dls, size=SIDE)


def noise(seed, *shape, dtype=np.uint8): return np.random.default_rng(seed).integers(0, 256, shape, dtype=dtype)


# ---------------------------------------------------------------- one, three, four

@pytest.mark.parametrize('kind', ['png', 'jpg', 'items', 'array', 'tensor', 'pil', 'channels first'])
def test_grey_stays_grey_and_colour_becomes_it(tmp_path, kind):
    grey, colour = [noise(i, SIDE, SIDE) for i in range(3)], [noise(i, SIDE, SIDE, 3) for i in range(3)]
    x = values(dls_of(source_of(tmp_path/'g', grey, kind), channels=1))
    assert x.shape == (3, 1, SIDE, SIDE) and x.dtype == torch.uint8
    if kind != 'jpg': assert np.array_equal(x[:, 0], np.stack(grey))
    if kind == 'tensor': return  # [N, H, W, 3] is read so only where H is no 3
    x = values(dls_of(source_of(tmp_path/'c', colour, kind), channels=1))
    expected = np.stack([np.array(Image.fromarray(y).convert('L')) for y in colour])
    assert np.abs(x[:, 0].numpy().astype(int) - expected).max() <= (40 if kind == 'jpg' else 0)
    assert dls_of(source_of(tmp_path/'c', colour, kind)).channels == 3


def test_deep_colour_becomes_grey():
    x = np.random.default_rng(0).integers(0, 4096, (2, SIDE, SIDE, 3), dtype=np.uint16)
    got = values(dls_of(x, channels=1))[:, 0].double() * 4095 / 65535
    assert np.abs(got - x @ [.299, .587, .114]).max() < .6


def test_transparency_is_a_channel_where_four_are_wanted(tmp_path):
    "Colours are as they are in the file, also where they are not seen"
    x = [noise(i, SIDE, SIDE, 4) for i in range(3)]
    x[0][..., 3] = 0
    for kind in ('png', 'tif', 'webp', 'items', 'array', 'pil'):
        if kind == 'webp':
            folder = tmp_path/kind
            folder.mkdir()
            for i, y in enumerate(x): Image.fromarray(y).save(folder/f'{i}.webp', lossless=True, exact=True)
        else: folder = source_of(tmp_path/kind, x, kind)
        dls = dls_of(folder, channels=4)
        assert dls.channels == 4 and np.array_equal(values(dls), np.stack(x).transpose(0, 3, 1, 2)), kind
    seen = values(dls_of(tmp_path/'png'))
    assert seen.shape == (3, 3, SIDE, SIDE) and (seen[0] == 255).all()
    small = values(dls_of(tmp_path/'png', channels=4, size=5))
    assert np.array_equal(small[:, :3], values(dls_of([y[..., :3] for y in x], size=5)))


def test_palettes_and_grey_have_transparency_too(tmp_path):
    palette = Image.new('P', (SIDE, SIDE), 3)
    palette.putpalette(list(range(256)) * 3)
    palette.save(tmp_path/'a.png', transparency=3)
    assert values(dls_of([tmp_path/'a.png'] * 2, channels=4))[0, :, 0, 0].tolist() == [9, 10, 11, 0]
    x = noise(0, SIDE, SIDE, 2)
    Image.fromarray(x).save(tmp_path/'b.png')
    assert np.array_equal(values(dls_of([tmp_path/'b.png'] * 2, channels=2))[0], x.transpose(2, 0, 1))


@pytest.mark.parametrize('orientation', range(1, 9))
def test_each_channel_lies_as_the_picture_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    x = noise(0, 20, 30, 4)
    for name in ('a.png', 'a.tif'):
        packed = dict(compression='tiff_adobe_deflate') if name == 'a.tif' else {}
        Image.fromarray(x).save(tmp_path/name, exif=exif, **packed)
        Image.fromarray(x[..., :3]).save(tmp_path/f'3{name}', exif=exif, **packed)
        four, three = decoded(tmp_path/name, PixelFormat(9, 4)), decoded(tmp_path/f'3{name}', PixelFormat(9))
        assert np.array_equal(four[:3], three)


# ---------------------------------------------------------------- any number

@pytest.mark.parametrize('n', [2, 4, 5, 13])
@pytest.mark.parametrize('kind', ['npy', 'npz', 'items', 'array', 'channels first'])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'int16', 'float32'])
def test_arrays_of_any_number(tmp_path, n, kind, dtype):
    "As many as the first has, if none are given"
    x = [noise(i, SIDE, SIDE, n, dtype=np.uint8).astype(dtype) * (1 if dtype == 'uint8' else 10) for i in range(3)]
    source = source_of(tmp_path/'p', x, kind)
    told, found = dls_of(source, channels=n, value_range=(0, 2550)), dls_of(source, value_range=(0, 2550))
    assert told.channels == found.channels == n and torch.equal(values(told), values(found))
    assert found.notes[0] == f'{n} channels, as the first picture has (channels, --channels)'
    expected = np.stack(x).transpose(0, 3, 1, 2)
    if dtype != 'uint8': expected = np.rint(expected / 2550 * 65535)
    assert np.array_equal(values(told), expected) and values(told).shape == (3, n, SIDE, SIDE)
    assert values(dls_of(source, channels=n, size=5, value_range=(0, 2550))).shape == (3, n, 8, 8)


def test_where_both_could_be_meant():
    "In tensors the channels are first, in arrays last"
    x = noise(0, 2, 4, 8, 4)
    assert np.array_equal(values(dls_of(x, channels=4, size=4))[0].shape, (4, 6, 6))
    for axis, source in ((-1, x), (-3, torch.from_numpy(x))):
        assert channel_axis(x.shape[1:], isinstance(source, torch.Tensor), 4) == axis


@pytest.mark.parametrize('shape, first, channels, axis', [
    ((8, 8), True, None, -1), ((3, 9, 9), False, None, -3), ((9, 9, 1), True, 3, -1), ((9, 9, 4), True, 3, None),
    ((9, 9, 4), True, None, -1), ((9, 9, 13), False, None, -1), ((13, 9, 9), False, None, -3),
    ((20, 24, 5), True, None, -1), ((5, 20, 24), False, None, -3), ((8, 8, 8), True, None, None),
    ((8, 8, 8), True, 8, -3), ((5,), True, 1, None)])
def test_where_channels_are(shape, first, channels, axis): assert channel_axis(shape, first, channels) == axis


@pytest.mark.parametrize('kind', ['npy', 'npz'])
def test_another_number_is_named(tmp_path, kind):
    x = [noise(i, SIDE, SIDE, 5) for i in range(4)]
    x[2] = x[2][..., :4]
    dls = dls_of(folder_of(tmp_path/'p', x, kind))
    assert len(dls.train.data) == 3 and f"002.{kind} (is an array of the shape [12, 12, 4]" in dls.report()
    assert 'are to have 5 channels' in dls.report()
    said_briefly(['item 2 of list is an array of the shape [12, 12, 4]', '--channels'], dls_of, x)
    said_briefly(['item 0 of Arrays', 'to have 4 channels'], dls_of, np.stack(x[:2]), channels=4)


def test_pictures_of_another_number(tmp_path):
    image_folder(tmp_path, dict(a=2), size=(SIDE, SIDE))
    with pytest.raises(InputError, match=r'has 3 channels, and 4 are wanted \(channels, --channels\)'):
        dls_of(tmp_path, channels=4)
    said_briefly(['item 0 of list has 3 channels, and 5 are wanted'], dls_of, [picture(0), picture(1)], channels=5)
    said_briefly(['item 0 of list has 1 channel, and 5 are wanted'], dls_of, [noise(0, 8, 8)] * 2, channels=5)
    for channels in (0, -1, 2.5, 'three', True, 10**9):
        said_briefly(['channels='], dls_of, tmp_path, channels=channels)
    said_briefly(['should be [N, H, W]'], dls_of, noise(0, 4, 8, 8, 8, 3))
    said_briefly(['item 0 of Arrays is an array of the shape [8, 8, 8]: say how many'], dls_of, noise(0, 4, 8, 8, 8))


def test_files_of_arrays_are_pictures_where_there_are_no_others(tmp_path):
    folder_of(tmp_path/'a', [noise(i, SIDE, SIDE, 3) for i in range(3)], 'npy')
    folder_of(tmp_path/'b', [noise(i, SIDE, SIDE) for i in range(3)], 'npz')
    dls = dls_of(tmp_path, unlabelled=False)
    assert dls.classes == ['a', 'b'] and dls.train.data.names[0] == 'a/000.npy' and len(dls.train.data) == 6
    assert len(dls_of(tmp_path).train.data) == 6 and values(dls).dtype == torch.uint8
    picture(0).save(tmp_path/'b/x.png')
    for kwargs in (dict(unlabelled=False), {}):
        said_briefly(['1 picture'], dls_of, tmp_path, **kwargs)
    assert len(dls_of([tmp_path/'a/000.npy', tmp_path/'b/x.png']).train.data) == 2


# ---------------------------------------------------------------- what Pillow would cut down

@pytest.mark.parametrize('channels', [2, 3, 4])
def test_png_of_16_bits_keeps_them(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 65536, (SIDE, SIDE, channels), dtype=np.uint16)
    if channels != 3: x[:4, :, -1], x[4:8, :, -1], x[8:, :, -1] = 0, 65535, 32768
    for i in range(2): (tmp_path/f'{i}.png').write_bytes(png16(x))
    dls = dls_of(tmp_path)
    colour = x[..., :3] if channels > 2 else x[..., :1]
    seen = 1 if channels == 3 else x[..., -1:] / 65535
    expected = (colour / 65535 * seen + 1 - seen).transpose(2, 0, 1) * 65535
    assert dls.value_range == (0, 65535) and np.abs(values(dls)[0].numpy() - expected).max() <= 1
    assert open_picture(tmp_path/'0.png', complete=False).size == (SIDE, SIDE)
    if channels != 3: assert np.array_equal(values(dls_of(tmp_path, channels=channels))[0], x.transpose(2, 0, 1))


@pytest.mark.parametrize('channels', [2, 3, 4])
def test_png_of_16_bits_that_is_broken(tmp_path, channels):
    "Wherever it is: it is named, and the process lives"
    file, form = png16(noise(0, 40, 40, channels).astype(np.uint16) * 200), PixelFormat(8, channels, 16, Span(0, 65535))
    assert not attempt(decoded, io.BytesIO(file), form)[1]
    for start in range(41, len(file) - 20, 97):
        for broken in (file[:start], file[:start] + b'\xff' * 8 + file[start + 8:], file[:start] + file[start + 9:]):
            pixels, reason = attempt(decoded, io.BytesIO(broken), form)
            assert (pixels is None) == bool(reason) and '\n' not in reason


def as_text(x): return b'# 5\n' + b' '.join(b'%d' % value for value in x.flat).replace(b' ', b' # 9\r\n', 3) + b'\n'


@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('top', [300, 1023, 4095, 65535])
def test_ppm_keeps_its_values(tmp_path, channels, top, plain):
    "Not stretched to 16 bits, so that a range of one's own is one of these; and all bits of a colour"
    x = np.linspace(0, top, SIDE * SIDE * channels).reshape(SIDE, SIDE, channels).astype(np.uint16)
    suffix, kind = {1: ('pgm', 'P2' if plain else 'P5'), 3: ('ppm', 'P3' if plain else 'P6')}[channels]
    def written(top, x): return f'{kind} {SIDE} {SIDE} {top}\n'.encode() + (as_text(x) if plain else x.tobytes())
    file = written(top, x.astype('>u2'))
    for i in range(3): (tmp_path/f'{i}.{suffix}').write_bytes(file[:-20] if i == 2 else file)
    for kwargs in ({}, dict(value_range=(0, top))):
        dls = dls_of(tmp_path, channels=channels, **kwargs)
        low, high = dls.value_range
        assert (low, high) == (0, top if kwargs else 2**top.bit_length() - 1) and len(dls.train.data) == 2
        assert f'2.{suffix} (' in dls.report()  # it was cut off
        expected = x.transpose(2, 0, 1) / high * 65535
        assert np.abs(values(dls)[0].double().numpy() - expected).max() < .51
    grey = written(255, (x % 256).astype(np.uint8))
    assert np.array_equal(decoded(io.BytesIO(grey), PixelFormat(SIDE, channels)), (x % 256).transpose(2, 0, 1))


@pytest.mark.parametrize('text, words', [
    (b'1 2 3', 'has 3 values'), (b'1 2 3 -4', 'something else than numbers'), (b'1 2 3 x', 'something else'),
    (b'1 2 3 999', 'the value 999'), (b'1 2 3 ' + b'9' * 40, 'has the value'),
    (b' ' * 2**21 + b'1 2 3 4', 'bytes of text'), (b'', 'has 0 values')])
def test_plain_pgm_that_lies(text, words):
    pixels, reason = attempt(decoded, io.BytesIO(b'P2 2 2 300\n' + text), PixelFormat(2, 1, 16, Span(0, 300)))
    assert pixels is None and words in reason


def jpeg2000(x, bits, suffix='jp2'):
    "A file of Pillow's that has 16 bits, or colours of 8; its header says others. A sign is in bit 8 of them"
    file = io.BytesIO()
    Image.fromarray(x).save(file, 'JPEG2000', no_jp2=suffix == 'j2k', irreversible=False)
    content = bytearray(file.getvalue())
    start = content.index(b'\xff\x4f\xff\x51') + 42
    for k in range(3 if x.ndim == 3 else 1): content[start + 3 * k] = bits - 1
    if suffix == 'jp2': content[content.index(b'ihdr') + 14] = bits - 1
    return bytes(content)


@pytest.mark.parametrize('suffix', ['jp2', 'j2k'])
@pytest.mark.parametrize('bits, moved', [(16, 0), (12, 2**15 - 2**11), (10, 2**15 - 2**9), (16 + 128, 2**15),
                                         (12 + 128, 2**15)])
def test_grey_jpeg_2000_keeps_its_values(tmp_path, bits, moved, suffix):
    "A decoder adds half of the range, as many bits as the header says, to what has no sign"
    top = 2**(bits % 128) - 1
    x = np.linspace(0, top, SIDE * SIDE).reshape(SIDE, SIDE).round().astype(np.int64)
    if bits > 128: x -= 2**(bits % 128 - 1)
    for i in range(3): (tmp_path/f'{i}.{suffix}').write_bytes(jpeg2000((x + moved).astype(np.uint16), bits, suffix))
    dls = dls_of(tmp_path, channels=1)
    assert dls.report() == '' and dls.value_range == ((x.min(), x.max()) if bits > 128 else (0, top))
    assert np.abs(values(dls)[0, 0].double().numpy() - (x - x.min()) / top * 65535).max() < .51


@pytest.mark.parametrize('suffix', ['jp2', 'j2k'])
def test_jpeg_2000_whose_bits_are_not_read_is_refused_by_name(tmp_path, suffix):
    colour, grey = noise(0, SIDE, SIDE, 3), noise(0, SIDE, SIDE, dtype=np.uint16)
    files = dict(a=jpeg2000(colour, 8, suffix), b=jpeg2000(colour, 12, suffix), c=jpeg2000(grey, 20, suffix),
                 d=jpeg2000(grey, 16, suffix)[:60])
    for name, content in files.items(): (tmp_path/f'{name}.{suffix}').write_bytes(content)
    form = PixelFormat(SIDE, span=Span(0, 4095))
    found = {name: attempt(decoded, tmp_path/f'{name}.{suffix}', form) for name in 'abcd'}
    assert np.array_equal(found['a'][0], colour.transpose(2, 0, 1))
    assert found['b'][1].startswith('is a JPEG 2000 of 12 bits, of which 8 would be read')
    assert found['c'][1].startswith('is a JPEG 2000 of 20 bits, of which 16 would be read') and found['d'][1]


@pytest.mark.parametrize('options', [{}, dict(compression='zlib'), dict(planarconfig='separate')])
@pytest.mark.parametrize('dtype, shape', [('uint16', (20, 24, 3)), ('uint8', (20, 24, 5)), ('uint16', (20, 24, 4)),
                                          ('float32', (20, 24, 13)), ('uint16', (6, 20, 24))])
def test_spectral_tiff(tmp_path, dtype, shape, options):
    tifffile = pytest.importorskip('tifffile')
    first = shape[0] == 6
    if options and first: options = dict(compression='zlib')
    n, given = (shape[0], {}) if first else (shape[-1], dict(planarconfig='contig'))
    x = [noise(i, *shape).astype(dtype) * (1 if dtype == 'uint8' else 9) for i in range(2)]
    for i, y in enumerate(x):
        stored = np.moveaxis(y, -1, 0) if 'planarconfig' in options else y
        photo = 'rgb' if n in (3, 4) and not first else 'minisblack'
        tifffile.imwrite(tmp_path/f'{i}.tif', stored, photometric=photo, **(given | options))
    dls, array = dls_of(tmp_path, channels=n), dls_of(x if not first else torch.from_numpy(np.stack(x)), channels=n)
    assert dls.channels == n and torch.equal(values(dls), values(array))
    assert values(dls_of(tmp_path, channels=n, memory=1e-12)).shape[1] == n
    assert dls_of(tmp_path).channels == (3 if first or n == 4 else n)
    for wrong in (2, 7):
        with pytest.raises(InputError, match='no picture could be decoded'): dls_of(tmp_path, channels=wrong)


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_colours_that_are_multiplied_by_their_transparency(tmp_path, dtype):
    "Both ways to write it give one picture: with white under what is transparent, and with transparency as a channel"
    tifffile = pytest.importorskip('tifffile')
    top = 1 if dtype == 'float32' else np.iinfo(dtype).max
    x = np.random.default_rng(0).random((SIDE, SIDE, 4))
    x[..., 3] = x[..., 3] / 2 + .5
    x[0, 0] = 0, 0, 0, 1  # so that both have one range
    x[0, 1] = 1, 1, 1, 1
    x[0, 2] = 0, 0, 0, 0
    for kind, share in (('unassalpha', 1), ('assocalpha', x[..., 3:])):
        y = np.concatenate([x[..., :3] * share, x[..., 3:]], 2) * top
        (tmp_path/kind).mkdir()
        for i in range(2):
            tifffile.imwrite(tmp_path/kind/f'{i}.tif', (y if top == 1 else np.rint(y)).astype(dtype), photometric='rgb',
                             extrasamples=[kind])
    for channels in (3, 4):
        straight, multiplied = (values(dls_of(tmp_path/kind, channels=channels)).double()
                                for kind in ('unassalpha', 'assocalpha'))
        largest = 255 if dtype == 'uint8' else 65535
        assert (straight - multiplied).abs().max() <= (2 if dtype == 'uint8' else 3)
        if channels == 3: assert (straight[0, :, 0, 2] == largest).all()
        seen = x[..., :3] * x[..., 3:] + 1 - x[..., 3:] if channels == 3 else x
        assert np.abs(straight[0].numpy() / largest - seen.transpose(2, 0, 1)).max() < 3 / 255


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
def test_grey_that_is_multiplied_by_its_transparency(tmp_path, dtype):
    tifffile = pytest.importorskip('tifffile')
    x = np.full((SIDE, SIDE, 2), np.iinfo(dtype).max // 5, dtype)
    x[..., 0] //= 2
    for i in range(2):
        tifffile.imwrite(tmp_path/f'{i}.tif', x, photometric='minisblack', planarconfig='contig',
                         extrasamples=['assocalpha'])
    for channels, expected in ((2, [.5, .2]), (3, [.9] * 3), (1, [.9])):
        dls = dls_of(tmp_path, channels=channels, value_range=(0, np.iinfo(dtype).max))
        got = values(dls)[0, :, 0, 0].double().numpy() / np.iinfo(dtype).max
        assert np.abs(got - expected).max() < .01


def test_nothing_is_heard_of_many_channels(tmp_path, capfd):
    tifffile = pytest.importorskip('tifffile')
    for i in range(2):
        tifffile.imwrite(tmp_path/f'{i}.tif', noise(i, SIDE, SIDE, 13), photometric='minisblack', planarconfig='contig')
    whole = (tmp_path/'0.tif').read_bytes()
    (tmp_path/'2.tif').write_bytes(whole[:4] + b'\xff' * 4 + whole[8:])
    (tmp_path/'3\x1b[31m.tif').write_bytes(b'II*\0' + bytes(99))
    dls = dls_of(tmp_path)
    assert values(dls).shape[:2] == (2, 13) and capfd.readouterr().err == ''
    assert '2.tif, ' in dls.report() and '3\\x1b[31m.tif (holds no picture)' in dls.report()


@pytest.mark.parametrize('dtype, low, high', [('int8', -128, 127), ('uint32', 0, 2**32 - 1), ('int16', -2000, 2000),
                                              ('int32', -2**31, 2**31 - 1), ('uint16', 0, 65535), ('float64', -1, 2)])
@pytest.mark.parametrize('order', '<>')
def test_tiff_keeps_signs(tmp_path, dtype, low, high, order):
    "What Pillow takes for another type has its order all the same"
    tifffile = pytest.importorskip('tifffile')
    x = np.linspace(low, high, SIDE * SIDE).reshape(SIDE, SIDE).astype(dtype)
    for i in range(2): tifffile.imwrite(tmp_path/f'{i}.tif', x, byteorder=order)
    dls = dls_of(tmp_path, value_range=(low, high))
    got, expected = values(dls)[0, 0].double().numpy(), (x.astype(float) - low) / (high - low)
    assert np.abs(got / got.max() - expected).max() < 1e-5 and (np.diff(got.ravel()) >= 0).all()


def test_pages_that_are_left_out_are_said(tmp_path):
    tifffile = pytest.importorskip('tifffile')
    x = noise(0, 5, SIDE, SIDE)
    for i in range(2): tifffile.imwrite(tmp_path/f'{i}.tif', x, photometric='minisblack')
    dls = dls_of(tmp_path)
    assert np.array_equal(values(dls)[0, 0], x[0]) and 'of TIFFs with several pages the first is read' in dls.notes[0]
    assert np.array_equal(values(dls_of(tmp_path, channels=5))[0], x) and dls_of(tmp_path, channels=5).notes == []
    refused = 'no picture could be decoded, the first is|no picture could be decoded'
    with pytest.raises(InputError, match=f'({refused}).*has 5 channels, and 7 are wanted'): dls_of(tmp_path, channels=7)


def test_the_size_of_a_narrow_one():
    "Its channels are not taken for a side"
    for width, height in ((5, 1), (1, 5), (5, 3), (3, 5)):
        for n in (2, 3, 4): assert open_picture(io.BytesIO(png16(noise(0, height, width, n)))).size == (width, height)


def test_without_the_library(tmp_path, monkeypatch):
    tifffile = pytest.importorskip('tifffile')
    for i in range(2): tifffile.imwrite(tmp_path/f'{i}.tif', noise(i, 9, 9, 3).astype(np.uint16) * 9, photometric='rgb')
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    with pytest.raises(InputError, match=r"no picture could be decoded.*pip install 'fastcontrast\[tiff\]'"):
        dls_of(tmp_path)


# ---------------------------------------------------------------- files that lie

def npy(header, values=b''):
    text = repr(header).encode() if not isinstance(header, bytes) else header
    text = text.ljust(118) + b'\n'
    return b'\x93NUMPY\1\0' + len(text).to_bytes(2, 'little') + text + values


def header(shape, descr='|u1', order=False): return dict(descr=descr, fortran_order=order, shape=shape)


@pytest.mark.parametrize('content, words', [
    (npy(header((10**6, 10**6))), 'its header promises'), (npy(header((8, 8)), bytes(63)), 'its header promises'),
    (npy(header((8, 8)), bytes(65)), 'its header promises'), (npy(header((10**30, 9))), 'its header promises'),
    (npy(header((-8, -8)), bytes(64)), 'is no picture'), (npy(header((0, 8))), 'is no picture'),
    (npy(header((8,)), bytes(8)), 'is no picture'), (npy(header((2, 2, 2, 2)), bytes(16)), 'is no picture'),
    (npy(header((8, 8), '|O'), bytes(512)), 'no value'), (npy(header((8, 8), '<c8'), bytes(512)), 'no value'),
    (npy(header((8, 8), [('a', '|u1')]), bytes(64)), 'no value'), (npy(b'[' * 90), ''), (npy(b'1+1'), ''),
    (b'\x93NUMPY\3\0' + bytes(90), 'format'), (b'\x93NUMPY\1\0\xff\xff{', ''), (b'\x93NUMPY', ''),
    (b'\x93NUMPY\2\0\xff\xff\xff\x7f{', '')])
def test_arrays_that_lie(tmp_path, content, words):
    (tmp_path/'a.npy').write_bytes(content)
    form = PixelFormat(8, span=Span(0, 1))
    for file in (tmp_path/'a.npy', io.BytesIO(content)):
        pixels, reason = attempt(decoded, file, form)
        assert pixels is None and reason and words in reason and '\n' not in reason


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self): return open, (str(tmp_path/'written'), 'w')
    np.save(tmp_path/'a.npy', np.array([[Bomb()]], dtype=object), allow_pickle=True)
    np.savez(tmp_path/'b.npz', np.array([[Bomb()]], dtype=object), allow_pickle=True)
    for name in ('a.npy', 'b.npz'): assert 'object' in attempt(decoded, tmp_path/name, PixelFormat(8))[1]
    assert not (tmp_path/'written').exists()


def test_packed_arrays(tmp_path):
    x = noise(0, 8, 8)
    np.savez(tmp_path/'a.npz', other=noise(1, 3), image=x)
    assert np.array_equal(decoded(tmp_path/'a.npz', PixelFormat(8, 1))[0], x)
    np.savez(tmp_path/'b.npz', left=x, right=x)
    assert "holds the arrays left, right: call that of the picture 'image'" in attempt(
        decoded, tmp_path/'b.npz', PixelFormat(8))[1]
    with zipfile.ZipFile(tmp_path/'c.npz', 'w') as packed: packed.writestr('notes.txt', 'x')
    assert open_array(tmp_path/'c.npz') is None
    assert attempt(decoded, tmp_path/'c.npz', PixelFormat(8))[1] == 'not a picture'
    with zipfile.ZipFile(tmp_path/'d.npz', 'w', zipfile.ZIP_DEFLATED) as packed:
        packed.writestr('image.npy', npy(header((10**5, 10**5)), bytes(10**6)))
    assert 'its header promises' in attempt(decoded, tmp_path/'d.npz', PixelFormat(8))[1]


def test_what_would_take_too_much_memory(tmp_path, monkeypatch):
    x = np.zeros((400, 500, 13), np.uint16)
    (tmp_path/'a.npz').write_bytes(saved(x, 'npz'))
    np.save(tmp_path/'b.npy', x)
    (tmp_path/'c.png').write_bytes(png16(np.zeros((1000, 1000, 4), np.uint16)))
    monkeypatch.setattr(MEMORY, 'limit', 6_000_000)
    for name in ('a.npz', 'b.npy', 'c.png'):
        reason = attempt(decoded, tmp_path/name, PixelFormat(8, 13, 16, Span(0, 1)))[1]
        assert 'takes' in reason and 'make it smaller' in reason, reason
    monkeypatch.setattr(MEMORY, 'limit', 10_000_000)
    assert decoded(tmp_path/'b.npy', PixelFormat(8, 13, 16, Span(0, 1))).shape == (13, 8, 8) and MEMORY.used == 0


# ---------------------------------------------------------------- what may be meant as a channel

def test_pages_and_transparency_are_noted_unless_channels_are_asked_for(tmp_path):
    for i in range(3):
        pages = [Image.fromarray(noise(10 * i + k, SIDE, SIDE).astype(np.uint16) * 16) for k in range(4)]
        (tmp_path/'pages').mkdir(exist_ok=True)
        pages[0].save(tmp_path/f'pages/{i}.tif', save_all=True, append_images=pages[1:])
    said = 'of TIFFs with several pages the first is read, unless as many channels are asked for (channels, --channels)'
    dls = dls_of(tmp_path/'pages')
    assert dls.notes[0] == said and dls.channels == 3
    assert not any('pages' in note for note in dls_of(tmp_path/'pages', channels=1).notes)
    deep = [np.random.default_rng(i).integers(0, 65536, (SIDE, SIDE, 4), dtype=np.uint16) for i in range(3)]
    folder = folder_of(tmp_path/'alpha', deep, 'png')
    assert 'what has transparency as its last channel is put on white' in dls_of(folder).notes[0]
    assert not any('white' in note for note in dls_of(folder, channels=4).notes)
    assert dls_of(make_colours(tmp_path/'plain')).notes == []


def test_three_grey_pages_are_three_channels(tmp_path):
    "As a microscope writes them; three are what is read where nothing is said"
    pytest.importorskip('tifffile')
    x = [np.stack([noise(10 * i + k, SIDE, SIDE).astype(np.uint16) * 16 for k in range(3)]) for i in range(3)]
    for i, pages in enumerate(x):
        first, *others = map(Image.fromarray, pages)
        first.save(tmp_path/f'{i}.tif', save_all=True, append_images=others)
    for channels in (None, 3):
        dls = dls_of(tmp_path, channels=channels, value_range=(0, 65535))
        assert dls.channels == 3 and np.array_equal(values(dls), np.stack(x)) and 'TIFF' not in str(dls.notes)
    for i in range(3): Image.fromarray(x[i][0]).save(tmp_path/f'{i}.tif', save_all=True, append_images=others[:1])
    dls = dls_of(tmp_path, value_range=(0, 65535))
    assert np.array_equal(values(dls)[:, 2], np.stack(x)[:, 0]) and 'the first is read' in dls.notes[0]


def test_the_channels_are_told_and_not_the_bits(tmp_path):
    "Where no picture has the channels that are asked for, nothing is known of its values"
    folder = folder_of(tmp_path, [noise(i, 13, SIDE, SIDE).astype(np.uint16) * 9 for i in range(3)], 'npy')
    with pytest.raises(InputError, match='pictures are to have 3 channels') as e: dls_of(folder, channels=3)
    assert 'bits' not in str(e.value)


def make_colours(folder): return folder_of(folder, [noise(i, SIDE, SIDE, 3) for i in range(2)], 'tif')
