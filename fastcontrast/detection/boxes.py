"""Pictures with boxes around what they show, in folders like Pascal VOC's, and batches of them.

Docs: https://fastcontrast.github.io/fastcontrast/detect.html.md"""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..arrays import orientation_of, oriented
from ..core import LARGEST_SIDE, InputError, MissingPath, clipped, number, whole
from ..decoding import MEMORY, decoding_memory
from ..files import from_list, read_text, user_path
from ..folders import find_pictures
from ..pictures import on_white, open_picture
from ..values import is_deep

LAYOUTS = (('JPEGImages', 'Annotations'), ('images', 'annotations')) # folders of pictures and of their annotations
SPLIT = 'ImageSets/Main' # where Pascal VOC lists which pictures are for training, and which to judge by
SHARE = 0.2       # of the pictures, to judge by, where nobody says which
LONGEST = 2       # long side of a picture over the short one, at most: a longer picture becomes smaller
LARGEST = 2**22   # bytes of an annotation
KEPT = 2**29      # bytes of decoded pictures that a loader keeps, so that they are decoded once
_SWAPPED = (5, 6, 7, 8) # orientations in which rows are columns
_SIDES = ('xmin', 'ymin', 'xmax', 'ymax')

# --- what a folder holds

@dataclass(frozen=True)
class Scene:
    "A picture, and the objects in it"
    picture: Path
    size: tuple[int, int]  # width and height, pixels
    boxes: np.ndarray      # float32 [N, 4]: left, top, right, bottom, in pixels from the picture's corner
    names: tuple[str, ...] # [N], of their classes
    difficult: np.ndarray  # bool [N]: hard to recognise; whether these are found is not counted
    orientation: int = 1   # as EXIF counts: how it lies in the file, while size and boxes are as it is shown


class BoxPictures:
    "Some of the pictures of a folder, and the names of all classes in it"
    def __init__(self,
        scenes: Sequence[Scene],
        classes: Sequence[str],
    ):
        self.scenes, self.classes = list(scenes), list(classes)

    def __len__(self) -> int: return len(self.scenes)

    def __repr__(self) -> str:
        objects = sum(len(scene.names) for scene in self.scenes)
        return f"{len(self):,} pictures with {objects:,} objects of {', '.join(map(clipped, self.classes))}"

    def read(self,
        i: int,            # which picture
        side: int,         # of its short side, in pixels
        channels: int = 3, # 3, or 1 for grey
    ) -> tuple[Tensor, dict[str, Tensor]]: # uint8 [C, H, W]; and what torchvision's detectors are to find in it
        """A picture and its objects, in its pixels: boxes [N, 4], labels [N] from 1 on, difficult [N]

        The long side is at most twice `side`: of a longer picture the short side is smaller. Raises `InputError` for a
        picture that can't be read."""
        scene = self.scenes[i]
        width, height = scene.size
        scale = min(side / min(scene.size), LONGEST * side / max(scene.size))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        factors = np.float32([size[0] / width, size[1] / height] * 2)
        labels = torch.tensor([1 + self.classes.index(name) for name in scene.names], dtype=torch.int64)
        return _pixels(scene, size, channels), dict(
            boxes=torch.from_numpy(scene.boxes * factors), labels=labels, difficult=torch.from_numpy(scene.difficult))


