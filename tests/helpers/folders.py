"""Folders and data sets of pictures, loaders over them, and what they give"""
import numpy as np
import torch
from PIL import Image as Pillow

from fastcontrast import data, loaders
from fastcontrast.data import image_dls

STREAM = dict(memory=1e-12, workers=0)


def picture(seed, size=(32, 32)):
    "A picture of its own for every seed"
    return Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def image_folder(folder, counts, size=(32, 32), suffix='png'):
    "A folder of class folders"
    for c, n in counts.items():
        (folder/c).mkdir(parents=True, exist_ok=True)
        for i in range(n): picture(sum(map(ord, c)) * 1000 + i, size).save(folder/c/f'{i:03}.{suffix}')
    return folder


class Given(torch.utils.data.Dataset):
    "A data set of whatever items it is given"
    def __init__(self, items, **attrs):
        self.items = items
        for k, v in attrs.items(): setattr(self, k, v)

    def __len__(self): return len(self.items)
    def __getitem__(self, i): return self.items[i]


class Image:
    "The type of a column of pictures, as Hugging Face's `datasets.Image`"


class ClassLabel:
    "The type of a column of classes, as Hugging Face's"
    def __init__(self, names): self.names = names


class HuggingFace:
    "What `datasets.Dataset` answers: rows are dicts, and a column is asked for by its name"
    def __init__(self, columns, features=None, transform=None):
        self.columns, self.transform = columns, transform
        self.features = {name: (features or {}).get(name) for name in columns}

    @property
    def column_names(self): return list(self.columns)
    def __len__(self): return len(next(iter(self.columns.values())))
    def with_format(self, kind=None): return HuggingFace(self.columns, self.features)
    def __getitem__(self, key):
        if isinstance(key, str): return self.columns[key]
        row = {name: values[key] for name, values in self.columns.items()}
        return self.transform(row) if self.transform else row


def dls_of(source, **kwargs): return image_dls(source, **dict(bs=2, device='cpu') | kwargs)
def everything(loader): return [torch.cat(t) for t in zip(*loader, strict=True)]


def same(a, b):
    "The same batches?"
    for batch, other in zip(a, b, strict=True):
        assert len(batch) == len(other) and all(map(torch.equal, batch, other))


def as_process(monkeypatch, number, processes):
    "From here on the library takes this process for one of several"
    monkeypatch.setattr(data, 'world_size', lambda: processes)
    monkeypatch.setattr(loaders, 'world_size', lambda: processes)
    monkeypatch.setattr(loaders, 'rank', lambda: number)
