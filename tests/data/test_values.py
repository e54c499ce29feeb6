"Values of more than 8 bits: one range for all pictures of a data set, and nothing of it is lost without a word"
import json
from functools import partial

import numpy as np
import pytest
import torch
from fastai.vision.data import ImageDataLoaders
from helpers.deep import folder_of, plain_dls, saved, source_of, values
from helpers.folders import everything, image_folder, picture, same
from helpers.learners import BARE, small
from helpers.pictures import ARCH
from helpers.refusals import said_briefly
from PIL import Image

from fastcontrast import sample
from fastcontrast.core import InputError
from fastcontrast.data import image_dls
from fastcontrast.embed import embed, embed_picture
from fastcontrast.export import encoder_info, load_encoder
from fastcontrast.formats import PixelFormat, Span
from fastcontrast.learner import contrastive_learner
from fastcontrast.pictures import square_pixels
from fastcontrast.views import plain_view, two_views

SIDE = 16
RAMP = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
STREAM = dict(memory=1e-12)
dls_of = partial(plain_dls, size=SIDE)


def to_nan(x): return x * float('nan') if x.is_floating_point() else x
to_nan.order = 99  # when they are floats


def shares(dls, channel=0):
    "Values of a channel as shares of the range, float64 [N, side, side]"
    x = values(dls)[:, channel].double()
    return x / (65535 if values(dls).dtype == torch.uint16 else 255)


# ---------------------------------------------------------------- what is there is kept

