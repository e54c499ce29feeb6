"""Detection transfer: a detector on top of an encoder, pictures with boxes, training, and how well it finds them.

Docs: https://fastcontrast.github.io/fastcontrast/detect.html.md"""
from .boxes import BoxLoader, BoxPictures, Scene, box_pictures
from .model import Pyramid, detector
from .rectangles import draw_rectangles
from .scores import average_precision
from .training import detection_scores, detection_transfer, train_detector

__all__ = ['BoxLoader', 'BoxPictures', 'Pyramid', 'Scene', 'average_precision', 'box_pictures', 'detection_scores',
           'detection_transfer', 'detector', 'draw_rectangles', 'train_detector']
