import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import Generator
from nayer_pl.bank import SynthesisRound
from nayer_pl.methods.fast_dfkd import FastDFKD
from nayer_pl.runtime.numerics import Stream, stream_seed

SHAPE = (1, 8, 8)
ROUNDS = {"warmup_rounds": 6}


@pytest.fixture
def fast(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "noise_features": 16, "generator_steps": 4, "round_size": 12,
            "check_teacher": False, "generator": lambda n, s: Generator(n, s, width=8),
        }  # fmt: skip
        return FastDFKD(**{**defaults, **options})

    return make


def weights(module):
    return [p.detach().clone() for p in module.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


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
def test_outer_update__loop_written_out(fast, tiny_data, fit, meta):
    """Two linear maps and a sigmoid as generator, cross-entropy alone as loss, Adam by hand."""

    def linear(features, shape):
        return nn.Sequential(
            nn.Linear(features, 5), nn.Linear(5, 64), nn.Sigmoid(), nn.Unflatten(1, shape)
        )

    method = fast(meta=meta, generator=linear, bn_weight=0, ce_weight=1.0, seed=9).double()
    theta, teacher = weights(method.synthesizer.generator), copy.deepcopy(method.teacher.classifier)
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


@pytest.mark.parametrize("meta", ["fomaml", "reptile"])
def test_meta_generator__moved_by_outer_update_only(fast, tiny_data, fit, meta):
    method, inner, outer = fast(meta=meta), [], []

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            def note(seen):
                return lambda *_: seen.append(
                    (weights(method.synthesizer.generator), weights(method.synthesizer.adapted))
                )

            trainer.optimizers[1].register_step_post_hook(note(inner))
            trainer.optimizers[2].register_step_pre_hook(note(outer))
            trainer.optimizers[2].register_step_post_hook(note(outer))

    start = weights(method.synthesizer.generator)
    fit(method, tiny_data(ROUNDS), callbacks=[Watch()], max_epochs=1)
    assert (len(inner), len(outer)) == (6 * 4, 6 * 2)
    for i in range(6):
        steps, before, after = inner[4 * i : 4 * i + 4], outer[2 * i], outer[2 * i + 1]
        assert all(same(kept, start) for kept, _ in [*steps, before])
        assert not any(same(a, b) for (_, a), (_, b) in itertools.pairwise(steps))
        assert not same(after[0], start)
        start = after[0]


def adapt(method, generator, z, targets, steps):
    """Inner steps by torch's own optimizer, on copies; the loss of the last images."""
    generator, z = copy.deepcopy(generator), z.clone().requires_grad_()
    groups = [{"params": generator.parameters()}, {"params": [z], "lr": 0.01}]
    adam = torch.optim.Adam(groups, lr=2e-3, betas=(0.5, 0.999))

    def loss():
        nets = method.teacher, method.student
        return method.synthesizer.loss(generator(z), targets, *nets, warm_up=True)["loss"]

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


def test_noise__new_in_every_round(fast, tiny_data, fit):
    method, seen = fast(), []
    synthesizer, make = method.synthesizer, method.synthesizer.generate
    synthesizer.generate = lambda targets: (
        seen.append(synthesizer.latents.weight.detach().clone()) or make(targets)
    )
    fit(method, tiny_data(), max_epochs=1)
    first, second = seen[:4], seen[4:]
    assert (first[0] - second[0]).abs().mean() > 0.5
    for one_round in (first, second):
        assert not any(torch.equal(a, b) for a, b in itertools.pairwise(one_round))
        assert (one_round[0] - one_round[-1]).abs().max() < 3 * 0.011  # Adam's steps of 0.01


def test_first_layer_reset(fast, tiny_data, fit):
    method, seen = fast(first_layer_reset=2, meta_lr=0.0), [{}]

    class Watch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(
                {n: p.detach().clone() for n, p in method.synthesizer.generator.named_parameters()}
            )

    with torch.no_grad():
        method.synthesizer.generator.layers[2].weight.fill_(7)
    fit(method, tiny_data({"epochs": 3}), callbacks=[Watch()])
    changed = [
        {name for name in after if not torch.equal(before[name], after[name])}
        for before, after in itertools.pairwise(seen[1:])
    ]
    assert changed == [set(), {"layers.0.weight", "layers.0.bias", "layers.2.weight"}, set()]


def test_recipes(config):
    for data in ("cifar10", "cifar100"):
        cfg = config("model=fast_dfkd", f"data={data}")
        model, plan = cfg.model, cfg.plan
        assert (model.generator_steps, model.generator_lr, model.latent_lr) == (10, 2e-3, 0.01)
        assert (model.bn_weight, model.ce_weight, model.adv_weight) == (10, 0.5, 1.33)
        assert (model.meta, model.first_layer_reset, model.noise_features) == ("fomaml", 120, 256)
        assert (plan.epochs, plan.warmup_epochs, plan.kd_steps) == (200, 20, 400)
        assert plan.warmup_rounds == plan.rounds_per_epoch == 1
        assert plan.round_size == plan.batch_size == 256