def box_pictures(
    folder: str | Path,         # with images/ and annotations/, or JPEGImages/ and Annotations/
    valid: float | None = None, # share to judge by; None: as ImageSets/Main/train.txt and val.txt say, else 0.2
    seed: int = 0,              # of that choice
) -> tuple[BoxPictures, BoxPictures]: # to train with, and to judge by
    """Read a folder of pictures with an XML file for each, as Pascal VOC and labelImg have it

    An annotation is of the picture with the same name, else of the one that it names. Pascal VOC counts pixels from 1;
    where a box begins at 0, those of the folder are taken to count from there. Raises `InputError` for a folder without
    such files, a file that can't be read, and a box that is empty, turned round or not within its picture."""
    number(optional=True, above=0, below=1, valid=valid)
    whole(least=0, seed=seed)
    root = user_path(folder, 'folder')
    pictures, annotations = _layout(root)
    by_stem: dict[str, list[str]] = {}
    for name in find_pictures(pictures, nested=False): by_stem.setdefault(Path(name).stem, []).append(name)
    files = sorted(path for path in annotations.iterdir() if path.suffix.lower() == '.xml' and path.name[0] != '.')
    if not files: raise InputError(f"{annotations} has no .xml file: give a folder of pictures with annotations.")
    read = [_Annotation(path) for path in files]
    from_zero = any((annotation.corners[:, :2] == 0).any() for annotation in read)
    scenes = {a.path.stem: a.scene(pictures/_picture_of(a, by_stem, pictures), from_zero) for a in read}
    classes = sorted({name for scene in scenes.values() for name in scene.names})
    if not classes: raise InputError(f"no annotation in {annotations} has an object: give pictures that show some.")
    parts = _listed_parts(root, scenes) if valid is None else None
    parts = parts or _drawn_parts(root, list(scenes), valid or SHARE, seed)
    train, judged = ([scenes[stem] for stem in part] for part in parts)
    for part, purpose in ((train, "train with"), (judged, "judge by")):
        if all(scene.difficult.all() for scene in part):
            raise InputError(f"none of the {len(part)} pictures of {root} to {purpose} has an object that is not "
                             "difficult: give others, or another seed.")
    return BoxPictures(train, classes), BoxPictures(judged, classes)


def _layout(root: Path) -> tuple[Path, Path]:
    "The folders of pictures and annotations"
    if not root.is_dir(): raise MissingPath(f"no folder {root}: give one of pictures with annotations.")
    for pictures, annotations in LAYOUTS:
        if (root/pictures).is_dir() and (root/annotations).is_dir(): return root/pictures, root/annotations
    known = ', or '.join(f"{pictures}/ and {annotations}/" for pictures, annotations in LAYOUTS)
    raise InputError(f"{root} has no pictures with annotations: give a folder with {known}.")


def _listed_parts(root: Path, scenes: dict[str, Scene]) -> tuple[list[str], ...] | None:
    "The names that the folder itself lists, to train with and to judge by; None if it lists none"
    files = [root/SPLIT/f'{part}.txt' for part in ('train', 'val')]
    if not all(file.is_file() for file in files): return None
    parts = []
    for file in files:
        try: names = list(filter(None, map(from_list, read_text(file).splitlines())))
        except (OSError, ValueError) as e: raise InputError(f"{file} can't be read ({clipped(e)}): mend it.") from None
        if missing := [name for name in names if name not in scenes]:
            raise InputError(f"{file} lists {clipped(missing[0])}, which has no annotation: mend the list.")
        if not names: raise InputError(f"{file} lists no picture: mend it.")
        parts.append(list(dict.fromkeys(names)))
    if both := set(parts[0]) & set(parts[1]):
        raise InputError(f"{files[1]} lists {clipped(min(both))}, which {files[0].name} has too: mend the lists.")
    return tuple(parts)


def _drawn_parts(root: Path, stems: list[str], valid: float, seed: int) -> tuple[list[str], list[str]]:
    "The same, drawn"
    n = max(1, round(valid * len(stems)))
    if n == len(stems): raise InputError(f"{root} has too few pictures to judge by a share of {valid:g}: give more.")
    order = np.random.default_rng(seed).permutation(len(stems)).tolist()
    return [stems[i] for i in sorted(order[n:])], [stems[i] for i in sorted(order[:n])]

# --- one annotation

