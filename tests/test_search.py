"Search your pictures: duplicates, outliers, and what is drawn"
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch
from helpers.channels import as_type, loaders, noise
from helpers.folders import image_folder, picture
from helpers.pictures import ARCH
from helpers.refusals import said
from PIL import Image

from fastcontrast.core import InputError
from fastcontrast.embed import Embedded, embed, embed_picture, load_embedded
from fastcontrast.models import make_encoder
from fastcontrast.search import draw_map, duplicates, outliers, retrieval_grid
from fastcontrast.views import plain_view


def encoder_for(channels=3):
    torch.manual_seed(0)
    encoder = make_encoder(ARCH, in_chans=channels, small_input=True, size=32).eval()
    encoder.pretrained_cfg.update(input_size=(channels, 32, 32), mean=(0.5,) * channels, std=(0.25,) * channels)
    return encoder


@pytest.fixture(scope='module')
def encoder(): return encoder_for()


@pytest.fixture(scope='module')
def embedded(encoder, tmp_path_factory):
    "Eleven pictures for training, of which one is there twice, and four for validation, which are all in training, too"
    root = tmp_path_factory.mktemp('search')/'p'
    image_folder(root/'train', dict(a=5, b=3))
    image_folder(root/'valid', dict(a=1, b=3))
    picture(sum(map(ord, 'a')) * 1000 + 2).save(root/'train/b/copy.bmp')
    for i in range(2): picture(sum(map(ord, 'b')) * 1000 + i + 10).save(root/f'train/b/own{i}.png')
    return embed(encoder, root, precision='fp32')


def given(h, parts=None, labels=None):
    "Features without pictures"
    classes = sorted(set(labels) - {''}) if labels else None
    y = torch.tensor([classes.index(label) if label else -1 for label in labels] if labels else [-1] * len(h))
    return Embedded(torch.as_tensor(h, dtype=torch.float32), [f'{i}.png' for i in range(len(h))],
                    parts or ['train'] * len(h), y, classes)


# --- lists

def test_duplicates_and_leaks(embedded):
    table = duplicates(embedded, 0.99999)
    groups = {frozenset(embedded.paths[row] for row in rows.index) for _, rows in table.groupby('group')}
    same = [{'train/a/002.png', 'train/b/copy.bmp'}, {'train/a/000.png', 'valid/a/000.png'},
            *({f'train/b/00{i}.png', f'valid/b/00{i}.png'} for i in range(3))]
    assert groups == {*map(frozenset, same)}
    assert list(table) == ['group', 'part', 'name', 'label', 'similarity', 'copy_of', 'leak']
    leaks = table.set_index('name')['leak']
    assert not leaks['b/copy.bmp'] and leaks['b/001.png'].all() and table['leak'].sum() == 8
    assert table['group'].tolist() == sorted(table['group']) and set(table['group']) == set(range(1, 6))
    for row in table.itertuples():
        assert {embedded.paths[row.Index], row.copy_of} in same and row.similarity == pytest.approx(1, abs=1e-5)


def test_duplicates_that_are_joined_by_one_between():
    angles = torch.tensor([0., 0.1, 0.21, 2., 2.05])
    table = duplicates(given(torch.stack([angles.cos(), angles.sin()], 1)), np.cos(0.115))
    assert table['group'].tolist() == [1, 1, 2, 2, 2] and table.index.tolist() == [3, 4, 0, 1, 2]
    assert table['copy_of'].tolist() == ['4.png', '3.png', '1.png', '0.png', '1.png'] and not table['leak'].any()
    assert table['similarity'].iloc[0] == pytest.approx(np.cos(0.05), abs=1e-6)


def test_no_duplicates():
    table = duplicates(given(np.eye(4)))
    assert table.empty and list(table) == ['group', 'part', 'name', 'similarity', 'copy_of', 'leak']


def test_outliers():
    h = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)).abs()
    h[11] = torch.tensor([-1., 0, 0, 0, 0])
    table = outliers(given(h), 3, k=4)
    assert table.index[0] == 11 and list(table) == ['part', 'name', 'distance', 'nearest'] and len(table) == 3
    s = torch.nn.functional.cosine_similarity(h[:, None], h[None], dim=2).fill_diagonal_(-2).topk(4)
    expected = (1 - s.values.mean(1)).sort(descending=True)
    assert table.index.tolist() == expected.indices[:3].tolist()
    assert np.allclose(table['distance'], expected.values[:3], atol=1e-6)
    assert table['nearest'].tolist() == [f'{s.indices[i, 0]}.png' for i in table.index]
    assert len(outliers(given(np.eye(3)), 20, k=10)) == 3  # all that there are, by the two others


