"""What a training script needs: `from fastcontrast.all import *`."""
import importlib
import warnings

with warnings.catch_warnings():  # what fastai, PyTorch and pandas tell one another as they are imported
    warnings.simplefilter('ignore')
    importlib.import_module('fastai.callback.fp16')

from . import evaluate, speedups
from .accumulate import Accumulate
from .artefact import push_folder
from .checkpoint import Checkpoint
from .cli.sweeping import sweep
from .core import InputError
from .data import image_dls
from .detection import (average_precision, box_pictures, detection_scores, detection_transfer, detector,
                        draw_rectangles, train_detector)
from .embed import Embedded, embed, embed_picture, load_embedded
from .evaluate import METRICS, metric
from .evaluate.cost import Cost
from .evaluate.finetune import PROTOCOLS, ClassifierLearner, Protocol, classifier_learner, finetune
from .evaluate.judge import MEASURES, judge_features
from .evaluate.knn import knn_accuracy
from .evaluate.linear import few_label_accuracy, linear_probe
from .evaluate.metrics import alignment
from .evaluate.report import report
from .evaluate.retrieval import retrieval
from .evaluate.score_plot import plot_scores
from .export import encoder_info, export_copy, export_encoder, load_classifier, load_encoder, write_folder
from .learner import ContrastiveLearner, contrastive_learner
from .logs import LOGS, RunLog
from .losses import LOSSES, Loss, dcl, dclw, info_nce, nt_xent, sinkhorn, suncet_loss, supcon_loss
from .models import ContrastiveModel, Embedding, Head, Prototypes, encoder_stages, make_encoder, mlp
from .modules import as_encoder
from .multi_crop import MultiCrop
from .pairs import PairLoss
from .predict import predict
from .recipes import METHODS, Recipe, method, recipe_table, refused_pairs
from .search import draw_map, duplicates, outliers, retrieval_grid
from .speedups import SPEEDUPS
from .step import Contrast, Phase, StepCallback
from .targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget, Target
from .views import VIEW_KINDS, ViewKind, two_views
from .warmup import HeadWarmup

# and the members of the registries, below: somebody's own in these folders too
__all__ = [
    'LOGS', 'LOSSES', 'MEASURES', 'METHODS', 'METRICS', 'PROTOCOLS', 'SPEEDUPS', 'VIEW_KINDS', 'Accumulate',
    'Checkpoint', 'ClassifierLearner', 'Contrast', 'ContrastiveLearner', 'ContrastiveModel', 'Cost', 'EMATarget',
    'Embedded', 'Embedding', 'Head', 'HeadWarmup', 'InputError', 'Loss', 'MultiCrop', 'NearestNeighbours', 'PairLoss',
    'Phase', 'Protocol', 'Prototypes', 'Queue', 'Recipe', 'RunLog', 'SharedTarget', 'StepCallback', 'StopGradTarget',
    'Target', 'ViewKind', 'alignment', 'as_encoder', 'average_precision', 'box_pictures', 'classifier_learner',
    'contrastive_learner', 'dcl', 'dclw', 'detection_scores', 'detection_transfer', 'detector', 'draw_map',
    'draw_rectangles', 'duplicates', 'embed', 'embed_picture', 'encoder_info', 'encoder_stages', 'export_copy',
    'export_encoder', 'few_label_accuracy', 'finetune', 'image_dls', 'info_nce', 'judge_features', 'knn_accuracy',
    'linear_probe', 'load_classifier', 'load_embedded', 'load_encoder', 'make_encoder', 'method', 'metric', 'mlp',
    'nt_xent', 'outliers', 'plot_scores', 'predict', 'push_folder', 'recipe_table', 'refused_pairs', 'report',
    'retrieval', 'retrieval_grid', 'sinkhorn', 'suncet_loss', 'supcon_loss', 'sweep', 'train_detector', 'two_views',
    'write_folder',
]

for registry in (METHODS, LOSSES, speedups.load(), evaluate.load()):
    for member in registry.values():
        globals()[member.__name__] = member
        __all__ += [member.__name__]
