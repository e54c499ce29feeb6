"export: what another library loads"
import safetensors.torch
import timm
import torch

from fastcontrast.export import encoder_info, load_encoder


@torch.no_grad()
def test_the_encoder_is_timms(digits, run):
    file, x = digits[0]/'encoder.safetensors', torch.randn(2, 3, 32, 32)
    assert run('export', digits[0], '--out', 'new/e.safetensors')[0] == 0
    plain = timm.create_model('resnet10t', num_classes=0).eval()
    plain.load_state_dict(safetensors.torch.load_file('new/e.safetensors'), strict=True)
    assert torch.equal(plain(x), load_encoder('new/e.safetensors')(x)) and torch.equal(plain(x), load_encoder(file)(x))
    info = encoder_info(file)
    assert info['recipe'] == 'fast' and info['size'] == 32


def test_export_for_torchvision(refused, digits):
    command = ('export', digits[0], '-o', 'e.safetensors')
    assert 'torchvision has no model' in refused(*command, '--to', 'torchvision')
    assert "unknown library 'torchvison': did you mean torchvision?" in refused(*command, '--to', 'torchvison')
