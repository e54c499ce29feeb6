"""Sets of speedups that tests add and remove."""
from fastcontrast.speedups.comb_patches import CombinePatches
from fastcontrast.speedups.intermediate import IntermediateLoss, PartialBackprop
from fastcontrast.speedups.patch_variants import PatchVariants
from fastcontrast.speedups.progressive_size import ProgressiveSize
from fastcontrast.speedups.regions import HardRegions

SEVEN = ['simclr', 'moco_v2', 'moco_v3', 'byol', 'simsiam', 'nnclr', 'swav']
REMOVABLE = dict(
    patches=lambda: [CombinePatches()], sampled=lambda: [PatchVariants(patches='sample')],
    stitched=lambda: [PatchVariants(combine='layer1')],
    levels=lambda: [IntermediateLoss(weights=0.5)], drawn=lambda: [IntermediateLoss(), PartialBackprop()],
    regions=lambda: [HardRegions()], growing=lambda: [ProgressiveSize(steps=2, until=0.5, strength=0.5)],
    two_regions=lambda: [HardRegions(stages=('layer1', 'layer2'), score='loss')],
    # of patches of 8 pixels a later stage has one cell only
    all=lambda: [CombinePatches(), IntermediateLoss(weights=(1., 2., 3.)), PartialBackprop(), HardRegions(1)])


def only(level: str) -> dict: return {level: 1}