class _Annotation:
    "What an XML file says. Raises `InputError` for one that is no annotation"
    def __init__(self, path: Path):
        self.path, root = path, _parsed(path)
        # of a path on somebody's machine the name alone, so that nothing outside of the folder is opened
        self.picture = (root.findtext('filename') or '').replace('\\', '/').strip().split('/')[-1]
        self.size = tuple(_whole(root.findtext(f'size/{side}')) for side in ('width', 'height'))
        items = root.findall('object')
        self.names = tuple((item.findtext('name') or '').strip() for item in items)
        if not all(self.names): raise InputError(f"{path} has an object without a name: give it one or take it out.")
        corners = [[_float(item.findtext(f'bndbox/{side}')) for side in _SIDES] for item in items]
        self.corners = np.array(corners, dtype=np.float64).reshape(-1, 4)
        self.difficult = np.array([_whole(item.findtext('difficult')) == 1 for item in items], dtype=bool)
        for name, box in zip(self.names, self.corners):
            if np.isfinite(box).all(): continue
            raise InputError(f"{path} has no box of four numbers ({', '.join(_SIDES)}) for its {clipped(name, 60)}: "
                             "mend it.")

    def scene(self, picture: Path, from_zero: bool) -> Scene:
        "With the picture; boxes checked"
        stored, orientation = _size_of(picture)
        size = stored[::-1] if orientation in _SWAPPED else stored
        if self.size == stored != size: size, orientation = stored, 1
        if min(self.size) > 0 and self.size != size:
            raise InputError(f"{self.path} is of a picture of {self.size[0]} x {self.size[1]} pixels, and {picture} "
                             f"has {size[0]} x {size[1]}: its boxes would lie elsewhere, so mend it.")
        boxes = self.corners - (0 if from_zero else np.array([1, 1, 0, 0]))
        for box, corners in zip(boxes, self.corners):
            if reason := _fault(box, size):
                given = ', '.join(f'{value:g}' for value in corners)
                raise InputError(f"{self.path} has the box {given} ({', '.join(_SIDES)}), which {reason}: mend it.")
        return Scene(picture, size, boxes.astype(np.float32), self.names, self.difficult, orientation)


def _parsed(path: Path) -> ElementTree.Element:
    "The root of an annotation. Raises `InputError` for what is none, or declares entities, which could fill the memory"
    try:
        text = read_text(path, LARGEST)
        if '<!DOCTYPE' in text or '<!ENTITY' in text: raise ValueError("it has a DOCTYPE, which is not read")
        root = ElementTree.fromstring(text)
        if root.tag != 'annotation': raise ValueError(f"it begins with {clipped(root.tag, 60)}, not with annotation")
    except (OSError, ValueError, ElementTree.ParseError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else clipped(e)
        raise InputError(f"{path} can't be read as an annotation of Pascal VOC ({reason}): mend it or take it "
                         "out.") from None
    return root


def _float(text: str | None) -> float:
    "A number; NaN for what is none"
    try: return float(text or '')
    except ValueError: return math.nan


def _whole(text: str | None) -> int:
    "A whole number; 0 for what is none, as where a program left it out"
    value = _float(text)
    return int(value) if math.isfinite(value) else 0


def _fault(box: np.ndarray, size: tuple[int, int]) -> str:
    "Why a box, in pixels from the corner, can't be; '' if it can"
    left, top, right, bottom = box
    if right < left or bottom < top: return "has its sides in the wrong order"
    if right == left or bottom == top: return "is empty"
    if left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]: return ''
    return f"does not lie within its picture of {size[0]} x {size[1]} pixels"


def _picture_of(annotation: _Annotation, by_stem: dict[str, list[str]], folder: Path) -> str:
    "The file name of an annotation's picture"
    named, alike = annotation.picture, by_stem.get(annotation.path.stem, [])
    if not alike: alike = [name for name in by_stem.get(Path(named).stem, []) if name == named]
    if alike: return named if named in alike else alike[0]
    more = f" nor '{clipped(named, 60)}', which it names" if named else ''
    raise InputError(f"{annotation.path} has no picture: {folder} has none of its name{more}.")

# --- one picture

def _unreadable(picture: Path, reason: object) -> InputError:
    return InputError(f"{picture} can't be read ({clipped(reason, 120)}): mend it, or take it out with its annotation.")


def _size_of(picture: Path) -> tuple[tuple[int, int], int]:
    "Width and height of a picture as it is stored, and its orientation"
    try:
        with open_picture(picture, complete=False) as opened:
            if not isinstance(opened, Image.Image) or is_deep(opened):
                raise ValueError("boxes are for pictures of 8 bits, in grey or colour")
            # of a PNG only what stands before its pixels, or all of them would be decoded
            silent = opened.format == 'PNG' and 'exif' not in opened.info
            return opened.size, 1 if silent else orientation_of(opened)
    except (OSError, ValueError, SyntaxError) as e: raise _unreadable(picture, e) from None


