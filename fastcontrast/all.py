"""Everything a training script needs: `from fastcontrast.all import *`."""
from .core import InputError
from .data import image_dls
from .evaluate.knn import knn_accuracy
from .evaluate.linear import few_label_accuracy, linear_probe
from .export import encoder_info, export_encoder, load_encoder
from .learner import ContrastiveLearner, contrastive_learner
from .losses import DCL, DCLW, InfoNCE, NTXent, dcl, dclw, info_nce, nt_xent
from .models import ContrastiveModel, Embedding, Head, encoder_stages, make_encoder, mlp
from .recipes import Recipe, moco_v3, simclr
from .step import Contrast, PairLoss, StepCallback
from .targets import EMATarget, SharedTarget, Target
from .views import VIEW_KINDS, ViewKind, two_views

__all__ = ["DCL", "DCLW", "VIEW_KINDS", "Contrast", "ContrastiveLearner", "ContrastiveModel", "EMATarget", "Embedding", "Head", "InfoNCE", "InputError",
           "NTXent", "PairLoss", "Recipe", "SharedTarget", "StepCallback", "Target", "ViewKind", "contrastive_learner", "dcl", "dclw",
           "encoder_info", "encoder_stages", "export_encoder", "few_label_accuracy", "image_dls", "info_nce", "knn_accuracy", "linear_probe",
           "load_encoder", "make_encoder", "mlp", "moco_v3", "nt_xent", "simclr", "two_views"]
