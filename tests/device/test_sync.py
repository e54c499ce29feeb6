"""On a pretended device: no step has the host wait for it, and what only a GPU runs gives the numbers of the CPU."""
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException
from helpers.learners import narrow
from helpers.pretend import CUDA, OnDevice, Pretend, Waited, move_
from torch import nn

from fastcontrast.all import (
    CombinePatches, HardRegions, InfoNCE, IntermediateLoss, MultiCrop, PartialBackprop, PatchVariants,
    contrastive_learner, image_dls, moco_v2, moco_v3, simclr, swav)
from fastcontrast.formats import PixelFormat
from fastcontrast.recipes import METHODS
from fastcontrast.speedups.suncet import SuNCEt, SupervisedTerm
from fastcontrast.guards import FiniteLoss
from fastcontrast.views import VIEW_KINDS, Views, plain_view


class Pictures:
    classes = ["a", "b"]
    targets = [i % 2 for i in range(24)]
    x = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.targets[i]


class Steps(Callback):
    """Keeps the losses; the steps alone may not wait, and what comes after them is another matter"""
    order = -200
    def __init__(self, strict): self.strict, self.losses = strict, []
    def before_batch(self): Pretend.strict = self.strict
    def after_batch(self):
        Pretend.strict = False
        self.losses.append(self.learn.loss.detach())
    def after_train(self): raise CancelFitException


@pytest.fixture(autouse=True)
def _pretended(monkeypatch):
    plain = nn.Module.to
    monkeypatch.setattr(nn.Module, "to", lambda self, *args, **kwargs: self
                        if any(isinstance(p, OnDevice) for p in self.parameters()) else plain(self, *args, **kwargs))
    # torch's C++ code, which knows that the tensors are on the CPU
    monkeypatch.setattr(torch.nn.utils.clip_grad, "_group_tensors_by_device_and_dtype",
                        lambda tensors: {(tensors[0][0].device, torch.float32): (tensors, [])})
    # the device draws from the CPU's generator
    monkeypatch.setattr("fastcontrast.accumulate.get_device_states", lambda x: ([], []))
    monkeypatch.setattr("fastcontrast.accumulate.set_device_states", lambda *args, **kwargs: None)
    yield
    Pretend.strict = False


def losses(method, make, pretend, **kwargs):
    torch.manual_seed(0)
    dls = image_dls(Pictures(), size=64 if "montage" in repr(cbs := make()) else 32, bs=8, valid=0, device="cpu",
                    labels="all")
    recipe = narrow(METHODS.get(method, method), "small")
    learn = contrastive_learner(dls, "test_resnet", recipe, cbs=cbs, precision="fp32", small_input=False,
                                knn_pictures=0, **kwargs)
    assert learn.recipe.setting == "small"
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, FiniteLoss)])  # it looks once in many steps
    steps = Steps(pretend)
    with learn.no_logging(), learn.no_mbar(), Pretend():
        if pretend:
            for module in (learn.model, learn.normalize, learn.views, learn.loss_func): move_(module)
            learn.opt, train = None, dls.train
            train.images, train.y, train.device, dls.device = OnDevice(train.images), OnDevice(train.y), CUDA, CUDA
        learn.fit_contrastive(1, lr=0.01, cbs=steps)
    return [x.held.item() if pretend else x.item() for x in steps.losses]


SPEEDUPS = dict(
    patches=lambda: [CombinePatches()], sampled=lambda: [PatchVariants(patches="sample", alpha=1.)],
    montage=lambda: [PatchVariants(patches="montage")],
    columns=lambda: [PatchVariants(combine="input")], intermediate=lambda: [IntermediateLoss()],
    partial=lambda: [IntermediateLoss(), PartialBackprop()],
    regions=lambda: [IntermediateLoss(), HardRegions("layer2")],
    suncet=lambda: [SuNCEt(classes_per_batch=2, per_class=2)], supervised=lambda: [SupervisedTerm()],
    crops=lambda: [MultiCrop()],
    all=lambda: [CombinePatches(), IntermediateLoss(), PartialBackprop(), HardRegions("layer2"),
                 SuNCEt(classes_per_batch=2, per_class=2)])
RUNS = {
    **{name: (name, list, {}) for name in METHODS},
    **{f"{m.__name__}, {name}": (m, make, {}) for m in (simclr, moco_v3) for name, make in SPEEDUPS.items()
       if m is moco_v3 or name in ("suncet", "crops", "all")},
    **{f"{m.__name__}, in parts": (m, list, dict(accumulate=2)) for m in (simclr, moco_v2, swav)}}


# without bfloat16 Muon's way depends on shapes alone; with it, and no matrix that is long, it is timm's on both
@pytest.mark.parametrize("name, bf16", [*((name, False) for name in RUNS), ("simclr", True), ("moco_v3, all", True)])
def test_no_step_waits_for_the_device(name, bf16, monkeypatch):
    monkeypatch.setattr("fastcontrast.muon.has_bf16", lambda device: bf16)
    monkeypatch.setattr("fastcontrast.muon.LONG", 1e9)
    method, make, kwargs = RUNS[name]
    there, here = (losses(method, make, pretend, **kwargs) for pretend in (True, False))
    assert len(there) == 3 and there == pytest.approx(here, rel=1e-3)


def test_a_step_that_waits_is_seen():
    class Reads(InfoNCE):
        def forward(self, q, k): return super().forward(q, k) * (1. if q.sum().item() else 2.)

    class Masks(InfoNCE):
        def forward(self, q, k): return super().forward(q, k) + q[q > 0].sum()
    for loss in (Reads(0.1), Masks(0.1)):
        with pytest.raises(Waited): losses(simclr, list, True, loss=loss)
        assert len(losses(simclr, list, False, loss=loss)) == 3


@pytest.mark.parametrize("kind", VIEW_KINDS)
def test_views_on_a_device_are_those_on_the_cpu(kind):
    def made(images):
        torch.manual_seed(1)
        return Views(24, kind)(images)["views"]
    with Pretend():
        here, images = made(Pictures.x[:8]), Pictures.x[:8].to("cuda")
        Pretend.strict = True
        there = made(images)
    assert there.device == CUDA and torch.equal(there.held, here)


def test_whole_pictures_and_large_crops():
    """Each with its own shape and its own copy, and the host knows of neither"""
    form, rows = PixelFormat(32, whole=True), []
    for i, x in enumerate(Pictures.x[:8]): rows.append(torch.from_numpy(form.packed(x.numpy(), 0.5 + i / 3)))

    def made(kept):
        torch.manual_seed(1)
        images, aspects = form.unpacked(kept)
        return [*(Views(size)(images, None, aspects)["views"] for size in (6, 24)), plain_view(images, 20, aspects)]
    with Pretend():
        here, kept = made(torch.stack(rows)), torch.stack(rows).to("cuda")
        Pretend.strict = True
        there = made(kept)
    for one, other in zip(there, here, strict=True): assert one.device == CUDA and torch.equal(one.held, other)
