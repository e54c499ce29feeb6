"eval: an encoder and pictures of other channels"
import torch
from helpers.channels import bands

from fastcontrast.cli import evaluate
from fastcontrast.export import export_encoder
from fastcontrast.models import make_encoder

DRAWN = True  # what is odd here is in the drawings too


def test_an_encoder_of_other_channels(refused, run, monkeypatch, tmp_path):
    "Pictures are asked for with as many as the encoder takes, and refused if they have others"
    asked = {}
    def read(data, bs, **kwargs):
        asked.update(kwargs)
        return bands(4, 16)
    monkeypatch.setattr(evaluate, 'read_pictures', read)
    for channels in (3, 4, 6):
        torch.manual_seed(0)
        encoder = make_encoder('test_resnet', in_chans=channels)
        path = export_encoder(encoder, tmp_path/f'{channels}', 'test_resnet', 32, [.5] * channels, [.5] * channels)
        if channels == 4:
            code, out, err = run('eval', path, 'p', '--against', 'untrained,pixels', '--draws', 2)
            assert (code, err) == (0, '') and 'untrained' in out
        else:
            said = refused('eval', path, 'p')
            assert f'takes pictures with {channels} channels, and those of p have 4' in said
        if channels != 3: assert asked['channels'] == channels
