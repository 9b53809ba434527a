import itertools
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from scipy.spatial.distance import jensenshannon

from nayer_pl import InputError, RandomCropFlip
from nayer_pl.bank import SynthesisRound
from nayer_pl.callbacks.checkpoint import Checkpoints
from nayer_pl.methods.deepinversion import (
    DeepInversion,
    jensen_shannon,
    roll_and_mirror,
    total_variation,
)
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
            "image_steps": 4, "jitter": 1, "round_size": 12, "learning_rate": 0.05,
            "check_teacher": False,
        }  # fmt: skip
        return DeepInversion(**{**defaults, **options})

    return make


class Spy(Callback):
    """Keeps the labels, the images and the terms of every round."""

    def __init__(self):
        self.rounds = []

    def on_fit_start(self, trainer, method):
        synthesize = method.synthesize

        def watched(targets, warm_up):
            images, history = synthesize(targets, warm_up)
            self.rounds.append((targets, images, history, warm_up))
            return images, history

        method.synthesize = watched


def test_total_variation_is_that_of_a_loop():
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        squares = 0.0
        for b, c, i, j in itertools.product(*map(range, images.shape)):
            if 0 <= i + down < 4 and j + right < 5:
                squares += float(images[b, c, i, j] - images[b, c, i + down, j + right]) ** 2
        expected += math.sqrt(squares)
    assert float(total_variation(images)) == pytest.approx(expected)


def test_divergence_is_scipys_and_has_its_limits():
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


@pytest.mark.parametrize("flip", [False, True])
def test_all_images_are_rolled_alike_and_every_roll_comes(flip):
    images, rng = torch.rand(2, 1, 4, 5), torch.Generator().manual_seed(0)
    expected = views_of(images, 1, flip)
    seen = [roll_and_mirror(images, 1, flip, rng) for _ in range(200)]
    found = [[torch.equal(a, b) for b in expected] for a in seen]
    assert all(any(row) for row in found)
    assert all(any(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize(("jitter", "flip"), [(1, False), (0, True)])
def test_the_teacher_sees_every_wanted_roll_and_mirror_image(
    inversion, tiny_data, fit, jitter, flip
):
    method, made, seen = inversion(jitter=jitter, flip=flip, image_steps=50), [], []
    make = method._make
    method._make = lambda count: made.append(make(count)) or made[-1]
    method.statistics.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
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


def test_every_round_is_a_loop_written_out_with_an_optimizer_of_its_own(inversion, tiny_data, fit):
    """Plain Adam on a new leaf; all terms by hand, in normalized units, clipped by hand."""
    weights = {"ce_weight": 0.7, "tv_weight": 0.02, "l2_weight": 0.03, "bn_weight": 2.0}
    method = inversion(jitter=0, flip=False, seed=9, image_steps=12, **weights).double()
    spy = Spy()
    fit(method, tiny_data(), callbacks=[spy], max_epochs=1, precision="64-true")
    rng = torch.Generator().manual_seed(stream_seed(9, 0, Stream.NOISE))
    teacher = method.teacher.eval()
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


def test_pixels_lower_the_teachers_loss(inversion, decided, tiny_data, fit):
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


def test_competition_makes_student_and_teacher_disagree(inversion, decided, tiny_data, fit):
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


def test_images_stay_images_and_none_is_stuck_at_the_border(inversion, tiny_data, fit):
    method, spy = inversion(image_lr=100.0), Spy()
    fit(method, tiny_data(), callbacks=[spy])
    for _, images, _, _ in spy.rounds:
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    with torch.no_grad():
        method.pixels.copy_(1000 * torch.rand_like(method.pixels).sub(0.5).sign())
    images = method._make(12)
    torch.testing.assert_close(images, images.round())
    images.sum().backward()
    assert (method.pixels.grad != 0).all()


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(inversion, tiny_data, fit, tmp_path):
    class KeepAll(Checkpoints):
        kept = 0

        def save(self, trainer):
            super().save(trainer)
            self.kept += 1
            shutil.copy(self.folder / "last.ckpt", self.folder / f"{self.kept}.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method, data = inversion(bn_momentum=0.9), tiny_data()
        saver = KeepAll(tmp_path / "checkpoints", minutes=0)
        fit(method, data, callbacks=[saver], enable_checkpointing=True, **options)
        return [*method.student.state_dict().values(), data.bank.images], saver.kept

    whole, kept = run()
    names = ["1.ckpt", "4.ckpt", f"{kept}.ckpt"]  # in warm-up, between two steps, near the end
    for name in names:
        shutil.copy(tmp_path / "checkpoints" / name, tmp_path / name)
    content = torch.load(tmp_path / "4.ckpt", weights_only=True)["nayer_pl"]["ranks"][0]
    assert {name.partition(".")[0] for name in content["parts"]} == {"statistics"}
    assert content["optimizers"][0]["state"] == {}
    for name in names:
        again, _ = run(ckpt_path=tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))


def test_a_teacher_without_batchnorm_is_refused(inversion, tiny_classifier, tiny_data, fit):
    with pytest.raises(InputError, match=r"no BatchNorm2d .*model=dfad works with every teacher"):
        inversion(teacher=tiny_classifier(norm=False))
    method = inversion(teacher=tiny_classifier(norm=False), bn_weight=0)
    fit(method, tiny_data())
    assert method.student_updates == 6


def test_recipes_are_those_of_the_paper(config):
    for data in ("cifar10", "cifar100"):
        cfg = config("model=deepinversion", f"data={data}")
        model, plan = cfg.model, cfg.plan
        assert (model.image_steps, model.image_lr, plan.round_size) == (2000, 0.05, 256)
        assert (model.tv_weight, model.l2_weight, model.bn_weight) == (2.5e-5, 3e-8, 10)
        assert (model.adv_weight, model.adv_temperature, model.jitter, model.flip) == (
            10,
            3,
            2,
            True,
        )
    assert config("model=deepinversion", "data=digits").model.flip is False


def test_nothing_is_left_of_a_round_in_the_next(inversion, tiny_data, fit):
    ages, starts = [], []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            adam = trainer.optimizers[1]
            adam.register_step_pre_hook(lambda *_: starts.append(method.pixels.detach().clone()))
            adam.register_step_post_hook(
                lambda adam, *_: ages.append({int(s["step"]) for s in adam.state.values()})
            )

        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if isinstance(item, SynthesisRound):
                assert trainer.optimizers[1].state == {}

    method = inversion()
    parameter = method.pixels
    fit(method, tiny_data(), callbacks=[Watch()])
    assert method.pixels is parameter
    assert ages == 4 * [{1}, {2}, {3}, {4}]
    firsts = starts[::4]
    assert all((a - b).abs().mean() > 0.3 for a, b in itertools.pairwise(firsts))


def test_augmentation_of_others_is_refused(inversion):
    with pytest.raises(InputError, match="jitter and flip are its own"):
        inversion(augmentation=RandomCropFlip(1))
