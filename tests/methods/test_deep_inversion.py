import copy
import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback

from nayer_pl import DeepInversion
from nayer_pl.bank import SynthesisRound
from nayer_pl.losses.functional import jensen_shannon, total_variation
from nayer_pl.runtime.numerics import Stream, stream_seed
from nayer_pl.synthesis import RollFlip

SHAPE = (1, 8, 8)


@pytest.fixture
def inversion(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "image_steps": 4, "augmentation": RollFlip(1), "round_size": 12,
            "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9), "check_teacher": False,
        }  # fmt: skip
        return DeepInversion(**{**defaults, **options})

    return make


class Spy(Callback):
    """Keeps every round, the student before it, its images and every step's loss."""

    def __init__(self):
        self.rounds = []

    def on_fit_start(self, trainer, method):
        optimize = method._optimize_images

        def watched(item):
            student = copy.deepcopy(method.student).eval()
            images, terms, names = optimize(item)
            self.rounds.append((item, student, images, terms[:, names.index("loss")].tolist()))
            return images, terms, names

        method._optimize_images = watched


def statistics_loss(teacher, images):
    """Logits, and the statistics term, one layer after the other, by hooks of its own."""
    terms = []

    def look(norm, inputs):
        x = inputs[0].transpose(0, 1).flatten(1)
        mean, variance = x.mean(1), x.var(1, correction=0)
        terms.append((norm.running_var - variance).norm() + (norm.running_mean - mean).norm())

    norms = [module for module in teacher.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    logits = teacher(images)
    for handle in handles:
        handle.remove()
    return logits, sum(terms)


def test_round(inversion, tiny_data, fit):
    """Plain Adam on a new leaf; all terms by hand, in normalized units, clipped by hand."""
    weights = {"ce_weight": 0.7, "tv_weight": 0.02, "l2_weight": 0.03, "bn_weight": 2.0}
    size = {"image_steps": 12, "adv_weight": 9.0, "adv_temperature": 3.0, "augmentation": None}
    method, spy = inversion(seed=9, **size, **weights).double(), Spy()
    fit(method, tiny_data(), callbacks=[spy], precision="64-true")
    rng = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE))
    teacher = method.teacher.classifier
    mean, std = teacher.mean, teacher.std
    assert [item.warm_up for item, *_ in spy.rounds] == [True, True, False, False]
    for item, student, found, history in spy.rounds:
        leaf = torch.empty(12, *SHAPE, dtype=torch.float64).normal_(generator=rng)
        adam, steps = torch.optim.Adam([leaf.requires_grad_()], lr=0.05), []
        for _ in range(12):
            leaf.data.clamp_(float(-mean / std), float((1 - mean) / std))
            images = leaf * std + mean
            logits, matching = statistics_loss(teacher, images)
            loss = 0.7 * F.cross_entropy(logits, item.targets) + 2.0 * matching
            loss = loss + 0.02 * total_variation(leaf) + 0.03 * leaf.square().sum().sqrt()
            if not item.warm_up:  # to disagree is good
                loss = loss + 9.0 * (1 - jensen_shannon(student(images), logits, 3.0).mean())
            steps.append((float(loss.detach()), images.detach().clone()))
            adam.zero_grad()
            loss.backward()
            adam.step()
        losses, seen = zip(*steps, strict=True)
        torch.testing.assert_close(history, list(losses))
        torch.testing.assert_close(found, seen[losses.index(min(losses))])


def test_range(inversion, tiny_data, fit):
    """Images stay images, and no pixel is stuck at the border."""
    method, spy = inversion(image_lr=100.0), Spy()
    fit(method, tiny_data(), callbacks=[spy])
    for _, _, images, _ in spy.rounds:
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    pixels = method.synthesizer.pixels
    pixels.data = 1000 * torch.rand_like(pixels).sub(0.5).sign()
    images = method.synthesizer.generate(torch.zeros(12))
    torch.testing.assert_close(images, images.round())
    images.sum().backward()
    assert (pixels.grad != 0).all()


def test_fresh_start(inversion, tiny_data, fit):
    """Nothing is left of a round in the next."""
    ages, starts = [], []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            adam, pixels = trainer.optimizers[1], method.synthesizer.pixels
            adam.register_step_pre_hook(lambda *_: starts.append(pixels.detach().clone()))
            adam.register_step_post_hook(lambda *_: ages.append(int(adam.state[pixels]["step"])))

        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if isinstance(item, SynthesisRound):
                assert trainer.optimizers[1].state == {}

    fit(inversion(), tiny_data(), callbacks=[Watch()])
    assert ages == 4 * [1, 2, 3, 4]
    assert all((a - b).abs().mean() > 0.3 for a, b in itertools.pairwise(starts[::4]))


def test_teacher_without_batchnorm(inversion, tiny_classifier, tiny_data, fit):
    method = inversion(teacher=tiny_classifier(norm=False), bn_weight=0)
    fit(method, tiny_data())
    assert method.student_updates == 6


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_recipe(config, data):
    cfg = config("model=deepinversion", f"data={data}")
    model, plan = cfg.model, cfg.plan
    assert (model.image_steps, model.image_lr, plan.round_size) == (2000, 0.05, 256)
    assert (model.tv_weight, model.l2_weight, model.bn_weight) == (2.5e-5, 3e-8, 10)
    assert (model.adv_weight, model.adv_temperature) == (10, 3)
    assert (model.augmentation.jitter, model.augmentation.flip) == (2, True)


def test_recipe__digits(config):
    assert config("model=deepinversion", "data=digits").model.augmentation.flip is False
