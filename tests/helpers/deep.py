"Pictures of more than 8 bits or of other channels, in every form that they come in"
import io
import struct
import zlib
from functools import partial

import numpy as np
import torch
from PIL import Image

from fastcontrast.data import image_dls

from .folders import everything
from .odd import chunk

plain_dls = partial(image_dls, bs=2, valid=0, workers=0, device='cpu', unlabelled=True)


def values(dls): return everything(dls.train.ordered())[0]


def png16(x):
    "The file of a PNG of 16 bits: [H, W, C], C of 1 to 4"
    height, width, channels = x.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in x)
    header = struct.pack('>IIBBBBB', width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + b''.join([chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows)),
                                            chunk(b'IEND', b'')])


def saved(x, kind):
    "The file of an array, [H, W] or [H, W, C]"
    file = io.BytesIO()
    if kind == 'npy': np.save(file, x)
    elif kind == 'npz': np.savez_compressed(file, x)
    elif kind == 'png' and x.ndim == 3 and x.dtype == np.uint16: return png16(x)
    elif kind == 'tif': Image.fromarray(x).save(file, 'TIFF', compression='tiff_adobe_deflate')
    else: Image.fromarray(x).save(file, {'jpg': 'JPEG'}.get(kind, kind.upper()))
    return file.getvalue()


def folder_of(folder, pictures, kind):
    "Files of arrays, named by their numbers"
    folder.mkdir(parents=True, exist_ok=True)
    for i, x in enumerate(pictures): (folder/f'{i:03}.{kind}').write_bytes(saved(x, kind))
    return folder


def source_of(folder, pictures, kind):
    "The same pictures as files, in one array, as items or as tensors"
    if kind == 'array': return np.stack(pictures)
    if kind == 'items': return list(pictures)
    if kind == 'pil': return [Image.fromarray(x) for x in pictures]
    if kind == 'tensor': return torch.from_numpy(np.stack(pictures))
    if kind == 'channels first':
        return torch.from_numpy(np.stack(pictures)).reshape(len(pictures), *pictures[0].shape[:2], -1).movedim(-1, 1)
    return folder_of(folder, pictures, kind)
