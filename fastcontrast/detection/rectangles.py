"""A small generated set to try detection on: rectangles and ellipses in colour, on noise.

Docs: https://fastcontrast.github.io/fastcontrast/detect.html.md"""
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from ..core import LARGEST_SIDE, whole
from ..files import user_path

SHAPES = ('rectangle', 'ellipse')


def draw_rectangles(
    folder: str | Path, # is made
    n: int = 64,        # pictures
    side: int = 64,     # of a picture's short side, in pixels; the long side is up to half as much longer
    seed: int = 0,
) -> Path:              # the folder, for `box_pictures`
    "Write pictures of one to three shapes each, images/000.png…, and what is in them, annotations/000.xml…"
    whole(n=n)
    whole(least=16, most=LARGEST_SIDE, side=side)
    whole(least=0, seed=seed)
    root, draws = user_path(folder, 'folder'), np.random.default_rng(seed)
    for name in ('images', 'annotations'): (root/name).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        width, height = side, side + int(draws.integers(side // 2 + 1))
        if i % 2: width, height = height, width
        picture = Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))
        boxes = _boxes(width, height, side, draws)
        shapes = [SHAPES[k] for k in draws.integers(len(SHAPES), size=len(boxes))]
        canvas = ImageDraw.Draw(picture)
        for (left, top, right, bottom), shape in zip(boxes, shapes):
            light = int(draws.integers(160, 256))
            colour = (light, 0, 0) if shape == 'rectangle' else (0, 0, light)
            getattr(canvas, shape)((left, top, right - 1, bottom - 1), fill=colour)
        picture.save(root/'images'/f'{i:03}.png')
        _write(root/'annotations'/f'{i:03}.xml', f'{i:03}.png', (width, height), boxes, shapes)
    return root


def _boxes(width: int, height: int, side: int, draws: np.random.Generator) -> list[tuple[int, ...]]:
    "Up to three boxes, in pixels from the corner, that do not touch"
    boxes: list[tuple[int, ...]] = []
    for _ in range(draws.integers(1, 4)):
        w, h = (int(value) for value in draws.integers(side // 4, side // 2 + 1, 2))
        left, top = int(draws.integers(width - w + 1)), int(draws.integers(height - h + 1))
        box = left, top, left + w, top + h
        if all(box[0] > b[2] or box[2] < b[0] or box[1] > b[3] or box[3] < b[1] for b in boxes): boxes.append(box)
    return boxes


def _write(path: Path, picture: str, size: tuple[int, int], boxes: list[tuple[int, ...]], shapes: list[str]) -> None:
    "An annotation as Pascal VOC has it: pixels are counted from 1, and the last one is in the box"
    root = ElementTree.Element('annotation')
    ElementTree.SubElement(root, 'filename').text = picture
    extent = ElementTree.SubElement(root, 'size')
    for name, value in zip(('width', 'height', 'depth'), (*size, 3)):
        ElementTree.SubElement(extent, name).text = str(value)
    for (left, top, right, bottom), shape in zip(boxes, shapes):
        item = ElementTree.SubElement(root, 'object')
        ElementTree.SubElement(item, 'name').text = shape
        ElementTree.SubElement(item, 'difficult').text = '0'
        corners = ElementTree.SubElement(item, 'bndbox')
        for name, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), (left + 1, top + 1, right, bottom)):
            ElementTree.SubElement(corners, name).text = str(value)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding='utf-8')