def test_names_that_are_no_utf8(tmp_path):
    named = replace(given([[1, 0], [1, 0.01], [0, 1]]), names=['\udcff.png', 'b.png', 'c.png'])
    assert duplicates(named)['copy_of'].tolist() == ['b.png', '\udcff.png']
    assert outliers(named, 3)['name'].tolist()[0] == 'c.png' and named.search(1, k=1)['name'].tolist() == ['\udcff.png']
    for suffix in ('.npz', '.csv'): assert load_embedded(named.save(tmp_path/f'f{suffix}')).names == named.names
    with pytest.raises(InputError): named.save(tmp_path/'f.parquet')  # or there is no pyarrow


def test_lists_that_are_refused(embedded):
    for threshold in (0, 1.5, 'much'): said([f'threshold={threshold!r}'], duplicates, embedded, threshold)
    for n in (0, 2.5): said([f'n={n}'], outliers, embedded, n)
    said(['two pictures or more'], outliers, given(np.eye(1)))
    assert duplicates(given(np.eye(1))).empty
    for f in (duplicates, outliers):
        with pytest.raises(InputError, match='NaN'): f(given([[1, np.nan]] * 3))

# --- drawings

def shown(axis): return np.asarray(axis.images[0].get_array())


def frame(axis): return axis.patches[0].get_edgecolor()[:3] if axis.patches else None


def test_a_grid_shows_pictures_beside_their_neighbours(embedded, tmp_path):
    figure = retrieval_grid(embedded, [0, 8], k=3, path=tmp_path/'new/grid.png')
    assert matplotlib.image.imread(tmp_path/'new/grid.png').std() > 0.05
    axes = figure.axes
    assert len(axes) == 8
    similarity, rows = embedded.nearest_to([0, 8], 3)
    for line, query in enumerate((0, 8)):
        line_axes, places = axes[4 * line:4 * line + 4], [query, *rows[line].tolist()]
        for axis, square in zip(line_axes, embedded.squares(places, 96)):
            assert np.allclose(shown(axis), square.permute(1, 2, 0), atol=1e-6)
        assert line_axes[0].get_title() == embedded.labels[query] and frame(line_axes[0]) == (0, 0, 0)
        for axis, place, value in zip(line_axes[1:], places[1:], similarity[line]):
            red, green, _ = frame(axis)
            assert (green > red) == (embedded.labels[place] == embedded.labels[query])
            assert axis.get_title() == f'{embedded.labels[place]} {value:.2f}'


def test_a_grid_of_so_many_queries_takes_classes_in_turn(embedded):
    titles = [axis.get_title() for axis in retrieval_grid(embedded, 4, k=1).axes[::2]]
    assert sorted(titles) == list('aabb') and len(retrieval_grid(embedded.only([0, 6, 9]), 90, k=90).axes) == 9


def test_a_grid_for_another_picture_has_no_frames(embedded, encoder, tmp_path):
    picture(77).save(tmp_path/'q.png')
    figure = retrieval_grid(embedded, embed_picture(encoder, tmp_path/'q.png'), k=2)
    assert [frame(axis) for axis in figure.axes] == [(0, 0, 0), None, None]
    assert figure.axes[0].get_title() == 'q.png'
    assert np.allclose(shown(figure.axes[0]) * 255, plain_view(torch.from_numpy(np.array(picture(77))).permute(
        2, 0, 1)[None], 96)[0].permute(1, 2, 0) * 255, atol=0.6)


@pytest.mark.parametrize('channels', [1, 4, 13])
@pytest.mark.parametrize('kind', [torch.uint8, torch.uint16])
def test_pictures_of_any_channels_are_drawn(channels, kind):
    dls = loaders(*(as_type(noise(n, channels, 32, n), kind) for n in (6, 3)))
    embedded = embed(encoder_for(channels), dls)
    figure = retrieval_grid(embedded, [0], k=2)
    wide = channels > 3
    assert shown(figure.axes[0]).ndim == (3 if wide else 2) and shown(figure.axes[0]).std() > 0.01
    assert not wide or f'channels 0, {channels // 2}, {channels - 1}' in figure.get_supxlabel()
    assert len(shown(draw_map(embedded, thumbnails=True).axes[0]).shape) == 3


def test_queries_of_other_channels_are_refused(embedded):
    grey = embed(encoder_for(1), loaders(noise(6, 1, 32), noise(2, 1, 32)))
    said(['queries of 1 channels', 'pictures of 3'], retrieval_grid, embedded, grey)


