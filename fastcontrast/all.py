"""Everything a training script needs: `from fastcontrast.all import *`."""
from .accumulate import Accumulate
from .core import InputError
from .data import image_dls
from .evaluate.cost import Cost
from .evaluate.knn import knn_accuracy
from .evaluate.linear import few_label_accuracy, linear_probe
from .export import encoder_info, export_encoder, load_encoder
from .learner import ContrastiveLearner, contrastive_learner
from .losses import (DCL, DCLW, BarlowTwins, DINOLoss, InfoNCE, NegCosine, NTXent, SwAVLoss, VICReg, dcl, dclw, info_nce, nt_xent,
                     sinkhorn, suncet_loss, supcon_loss)
from .models import ContrastiveModel, Embedding, Head, Prototypes, encoder_stages, make_encoder, mlp
from .recipes import (SPEEDUPS, Recipe, barlow_twins, byol, dino, fast_moco, moco_v1, moco_v2, moco_v3, nnclr, recipe_table, refused_pairs,
                      simclr, simsiam, swav, vicreg)
from .speedups.comb_patches import CombinePatches
from .speedups.intermediate import IntermediateLoss, PartialBackprop
from .speedups.regions import HardRegions
from .speedups.suncet import SuNCEt, SupervisedTerm
from .step import Contrast, MultiCrop, PairLoss, StepCallback
from .targets import EMATarget, NearestNeighbours, Queue, SharedTarget, StopGradTarget, Target
from .views import VIEW_KINDS, ViewKind, two_views

__all__ = ["DCL", "DCLW", "SPEEDUPS", "VIEW_KINDS", "Accumulate", "BarlowTwins", "CombinePatches", "Contrast", "ContrastiveLearner", "ContrastiveModel",
           "Cost", "DINOLoss", "EMATarget", "Embedding", "HardRegions", "Head", "InfoNCE", "InputError", "IntermediateLoss", "MultiCrop", "NTXent",
           "NearestNeighbours", "NegCosine", "PairLoss", "PartialBackprop", "Prototypes", "Queue", "Recipe", "SharedTarget", "StepCallback",
           "StopGradTarget", "SuNCEt", "SupervisedTerm", "SwAVLoss", "Target", "VICReg", "ViewKind", "barlow_twins", "byol", "contrastive_learner",
           "dcl", "dclw", "dino", "encoder_info", "encoder_stages", "export_encoder", "fast_moco", "few_label_accuracy", "image_dls", "info_nce",
           "knn_accuracy", "linear_probe", "load_encoder", "make_encoder", "mlp", "moco_v1", "moco_v2", "moco_v3", "nnclr", "nt_xent", "recipe_table",
           "refused_pairs", "simclr", "simsiam", "sinkhorn", "suncet_loss", "supcon_loss", "swav", "two_views", "vicreg"]
