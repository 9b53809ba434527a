import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from scipy.spatial.distance import jensenshannon

from nayer_pl import RollFlip
from nayer_pl.bank import SynthesisRound
from nayer_pl.losses.functional import jensen_shannon, total_variation
from nayer_pl.methods.deep_inversion import DeepInversion
from nayer_pl.runtime.numerics import Stream, stream_seed

SHAPE = (1, 8, 8)


@pytest.fixture
def decided(tiny_classifier):
    """A network with opinions: it was never trained, but its logits are far apart."""

    def make():
        net = tiny_classifier()
        net.network.head.weight.data.mul_(20)
        return net

    return make


@pytest.fixture
def inversion(tiny_classifier):
    def make(**options):
        defaults = {
            "teacher": tiny_classifier(), "student": tiny_classifier(), "image_shape": SHAPE,
            "image_steps": 4, "augmentation": RollFlip(1), "round_size": 12, "check_teacher": False,
        }  # fmt: skip
        return DeepInversion(**{**defaults, **options})

    return make


class Spy(Callback):
    """Keeps the labels, the images and the terms of every round."""

    def __init__(self):
        self.rounds = []

    def on_fit_start(self, trainer, method):
        optimize = method._optimize_images

        def watched(item):
            images, terms, names = optimize(item)
            history = dict(zip(names, terms.T, strict=True))
            self.rounds.append((item.targets, images, history, item.warm_up))
            return images, terms, names

        method._optimize_images = watched


def test_total_variation__loop():
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        squares = 0.0
        for b, c, i, j in itertools.product(*map(range, images.shape)):
            if 0 <= i + down < 4 and j + right < 5:
                squares += float(images[b, c, i, j] - images[b, c, i + down, j + right]) ** 2
        expected += math.sqrt(squares)
    assert float(total_variation(images)) == pytest.approx(expected)