def test_a_map_of_points(embedded, tmp_path):
    figure = draw_map(embedded, tmp_path/'map.svg')
    assert (tmp_path/'map.svg').stat().st_size > 1000
    points, = figure.axes[0].collections
    places = embedded.map().numpy()
    drawn = {tuple(np.round(place, 5)): tuple(colour[:3]) for place, colour in
             zip(np.asarray(points.get_offsets()), points.get_facecolors())}
    assert len(drawn) == len({tuple(np.round(place.astype(float), 5)) for place in places})
    text, = figure.legends
    assert [t.get_text() for t in text.get_texts()] == ['a', 'b']
    colours = {label: {drawn[tuple(np.round(places[i].astype(float), 5))] for i, own in enumerate(embedded.labels)
                       if own == label} for label in 'ab'}
    assert not colours['a'] & colours['b'] or len(drawn) < len(embedded)  # a copy may have another class
    bare = draw_map(given(np.eye(4)))
    assert not bare.legends and len(bare.axes[0].collections) == 1


def test_a_map_of_many_classes():
    g = torch.Generator().manual_seed(0)
    labels = [f'_$x{i:02}' for i in range(30) for _ in range(3 if i < 20 else 1)] + ['']
    figure = draw_map(given(torch.randn(len(labels), 5, generator=g), labels=labels))
    text = [t.get_text() for t in figure.legends[0].get_texts()]
    assert text[:-1] == [f'_$x{i:02}' for i in range(20)] and text[-1] == '10 others'
    unknown = draw_map(given(torch.randn(4, 5, generator=g), labels=['a', '', 'b', 'a']))
    assert [t.get_text() for t in unknown.legends[0].get_texts()] == ['a', 'b', 'unknown']


def test_a_map_of_pictures_without_labels(encoder, tmp_path):
    image_folder(tmp_path/'p', {'': 20})
    embedded = embed(encoder, tmp_path/'p')
    figure = draw_map(embedded)
    canvas, places = shown(figure.axes[0]), embedded.map().numpy().astype(float)
    cells = round(1.5 * 20 ** 0.5)
    side, edge = 1200 // cells, 1200 // cells // 25
    scaled = (places - places.min(0)) / np.ptp(places, axis=0) * cells
    cell = np.minimum(scaled.astype(int), cells - 1)
    squares, found = embedded.squares(range(20), side - 2 * edge).permute(0, 2, 3, 1).numpy(), 0
    for column in range(cells):
        for row in range(cells):
            own = [i for i in range(20) if tuple(cell[i]) == (column, row)]
            top, left = (cells - 1 - row) * side + edge, column * side + edge
            drawn = canvas[top:top + side - 2 * edge, left:left + side - 2 * edge]
            if not own: assert (drawn == 1).all()
            else:
                middle = min(own, key=lambda i: np.square(scaled[i] - (column + .5, row + .5)).sum())
                assert np.allclose(drawn, squares[middle], atol=1e-6)
                found += 1
    assert 3 < found <= 20


def test_drawings_that_are_refused(embedded, tmp_path):
    said(['without their pictures'], draw_map, given(np.eye(4)), thumbnails=True)
    said(['without their pictures'], retrieval_grid, given(np.eye(4)))
    said(['isomap'], draw_map, embedded, method='isomap')
    said(['map.xls', '.png'], draw_map, embedded, tmp_path/'map.xls')
    said(['queries=0'], retrieval_grid, embedded, 0)
    said(['row=99'], retrieval_grid, embedded, [99])
    said(['no rows'], retrieval_grid, embedded, [])
    (tmp_path/'file').write_text('')
    said(['be saved'], draw_map, embedded, tmp_path/'file/map.png')


def test_whole_pictures_are_drawn_as_the_encoder_saw_them(encoder, tmp_path):
    for i, size in enumerate([(60, 40), (40, 60), (50, 50)]): picture(i, size).save(tmp_path/f'{i}.png')
    embedded = embed(encoder, tmp_path, precision='fp32')
    assert embedded.squares([2, 0], 24).shape == (2, 3, 24, 24)
    assert embedded.search(tmp_path/'0.png', encoder, k=1)['name'].tolist() == ['0.png']
    x = np.array(Image.open(tmp_path/'0.png').crop((10, 0, 50, 40)).resize((24, 24), Image.Resampling.BILINEAR))
    assert np.abs(embedded.squares([0], 24)[0].permute(1, 2, 0).numpy() * 255 - x).mean() < 12
