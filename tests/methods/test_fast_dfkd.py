import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import Adam

from nayer_pl import FastDFKD
from nayer_pl.bank import SynthesisRound
from nayer_pl.runtime.numerics import Stream, stream_seed

SHAPE, BETAS = (1, 8, 8), (0.5, 0.999)


@pytest.fixture
def fast(make):
    return partial(make, FastDFKD)


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


class Spy(Callback):
    """Keeps the labels of every round and the meta generator after it."""

    def __init__(self):
        self.targets, self.meta = [], []

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        if isinstance(item, SynthesisRound):
            self.targets.append(item.targets)
            self.meta.append(weights(method.synthesizer.generator))


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_outer_update__loop(fast, tiny_data, fit, meta):
    """Two linear maps and a sigmoid as generator, cross-entropy alone as loss.

    Also that noise is new in every round and learned in it, and that only the outer update moves
    the meta generator.
    """

    def linear(features, shape):
        return nn.Sequential(
            nn.Linear(features, 5), nn.Linear(5, 64), nn.Sigmoid(), nn.Unflatten(1, shape)
        )

    method = fast(meta=meta, generator=linear, bn_weight=0, ce_weight=1.0, seed=9).double()
    theta, teacher = weights(method.synthesizer.generator), method.teacher.classifier
    outer = Adam(theta, lr=4 * 2e-3, betas=BETAS)
    spy = Spy()
    fit(method, tiny_data({"warmup_rounds": 6}), callbacks=[spy], max_epochs=1, precision="64-true")

    rng = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE))
    for targets, found in zip(spy.targets, spy.meta, strict=True):
        z = torch.empty(12, 16, dtype=torch.float64).normal_(generator=rng)
        adapted = [t.detach().clone().requires_grad_() for t in (*theta, z)]
        w1, b1, w2, b2, noise = adapted
        groups = [{"params": adapted[:-1]}, {"params": noise, "lr": 0.01}]
        inner = Adam(groups, lr=2e-3, betas=BETAS)
        outer.zero_grad()
        for _ in range(4):
            images = ((noise @ w1.T + b1) @ w2.T + b2).sigmoid().view(12, *SHAPE)
            inner.zero_grad()
            F.cross_entropy(teacher(images), targets).backward()
            for meta_weight, own in zip(theta, adapted[:-1], strict=True):
                sofar = 0 if meta_weight.grad is None else meta_weight.grad
                meta_weight.grad = sofar + own.grad
            inner.step()
        if meta == "reptile":
            for meta_weight, own in zip(theta, adapted[:-1], strict=True):
                meta_weight.grad = meta_weight.detach() - own.detach()
        outer.step()
        torch.testing.assert_close(found, theta, rtol=1e-9, atol=1e-11)
    assert len(spy.meta) == 6


def test_first_layer_reset(fast, tiny_data, fit):
    """In the distillation epoch that was chosen, and no other."""
    method, seen = fast(first_layer_reset=2, meta_lr=0.0), []
    generator = method.synthesizer.generator

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append({n: p.detach().clone() for n, p in generator.named_parameters()})

    torch.nn.init.constant_(generator.layers[2].weight, 7)
    fit(method, tiny_data({"epochs": 3}), callbacks=[Watch()])
    changed = [
        {name for name in after if not torch.equal(before[name], after[name])}
        for before, after in itertools.pairwise(seen)
    ]
    assert changed == [set(), {"layers.0.weight", "layers.0.bias", "layers.2.weight"}, set()]
