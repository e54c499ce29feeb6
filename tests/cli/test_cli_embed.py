"embed: features of pictures in a file"
import numpy as np
from helpers.cli import config
from helpers.folders import image_folder


def test_embed(run, refused, digits, folder):
    code, out, err = run('embed', digits[0], 'digits', '-o', 'new/f.npz')
    assert (code, err) == (0, '') and out.endswith('1,797 pictures, 512 features each, are in new/f.npz\n')
    with np.load('new/f.npz') as file: h, labels, parts = file['features'], file['labels'], file['parts']
    assert h.shape == (1797, 512) and (parts == 'valid').sum() == config(digits[0])['n_valid']
    assert len(set(labels)) == 10
    assert '--out f.txt must end in .npz or .csv or .parquet' in refused('embed', digits[0], 'digits', '-o', 'f.txt')
    assert 'no encoder at' in refused('embed', 'none', 'digits')


def test_without_labels(run, digits, folder):
    image_folder(folder/'p', {'': 4})
    assert run('embed', digits[0], 'p', '-o', 'f.csv')[0] == 0
    rows = (folder/'f.csv').read_text().splitlines()
    assert len(rows) == 5 and rows[0].startswith('part,name,f0,f1,') and rows[1].startswith('train,000.png,')