def _pixels(scene: Scene, size: tuple[int, int], channels: int) -> Tensor:
    "The picture at a size (width, height): uint8 [C, H, W]; white under what is transparent"
    try:
        with open_picture(scene.picture, complete=False) as picture:
            picture.draft(None, (min(size), min(size)))  # a far larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size
            with MEMORY.taken(decoding_memory(picture)):
                plain = picture
                if scene.orientation != 1: plain = ImageOps.exif_transpose(oriented(picture, scene.orientation))
                plain = on_white(plain).convert('RGB' if channels == 3 else 'L').resize(size, Image.Resampling.BILINEAR)
    except (OSError, ValueError, SyntaxError) as e: raise _unreadable(scene.picture, e) from None
    return torch.from_numpy(np.array(plain).reshape(size[1], size[0], channels)).movedim(-1, 0).contiguous()

# --- batches

class BoxLoader:
    """Batches of two lists: pictures, float32 `[C, H, W]` in [0, 1], and what is in them, see `BoxPictures.read`

    With a seed it shuffles, and flips half of the pictures; pictures that lie and pictures that stand are in batches of
    their own, as far as they fill some, so that little is padded. The same seed gives the same passes."""
    n_inp = 1 # of a batch's two lists, what fastai takes for inputs

    def __init__(self,
        pictures: BoxPictures,
        side: int,         # of a picture's short side, in pixels
        channels: int = 3, # 3, or 1 for grey
        bs: int = 8,       # pictures in a batch; the last may have fewer
        seed: int | None = None, # None: in order, as they are
    ):
        whole(most=LARGEST_SIDE, side=side)
        whole(bs=bs)
        if channels not in (1, 3):
            raise InputError(f"channels={channels!r} is none of 3 and 1: pictures with boxes are in colour or grey.")
        self.pictures, self.side, self.channels, self.bs = pictures, side, channels, bs
        self.draws = None if seed is None else np.random.default_rng(seed)
        self.kept: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
        self.bytes = 0  # of what is kept

    def to(self, device) -> 'BoxLoader': return self  # fastai's loaders have a device; the learner brings batches there

    def __len__(self) -> int: return len(self._batches(np.arange(len(self.pictures))))

    def _batches(self, order: np.ndarray) -> list[list[int]]:
        "Which pictures are in which batch"
        groups = [order]
        if self.draws is not None:
            wide = np.array([scene.size[0] > scene.size[1] for scene in self.pictures.scenes], dtype=bool)[order]
            full = [(group[:len(group) // self.bs * self.bs], group) for group in (order[wide], order[~wide])]
            groups = [part for part, _ in full] + [np.concatenate([group[len(part):] for part, group in full])]
        return [group[i:i + self.bs].tolist() for group in groups for i in range(0, len(group), self.bs)]

    def _read(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        if i in self.kept: return self.kept[i]
        item = self.pictures.read(i, self.side, self.channels)
        if self.bytes + item[0].numel() <= KEPT:
            self.kept[i] = item
            self.bytes += item[0].numel()
        return item

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        n, draws = len(self.pictures), self.draws
        batches = self._batches(np.arange(n) if draws is None else draws.permutation(n))
        flips = np.zeros(n, dtype=bool) if draws is None else draws.random(n) < 0.5
        for k in range(len(batches)) if draws is None else draws.permutation(len(batches)):
            items = [_flipped(*self._read(i)) if flips[i] else self._read(i) for i in batches[k]]
            yield [picture.float() / 255 for picture, _ in items], [dict(target) for _, target in items]


def _flipped(picture: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    "Left and right exchanged"
    left, top, right, bottom = target['boxes'].unbind(1)
    width = picture.shape[-1]
    return picture.flip(-1), dict(target, boxes=torch.stack([width - right, top, width - left, bottom], 1))