@pytest.mark.parametrize('bits', [9, 10, 12, 14, 16])
@pytest.mark.parametrize('kind', ['png', 'tif', 'npy', 'npz', 'array', 'items', 'pil', 'tensor', 'channels first'])
def test_every_level_is_kept(tmp_path, bits, kind, capsys):
    x = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    dls = dls_of(source_of(tmp_path/'p', [x, x // 2, x // 3, x // 4], kind))
    got = values(dls)
    assert got.dtype == torch.uint16 and got.shape == (4, 3, SIDE, SIDE) and dls.value_range == (0, 2**bits - 1)
    assert np.array_equal(got[0, 1], np.rint(x.astype(np.float64) / (2**bits - 1) * 65535))
    assert len(np.unique(got[0])) == len(np.unique(x))
    assert f'{bits}-bit values, 0 to {2**bits - 1:,}, become 0 to 1' in capsys.readouterr().out


SIGNED = [np.rint(low + width * RAMP) for low, width in ((-1000, 4000), (-1000, 1100), (-900, 10), (500, -800))]


@pytest.mark.parametrize('kind, dtype', [
    ('tif', 'int32'), ('npy', 'int16'), ('npy', '>i4'), ('npz', 'int64'), ('array', 'int32'), ('items', 'int16'),
    ('tensor', 'int64'), ('tensor', 'int32'), ('pil', 'int32'), ('items', 'float64'), ('npy', 'float32')])
def test_brightness_keeps_its_order(tmp_path, kind, dtype, capsys):
    "Each picture by its own values, as it was once, would make all means the same"
    pictures = [x.astype(dtype) for x in SIGNED]
    dls = dls_of(source_of(tmp_path/'p', pictures, kind))
    assert dls.value_range == (-1000, 3000) and 'values, -1,000 to 3,000, become 0 to 1' in capsys.readouterr().out
    got = shares(dls).numpy() * 4000 - 1000
    assert np.abs(got - np.stack(SIGNED)).max() <= 4000 / 65535


FLOATS = [RAMP, RAMP * 40, RAMP * .3, 1 - RAMP]


@pytest.mark.parametrize('kind, dtype', [
    ('tif', 'float32'), ('npy', 'float64'), ('npy', 'float16'), ('array', 'float32'), ('items', 'float64'),
    ('tensor', 'float32'), ('tensor', 'float16'), ('pil', 'float32')])
def test_floats_have_one_rule(tmp_path, kind, dtype):
    pictures = [x.astype(dtype) for x in FLOATS]
    dls = dls_of(source_of(tmp_path/'p', pictures, kind))
    assert dls.value_range == (0, 40)
    assert np.abs(shares(dls).numpy() * 40 - np.stack(pictures).astype(np.float64)).max() <= 40 / 65535


def test_floats_that_were_bytes_and_not_divided(capsys):
    "0 to 255, though the least and the greatest of those that were looked at lie within"
    x = np.stack([RAMP * k for k in (100, 248.5)]) + 3
    dls = dls_of(x.astype(np.float32))
    said = 'float values, as of bytes that were not divided by 255, 0 to 255, become 0 to 1 in all pictures'
    assert dls.value_range == (0, 255) and said in capsys.readouterr().out
    assert np.abs(shares(dls).numpy() * 255 - x).max() <= 255 / 65535
    for low, high in ((20, 255), (0, 200), (-1, 255), (0, 256)):
        assert dls_of(low + (high - low) * np.stack([RAMP] * 2)).value_range == (low, high)


def test_floats_within_one_are_shares_of_it(capsys):
    dls = dls_of([torch.from_numpy(x * .5).float() for x in (RAMP, RAMP * .2)])
    assert dls.value_range == (0, 1) and 'float values, 0 to 1,' in capsys.readouterr().out
    assert float(shares(dls).max()) == pytest.approx(.5, abs=1e-5)
    dls = dls_of([torch.from_numpy(x * 3).bfloat16() for x in (RAMP, RAMP * .2)])
    assert dls.value_range == (0, 3) and values(dls).dtype == torch.uint16


def test_a_range_of_ones_own(tmp_path):
    "What is outside is clipped, and that was asked for"
    pictures = [x.astype(np.int16) for x in SIGNED]
    for kind in ('npy', 'items', 'array'):
        dls = dls_of(source_of(tmp_path/kind, pictures, kind), value_range=(0, 2000))
        assert dls.value_range == (0, 2000) and dls.notes == [] and dls.report() == ''
        assert np.abs(shares(dls).numpy() * 2000 - np.stack(SIGNED).clip(0, 2000)).max() <= 2000 / 65535


def test_resizing_keeps_the_bits():
    "With antialiasing: a fine ramp made small has the means of its parts, to the last of 16 bits"
    x = np.rint(np.linspace(0, 4095, 64 * 64).reshape(64, 64)).astype(np.uint16)
    form, parts = PixelFormat(16, 1, 16, Span(0, 4095)), x.reshape(16, 4, 16, 4).mean((1, 3))
    for large in (x, np.kron(x, np.ones((12, 12), np.uint16))):  # the second in bands
        got = square_pixels(Image.fromarray(large), form)[0] * (4095 / 65535)
        assert np.abs(got - parts)[1:-1, 1:-1].max() < .1 and len(np.unique(got)) == 256


def test_views_see_the_values():
    x = torch.from_numpy(np.rint(RAMP * 65535).astype(np.uint16)).expand(2, 3, -1, -1)
    exact = torch.from_numpy(np.rint(RAMP * 65535) / 65535).float()
    assert torch.allclose(plain_view(x, SIDE)[1, 2], exact, atol=1e-7)
    torch.manual_seed(0)
    made = two_views(8)(x)['views']
    torch.manual_seed(0)
    assert torch.equal(made, two_views(8)(exact.expand(2, 3, -1, -1))['views']) and made.dtype == torch.float32


# ---------------------------------------------------------------- 8 bits stay 8 bits

def test_bytes_are_as_they_were(tmp_path):
    image_folder(tmp_path, dict(a=4), size=(SIDE, SIDE))
    dls = dls_of(tmp_path)
    assert values(dls).dtype == torch.uint8 and dls.value_range is None and dls.notes == []
    assert torch.equal(values(dls)[0], torch.from_numpy(np.array(Image.open(tmp_path/'a/000.png'))).permute(2, 0, 1))


@pytest.mark.parametrize('dtype', ['float32', 'float64', 'float16'])
def test_floats_that_were_bytes_are_kept_as_such(dtype):
    "As of ToTensor"
    x = np.stack([np.array(picture(i, (SIDE, SIDE))) for i in range(4)])
    dls = dls_of((torch.from_numpy(x) / 255).to(getattr(torch, dtype)).permute(0, 3, 1, 2))
    assert torch.equal(values(dls), torch.from_numpy(x).permute(0, 3, 1, 2))
    assert dls.notes == [] and dls.value_range is None


def test_few_levels_need_no_more(tmp_path, capsys):
    x = np.rint(RAMP * 200).astype(np.uint16)
    dls = dls_of(folder_of(tmp_path, [x, x // 2], 'png'))
    assert values(dls).dtype == torch.uint8 and dls.value_range == (0, 255) and np.array_equal(values(dls)[0, 0], x)
    assert '8-bit values, 0 to 255' in capsys.readouterr().out
    assert values(dls_of([RAMP > .5] * 2))[0, 0].unique().tolist() == [0, 255]


def test_bytes_beside_deep_ones_have_their_own_range(tmp_path, capsys):
    deep = np.rint(RAMP * 4095).astype(np.uint16)
    grey = np.rint(RAMP * 255).astype(np.uint8)
    folder_of(tmp_path/'a', [deep, deep], 'png')
    folder_of(tmp_path/'b', [grey, grey], 'png')
    dls = dls_of(tmp_path)
    assert '12-bit values, 0 to 4,095, become 0 to 1 in all pictures; those of 8-bit pictures are 0 and 255' in (
        capsys.readouterr().out)
    assert np.array_equal(values(dls)[2, 0], grey.astype(np.uint16) * 257)
    assert np.abs(shares(dls)[0] - shares(dls)[2]).max() <= .5 / 255 + .5 / 4095
    dls = dls_of([deep, grey], value_range=(0, 8190))
    assert float(shares(dls)[0].max()) == pytest.approx(.5, abs=1e-4) and float(shares(dls)[1].max()) == 1
    assert dls.notes == ["values 0 to 8,190 become 0 to 1; those of 8-bit pictures are 0 and 255"]


def test_a_range_of_bytes(tmp_path):
    "For 8-bit pictures that use few of their values; one that can't be of such changes nothing, and that is said"
    x = np.stack([np.array(picture(i, (SIDE, SIDE))) // 4 for i in range(2)])
    stretched = np.rint(x.clip(10, 60).astype(float) * 5.1 - 51).transpose(0, 3, 1, 2)
    for source in (x, [Image.fromarray(y) for y in x], folder_of(tmp_path, x, 'png')):
        dls = dls_of(source, value_range=(10, 60))
        assert values(dls).dtype == torch.uint8 and np.abs(values(dls).numpy() - stretched).max() <= 1
        assert dls.value_range == (10, 60) and dls.notes == []
    dls = dls_of(x, value_range=(0, 4095))
    assert np.array_equal(values(dls), x.transpose(0, 3, 1, 2)) and 'is not of such' in dls.notes[0]


@pytest.mark.parametrize('kind', ['png', 'npy', 'array', 'pil'])
@pytest.mark.parametrize('dtype, top, value_range, words', [
    (np.uint16, 4095, (10**5, 2 * 10**5), 'all values of the pictures that were looked at are outside of 100,000'),
    (np.uint8, 255, (0, 1), '% of the values of the pictures that were looked at are outside of 0 to 1 '),
    (np.uint8, 100, (200, 255), 'all values of'), (np.uint16, 4095, (0, 100), '97.'), (np.uint16, 4095, (0, 500), None),
    (np.uint8, 255, (0, 40), None)])
def test_a_range_that_has_hardly_a_value(tmp_path, kind, dtype, top, value_range, words):
    "May be meant; where it is a mistake, pictures are black or white all over"
    x = np.rint(RAMP * top).astype(dtype)
    notes = dls_of(source_of(tmp_path, [x] * 3, kind), value_range=value_range).notes
    assert len(notes) == (words is not None) and all(words in note and '--range' in note for note in notes)


def test_one_value_everywhere():
    "However large it is, it has a range"
    for value in (1e20, -3e38, 0, -2.5, 2.**60, 1e308):
        dls = dls_of([np.full((SIDE, SIDE), value)] * 2)
        assert dls.value_range[0] < dls.value_range[1] and not values(dls).double().any()


def test_integers_beside_floats_are_said():
    x = np.rint(RAMP * 4095).astype(np.uint16)
    for other in (RAMP, np.rint(RAMP * 255) / 255):
        assert dls_of([x, other]).notes[0].startswith('values of integers and of floats, 0 to 4,095, become 0 to 1')


def test_an_export_says_its_range(tmp_path):
    x = np.rint(RAMP * 4000).astype(np.uint16)
    for source, extra in (([x] * 4, dict(value_range=[0, 4095])), ([picture(i, (SIDE, SIDE)) for i in range(4)], {})):
        learn = contrastive_learner(dls_of(source), ARCH, method=small('simclr'), **BARE)
        assert encoder_info(learn.export(tmp_path/'encoder'))['extra'] == extra


# ---------------------------------------------------------------- what does not fit

@pytest.mark.parametrize('bad, words', [(np.nan, 'holds NaN'), (np.inf, 'infinite'), (-np.inf, 'infinite')])
@pytest.mark.parametrize('stream', [{}, STREAM])
def test_values_that_are_none(tmp_path, bad, words, stream):
    pictures = [x.astype(np.float32) for x in FLOATS]
    pictures[2][5, 7] = bad
    for kind in ('tif', 'npy', 'npz'):
        dls = dls_of(source_of(tmp_path/kind, pictures, kind), **stream)
        assert len(values(dls)) == 4 - (not stream) and f'002.{kind} (holds' in dls.report() and words in dls.report()
        assert dls.value_range == (0, 40)
    for kind in ('array', 'items', 'tensor', 'pil'):
        said_briefly(['item 2 of', words], dls_of, source_of(None, pictures, kind), **stream)
    for kind in ('tif', 'npy') if not stream else ():
        said_briefly(['no picture', words], dls_of, source_of(tmp_path/f'all {kind}', pictures[2:3] * 3, kind))


@pytest.mark.parametrize('how', [{}, STREAM, STREAM | dict(workers=2)])
def test_what_is_outside_of_a_found_range_is_counted(tmp_path, monkeypatch, how):
    monkeypatch.setattr(sample, 'SAMPLE', 2)  # the first and the last
    x = np.rint(RAMP * 1000).astype(np.uint16)
    dls = dls_of(folder_of(tmp_path, [x, x, x * 5, x], 'png'), **how)
    got = values(dls)
    assert dls.value_range == (0, 1023) and got.double().max() == 65535
    if not how: assert '1 picture has values outside of 0 to 1,023' in dls.notes[-1] and dls.report() == ''
    else: assert dls.report().startswith('1 time a picture had values outside of 0 to 1,023')


@pytest.mark.parametrize('workers', [0, 2])
def test_a_cache_knows_how_many_are_outside(tmp_path, monkeypatch, workers, capsys):
    monkeypatch.setattr(sample, 'SAMPLE', 2)
    x = np.rint(RAMP * 1000).astype(np.uint16)
    folder_of(tmp_path/'p', [x, x, x * 5, x, x * 6, x], 'png')
    def opened(): return dls_of(tmp_path/'p', cache=True, workers=workers)
    first, again = opened(), opened()
    assert first.notes == again.notes and first.notes[-1].startswith('2 pictures have values outside of 0 to 1,023')
    assert int(again.span.outside) == 2
    store, = (tmp_path/'p.cache').glob('*.safetensors')
    header, pixels = json.loads(store.read_bytes()[8:4096]), store.read_bytes()[4096:]
    for stated in (None, '7', '-1', 'x'):  # as of before it was told; and lies
        capsys.readouterr()
        header['__metadata__'].pop('outside', None)
        if stated: header['__metadata__']['outside'] = stated
        store.write_bytes((4088).to_bytes(8, 'little') + json.dumps(header).encode().ljust(4088) + pixels)
        assert len(opened().notes) == len(first.notes) - (stated is None)
        assert ('no store of pictures' in capsys.readouterr().err) == bool(stated)


def test_the_first_of_its_kind_is_refused_by_name(tmp_path, monkeypatch):
    "No range is known for it, and any other would do harm"
    monkeypatch.setattr(sample, 'SAMPLE', 2)
    grey, deep = np.rint(RAMP * 255).astype(np.uint8), np.rint(RAMP * 4095).astype(np.uint16)
    folder_of(tmp_path, [grey, grey, grey], 'png')
    (tmp_path/'001.png').write_bytes(saved(deep, 'png'))
    dls = dls_of(tmp_path)
    assert len(dls.train.data) == 2 and '001.png (has more than 8 bits' in dls.report()
    said_briefly(['item 1 of list', 'value_range'], dls_of, [grey, deep, grey])


@pytest.mark.parametrize('workers', [0, 2])
def test_it_is_refused_in_a_sentence_by_workers_too(monkeypatch, workers):
    monkeypatch.setattr(sample, 'SAMPLE', 2)
    grey, deep = np.rint(RAMP * 255).astype(np.uint8), np.rint(RAMP * 4095).astype(np.uint16)
    dls = dls_of([grey, grey, deep, grey], **STREAM, workers=workers)
    for _ in range(2):
        with pytest.raises(InputError, match='^item 2 of list has more than 8 bits.*become 0 and 1[.]$'):
            list(dls.train.ordered())


def test_an_encoder_sees_one_picture_as_it_saw_those_of_its_training(tmp_path):
    x = np.rint(RAMP * 4095).astype(np.uint16)
    source = folder_of(tmp_path/'p', [x, x // 5, x // 2, x], 'png')
    learn = contrastive_learner(dls_of(source), ARCH, method=small('simclr'), **BARE)
    alone = tmp_path/'p/001.png'
    for encoder in (learn.model.encoder, load_encoder(learn.export(tmp_path/'encoder'))):
        embedded = embed(encoder, source, precision='fp32')
        assert embedded.pictures.value_range == (0, 4095)
        seen = embed_picture(encoder, alone, precision='fp32').features[0]
        torch.testing.assert_close(seen, embedded.features[1], rtol=1e-4, atol=1e-5)
        own = embed_picture(encoder, alone, precision='fp32', value_range=(0, 1023)).features[0]
        assert not torch.allclose(own, seen, rtol=1e-2)


def test_the_sample_is_spread_and_bounded(tmp_path, monkeypatch):
    seen = []
    look = sample.look_at
    monkeypatch.setattr(sample, 'look_at', lambda *args: seen.append(args[2]) or look(*args))
    pictures = [np.full((SIDE, SIDE), i, np.uint16) for i in range(600)]
    dls = dls_of(pictures)
    assert len(seen) == sample.SAMPLE and all(seen) and dls.value_range == (0, 1023)
    seen.clear()
    monkeypatch.setattr(sample, 'PIXELS', 10 * SIDE**2)
    dls_of(pictures)
    assert len(seen) == sample.SAMPLE and sum(seen) == 10
    repeated = [dls_of(pictures).value_range for _ in range(2)]
    assert repeated[0] == repeated[1]


def test_both_parts_have_one_range(tmp_path):
    low, high = np.rint(RAMP * 100).astype(np.uint16), np.rint(RAMP * 3000).astype(np.uint16)
    for part, x in dict(train=low, val=high).items():
        for name in 'ab': folder_of(tmp_path/part/name, [x, x, x], 'png')
    dls = dls_of(tmp_path, unlabelled=False)
    assert dls.value_range == (0, 4095) and dls.train.one_batch()[0].dtype == torch.uint16
    assert float(everything(dls.valid)[0].double().max()) == pytest.approx(3000 / 4095 * 65535, abs=1)


def test_who_judges_by_itself_has_its_own(tmp_path, capsys):
    low, high = np.rint(RAMP * 1000).astype(np.uint16), np.rint(RAMP * 60000).astype(np.uint16)
    for name in 'ab': folder_of(tmp_path/'b'/name, [high] * 6, 'png')
    dls = dls_of(folder_of(tmp_path/'a', [low] * 6, 'png'), valid=tmp_path/'b', unlabelled=False)
    assert dls.within == 'b' and dls.value_range == (0, 1023)
    assert float(everything(dls.valid)[0].double().max()) == pytest.approx(60000, abs=1)
    assert capsys.readouterr().out.count('become 0 to 1') == 2


@pytest.mark.parametrize('value_range', [(3,), (3, 3), (5, 1), (0, float('nan')), (0, float('inf')), 7, 'ab', (None, 1),
                                         (True, 2), [1, 2, 3], {}, (-1.7e308, 1.7e308), (0, 10**400), (0, 5e-324)])
def test_bad_ranges(value_range):
    said_briefly(['value_range=', '--range', 'two finite'], dls_of, [picture(0), picture(1)], value_range=value_range)


def test_fastai_scales_by_itself(tmp_path):
    image_folder(tmp_path, dict(a=4, b=4))
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.5, bs=2, num_workers=0, device='cpu')
    said_briefly(['fastai DataLoaders scale their pictures themselves'], image_dls, dls, value_range=(0, 9))
    said_briefly(['fastai DataLoaders resize their pictures themselves'], image_dls, dls, store_size=9)
    dls = ImageDataLoaders.from_folder(tmp_path, valid_pct=.5, bs=2, num_workers=0, device='cpu', batch_tfms=to_nan)
    said_briefly(['go from nan to nan'], image_dls, dls)


@pytest.mark.parametrize('x', [np.zeros((8, 8), complex), np.zeros((8, 8), 'U3'), np.zeros((8, 8), 'M8[s]')])
def test_what_is_no_number(x):
    with pytest.raises(InputError, match='item 0 of list (holds|should)'): dls_of([x, x])


# ---------------------------------------------------------------- the same, however they come

KINDS = dict(
    png16=('png', [np.rint(RAMP * 4095 * k / 9).astype(np.uint16) for k in range(1, 10)], {}),
    floats=('tif', [(RAMP * k).astype(np.float32) for k in range(9)], {}),
    grey=('png', [np.rint(RAMP * 255 * k / 9).astype(np.uint8) for k in range(9)], dict(channels=1)),
    deep_grey=('npy', [np.rint(RAMP * 999 * k).astype(np.int32) for k in range(9)], dict(channels=1)),
    alpha=('png', [np.random.default_rng(k).integers(0, 256, (SIDE, 20, 4), dtype=np.uint8) for k in range(9)],
           dict(channels=4)),
    spectral=('npy', [np.random.default_rng(k).integers(0, 5000, (20, 24, 13), dtype=np.uint16) for k in range(9)], {}),
    packed=('npz', [np.random.default_rng(k).normal(size=(20, 24, 5)) for k in range(9)], {}),
)


@pytest.mark.parametrize('kind', KINDS)
def test_resident_mapped_streamed_and_sharded_are_one(tmp_path, kind):
    suffix, pictures, given = KINDS[kind]
    folder, given = folder_of(tmp_path/'p', pictures, suffix), given | dict(size=12)
    resident = dls_of(folder, **given)
    channels = dict(png16=3, floats=3, alpha=4, spectral=13, packed=5).get(kind, 1)
    assert values(resident).shape[:2] == (9, channels) and resident.channels == channels
    others = [dls_of(folder, cache=tmp_path/'cache', **given), dls_of(folder, cache=tmp_path/'cache', **given),
              dls_of(folder, **STREAM, **given)]
    # processes hand on 8 bits and floats, of one channel or many
    workers = (0, 2) if kind in ('grey', 'floats', 'spectral') else (0,)
    if 2 in workers: others.append(dls_of(folder, **STREAM | dict(workers=2), **given))
    for other in others:
        resident.train.epoch = 0
        for _ in range(2): same(resident.train, other.train)
        same(resident.train.ordered(), other.train.ordered())
        same(resident.train.ordered(3), other.train.ordered(3))
        # but for the note that says where they are kept
        told = [[note for note in dls.notes if ' whole' not in note] for dls in (other, resident)]
        assert other.value_range == resident.value_range and told[0] == told[1]
    webdataset = pytest.importorskip('webdataset')
    with webdataset.TarWriter(str(tmp_path/'s.tar')) as tar:
        for i, x in enumerate(pictures): tar.write({'__key__': f'{i:03}', suffix: saved(x, suffix)})
    for n in workers:
        sharded = dls_of(tmp_path/'s.tar', workers=n, **given)
        assert torch.equal(values(sharded), values(resident)) and sharded.value_range == resident.value_range


def test_a_cache_is_of_one_range(tmp_path, capsys):
    x = np.rint(RAMP * 4095).astype(np.uint16)
    folder = folder_of(tmp_path/'p', [x, x // 2], 'png')
    found = values(dls_of(folder, cache=True))
    given = values(dls_of(folder, cache=True, value_range=(0, 8190)))
    assert 'is built again' in capsys.readouterr().err and not torch.equal(found, given)
    assert torch.equal(values(dls_of(folder, cache=True, value_range=(0, 4095))), found)
    dls_of(folder, cache=True, channels=1)
    names = {path.name for path in (tmp_path/'p.cache').iterdir() if path.suffix == '.safetensors'}
    assert names == {'p-all-16px-16bit.safetensors', 'p-all-16px-1ch-16bit.safetensors'}
