"views: what training would see, drawn"
import matplotlib.image
import numpy as np
from helpers.folders import image_folder, picture


def test_views(run, folder):
    image_folder(folder/'p', {'': 3})
    said = run('views', '-o', 'd.png', '-n', 2)[1]
    assert said == '2 pictures and their views (digits, 32 px) are in d.png\n'
    said = run('views', 'p', '-o', '[a]/v.svg', '--kind', 'byol', '--size', 40)[1]
    assert said == '3 pictures and their views (byol, 40 px) are in [a]/v.svg\n'
    assert (folder/'[a]/v.svg').stat().st_size > 1000
    said = run('views', 'p', '-o', 's.png', '--method', 'swav', '--size', 128)[1]
    assert said == ('3 pictures and their views (simclr, MultiCrop((2, None, (0.14, 1.0)), (6, None, (0.05, 0.14))), '
                    '128 px) are in s.png\n')
    nine_columns, three = (matplotlib.image.imread(name).shape[1] for name in ('s.png', 'd.png'))
    assert nine_columns > 2 * three
    assert 'did you mean swav' in run('views', 'p', '--method', 'swaw')[2]
    for seed, name in ((0, 'a.png'), (0, 'b.png'), (1, 'c.png')):
        assert run('views', 'p', '--seed', seed, '-o', name)[0] == 0
    a, b, c = (matplotlib.image.imread(f) for f in ('a.png', 'b.png', 'c.png'))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and a.std() > .05


def test_the_column_of_a_table(run, refused, folder):
    image_folder(folder/'p', {'': 3})
    (folder/'t.csv').write_text('where,kind\n' + ''.join(f'p/{i:03}.png,0\n' for i in range(3)))
    assert '\n3 pictures and their views' in '\n' + run('views', 't.csv', '--column', 'where')[1]
    assert 'has no column path or' in refused('views', 't.csv')


def test_the_side_at_which_pictures_are_kept(run, refused, folder):
    (folder/'p').mkdir()
    for i in range(3): picture(i, (96, 96)).crop((0, 0, 96, 64)).save(folder/f'p/{i}.png')
    drawn = []
    for side in (8, 64):
        code, out, err = run('views', 'p', '--size', 32, '--store-size', side, '-o', f'{side}.png')
        assert (code, err) == (0, '') and f'pictures are kept whole, at {side} px of their short side\n' in out
        drawn.append(matplotlib.image.imread(f'{side}.png'))
    assert drawn[0].shape == drawn[1].shape and not np.array_equal(*drawn)
    assert 'store_size=1' in refused('views', 'p', '--store-size', 1)


def test_bands(run, refused, folder):
    image_folder(folder/'p', {'': 3})
    for i, bands in enumerate(('0,1,2', '2,1,0', '1')):
        assert run('views', 'p', '--bands', bands, '-o', f'{i}.png')[0] == 0
    a, b, c = (matplotlib.image.imread(f'{i}.png') for i in range(3))
    assert np.array_equal(a[..., 0].mean(), b[..., 2].mean()) and np.array_equal(c[..., 0], c[..., 2])
    assert run('views', 'p', '--channels', '1', '--range', '0,100')[0] == 0
    assert "--range '5'" in refused('views', 'p', '--range', '5')
    assert "--bands='0;1' is no list of channels" in refused('views', 'p', '--bands', '0;1')
    assert 'bands[1]=3' in refused('views', 'p', '--bands', '0,3,1')
    assert 'three' in refused('views', 'p', '--bands', '0,1')


def test_mistakes(refused):
    assert '--kind' in refused('views', '--kin', 'byol')
    assert "unknown kind of views 'byl': did you mean byol" in refused('views', '--kind', 'byl')
    assert 'wd=-1 of byol() must be' in refused('views', '--method', 'byol(wd=-1)')
    assert '--n' in refused('views', '-n', 0)
    assert 'seed=-1' in refused('views', '--seed', -1)
    assert 'size=0' in refused('views', '--size', 0)