def test_jensen_shannon__scipy_and_limits():
    first, second = torch.randn(2, 6, 5, dtype=torch.float64) * 4
    p, q = (logits.div(3).softmax(1).numpy() for logits in (first, second))
    expected = torch.tensor([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(jensen_shannon(first, second, 3.0), expected)
    certain = 1000 * torch.eye(2)
    ends = jensen_shannon(certain, certain[[0, 0]], 3.0)
    assert ends.tolist() == pytest.approx([0.0, math.log(2)])


def views_of(images, limit, flip):
    """All that may become of images: their rolls, and those of their mirror images."""
    views = [images, images.flip(3)] if flip else [images]
    shifts = itertools.product(range(-limit, limit + 1), repeat=2)
    return [torch.roll(view, shift, (2, 3)) for shift in shifts for view in views]


@pytest.mark.parametrize(("jitter", "flip"), [(1, False), (0, True)])
def test_augmentation__every_roll_and_mirror_image(inversion, tiny_data, fit, jitter, flip):
    method, made, seen = inversion(augmentation=RollFlip(jitter, flip), image_steps=50), [], []
    make, observe = method.synthesizer.generate, method.teacher.observe
    method.synthesizer.generate = lambda targets: made.append(make(targets)) or made[-1]
    method.teacher.observe = lambda images: seen.append(images) or observe(images)
    fit(method, tiny_data(), max_epochs=1, limit_train_batches=1)
    assert len(made) == len(seen) == 50
    found = [
        [torch.equal(shown, view) for view in views_of(images, jitter, flip)]
        for images, shown in zip(made, seen, strict=True)
    ]
    assert all(any(row) for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


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


def test_round__loop_written_out(inversion, tiny_data, fit):
    """Plain Adam on a new leaf; all terms by hand, in normalized units, clipped by hand."""
    weights = {"ce_weight": 0.7, "tv_weight": 0.02, "l2_weight": 0.03, "bn_weight": 2.0}
    method = inversion(augmentation=RollFlip(0, False), seed=9, image_steps=12, **weights).double()
    spy = Spy()
    fit(method, tiny_data(), callbacks=[spy], max_epochs=1, precision="64-true")
    rng = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE))
    teacher = method.teacher.classifier
    mean, std = teacher.mean, teacher.std
    assert len(spy.rounds) == 2
    for targets, found, history, _ in spy.rounds:
        pixels = torch.empty(12, *SHAPE, dtype=torch.float64).normal_(generator=rng)
        adam, steps = None, []
        for _ in range(12):
            torch.randint(3, (2,), generator=rng)  # the roll, by nothing here
            pixels = pixels.detach().clamp(float(-mean / std), float((1 - mean) / std))
            if adam is None:
                leaf = torch.nn.Parameter(pixels)
                adam = torch.optim.Adam([leaf], lr=0.05)
            leaf.data.copy_(pixels)
            images = leaf * std + mean
            logits, matching = statistics_loss(teacher, images)
            loss = 0.7 * F.cross_entropy(logits, targets) + 2.0 * matching
            loss = loss + 0.02 * total_variation(leaf) + 0.03 * leaf.square().sum().sqrt()
            steps.append((float(loss.detach()), images.detach().clone()))
            adam.zero_grad()
            loss.backward()
            adam.step()
            pixels = leaf.detach().clone()
        losses, seen = zip(*steps, strict=True)
        torch.testing.assert_close(history["loss"].tolist(), list(losses))
        torch.testing.assert_close(found, seen[losses.index(min(losses))])


def test_pixels__lower_the_teachers_loss(inversion, decided, tiny_data, fit):
    method, spy = (
        inversion(teacher=decided(), image_steps=40, image_lr=0.2, adv_weight=0, bn_weight=0),
        Spy(),
    )
    fit(method, tiny_data(), callbacks=[spy])
    for targets, images, history, _ in spy.rounds:
        assert history["loss"][-5:].mean() < 0.8 * history["loss"][0]
        noise = torch.randn_like(images).mul(0.3).add(0.4).clamp(0, 1)
        on_noise, on_images = (F.cross_entropy(method.teacher(x), targets) for x in (noise, images))
        assert on_images < on_noise


def test_competition__disagreement(inversion, decided, tiny_data, fit):
    """The same networks, noise and rolls; the student is as it was at the start."""

    def disagreement(adv_weight):
        torch.manual_seed(4)
        options = {"teacher": decided(), "student": decided(), "image_steps": 40, "image_lr": 0.2}
        method, spy = inversion(adv_weight=adv_weight, bn_weight=0.5, **options), Spy()
        fit(method, tiny_data({"rounds_per_epoch": 2}), callbacks=[spy], limit_train_batches=2)
        assert [warm_up for *_, warm_up in spy.rounds] == [True, True, False, False, False, False]
        for *_, terms, warm_up in spy.rounds:
            assert ("adv" in terms) == (adv_weight > 0 and not warm_up)
        method.student.eval()
        images = torch.cat([images for _, images, _, warm_up in spy.rounds if not warm_up])
        return float(jensen_shannon(method.student(images), method.teacher(images), 3.0).mean())

    assert disagreement(100.0) > 1.5 * disagreement(0.0)


def test_pixels__clipped_but_not_stuck(inversion, tiny_data, fit):
    method, spy = inversion(image_lr=100.0), Spy()
    fit(method, tiny_data(), callbacks=[spy])
    for _, images, _, _ in spy.rounds:
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    with torch.no_grad():
        method.synthesizer.pixels.copy_(
            1000 * torch.rand_like(method.synthesizer.pixels).sub(0.5).sign()
        )
    images = method.synthesizer.generate(torch.arange(12))
    torch.testing.assert_close(images, images.round())
    images.sum().backward()
    assert (method.synthesizer.pixels.grad != 0).all()


def test_recipes(config):
    for data in ("cifar10", "cifar100"):
        cfg = config("model=deepinversion", f"data={data}")
        model, plan = cfg.model, cfg.plan
        assert (model.image_steps, model.image_lr, plan.round_size) == (2000, 0.05, 256)
        assert (model.tv_weight, model.l2_weight, model.bn_weight) == (2.5e-5, 3e-8, 10)
        assert (model.adv_weight, model.adv_temperature) == (10, 3)
        assert (model.augmentation.jitter, model.augmentation.flip) == (2, True)
    assert config("model=deepinversion", "data=digits").model.augmentation.flip is False


def test_rounds__independent(inversion, tiny_data, fit):
    ages, starts = [], []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            adam = trainer.optimizers[1]
            adam.register_step_pre_hook(
                lambda *_: starts.append(method.synthesizer.pixels.detach().clone())
            )
            adam.register_step_post_hook(
                lambda adam, *_: ages.append({int(s["step"]) for s in adam.state.values()})
            )

        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if isinstance(item, SynthesisRound):
                assert trainer.optimizers[1].state == {}

    method = inversion()
    parameter = method.synthesizer.pixels
    fit(method, tiny_data(), callbacks=[Watch()])
    assert method.synthesizer.pixels is parameter
    assert ages == 4 * [{1}, {2}, {3}, {4}]
    firsts = starts[::4]
    assert all((a - b).abs().mean() > 0.3 for a, b in itertools.pairwise(firsts))
