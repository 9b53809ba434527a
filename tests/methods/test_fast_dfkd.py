import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import FastDFKD, Generator
from nayer_pl.bank import SynthesisRound
from nayer_pl.runtime.numerics import Stream, stream_seed

SHAPE = (1, 8, 8)
ROUNDS = {"warmup_rounds": 6}


@pytest.fixture
def fast(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "noise_features": 16, "generator_steps": 4, "round_size": 12, "check_teacher": False,
            "generator": partial(Generator, width=8),
        }  # fmt: skip
        return FastDFKD(**{**defaults, **options})

    return make


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


class NaiveAdam:
    """Kingma & Ba (2015), algorithm 1, as it stands there."""

    def __init__(self, betas=(0.5, 0.999), eps=1e-8):
        self.betas, self.eps, self.t, self.m, self.v = betas, eps, 0, None, None

    def step(self, tensors, grads, rates):
        (b1, b2), self.t = self.betas, self.t + 1
        zeros = [torch.zeros_like(g) for g in grads]
        self.m = [b1 * m + (1 - b1) * g for m, g in zip(self.m or zeros, grads, strict=True)]
        self.v = [b2 * v + (1 - b2) * g * g for v, g in zip(self.v or zeros, grads, strict=True)]
        return [
            x - lr * (m / (1 - b1**self.t)) / ((v / (1 - b2**self.t)).sqrt() + self.eps)
            for x, lr, m, v in zip(tensors, rates, self.m, self.v, strict=True)
        ]


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_outer_update__loop(fast, tiny_data, fit, meta):
    """Two linear maps and a sigmoid as generator, cross-entropy alone as loss, Adam by hand.

    Also that noise is new in every round and learned in it, and that only the outer update moves
    the meta generator.
    """

    def linear(features, shape):
        return nn.Sequential(
            nn.Linear(features, 5), nn.Linear(5, 64), nn.Sigmoid(), nn.Unflatten(1, shape)
        )

    method = fast(meta=meta, generator=linear, bn_weight=0, ce_weight=1.0, seed=9).double()
    theta, teacher = weights(method.synthesizer.generator), method.teacher.classifier
    spy = Spy()
    fit(method, tiny_data(ROUNDS), callbacks=[spy], max_epochs=1, precision="64-true")

    rng, outer = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE)), NaiveAdam()
    for targets, found in zip(spy.targets, spy.meta, strict=True):
        z = torch.empty(12, 16, dtype=torch.float64).normal_(generator=rng)
        adapted, inner, total = [*theta, z], NaiveAdam(), None
        for _ in range(4):
            adapted = [t.detach().requires_grad_() for t in adapted]
            w1, b1, w2, b2, noise = adapted
            images = ((noise @ w1.T + b1) @ w2.T + b2).sigmoid().view(12, *SHAPE)
            loss = F.cross_entropy(teacher(images), targets)
            grads = torch.autograd.grad(loss, adapted)
            total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
            adapted = inner.step(adapted, grads, [2e-3, 2e-3, 2e-3, 2e-3, 0.01])
        reptile = [a - b for a, b in zip(theta, adapted[:-1], strict=True)]
        direction = total[:-1] if meta == "fomaml" else reptile
        theta = [t.detach() for t in outer.step(theta, direction, 4 * [4 * 2e-3])]
        torch.testing.assert_close(found, theta, rtol=1e-9, atol=1e-11)
    assert len(spy.meta) == 6


def adapt(method, generator, z, targets, steps):
    """Inner steps by torch's own optimizer, on copies; the loss of the last images."""
    generator, z = copy.deepcopy(generator), z.clone().requires_grad_()

    def loss():
        networks = method.teacher, method.student
        return method.synthesizer.loss(generator(z), targets, *networks, warm_up=True)["loss"]

    groups = [{"params": generator.parameters()}, {"params": [z], "lr": 0.01}]
    adam = torch.optim.Adam(groups, lr=2e-3, betas=(0.5, 0.999))
    for _ in range(steps):
        adam.zero_grad()
        loss().backward()
        adam.step()
    return float(loss().detach())


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_meta_generator__fewer_steps(fast, tiny_data, fit, meta):
    """Unseen noise and labels, the same for it and for a generator that has learned nothing."""
    method = fast(meta=meta)
    fit(method, tiny_data({"warmup_rounds": 15}), max_epochs=1)
    z, targets, fresh = torch.randn(12, 16), torch.arange(12) % 3, Generator(16, SHAPE, width=8)
    learned = adapt(method, method.synthesizer.generator, z, targets, 4)
    assert learned < adapt(method, fresh, z, targets, 12) < adapt(method, fresh, z, targets, 4)


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
