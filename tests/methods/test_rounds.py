"""What NAYER, FastDFKD, CMI and DeepInversion have in common: rounds that fill a bank."""

import copy
import shutil
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import (
    CMI,
    NAYER,
    DeepInversion,
    DivergenceError,
    FastDFKD,
    Generator,
    InputError,
    RandomCropFlip,
)
from nayer_pl.callbacks.checkpoint import Checkpoints

SHAPE = (1, 8, 8)
SMALL = {"generator": lambda n, s: Generator(n, s, width=8), "generator_steps": 4}
OPTIONS = {
    NAYER: {"label_text": torch.randn(3, 5), "noisy_features": 16, **SMALL},
    FastDFKD: {"noise_features": 16, **SMALL},
    CMI: {"noise_features": 16, "embedding_features": 8, **SMALL},
    DeepInversion: {"image_steps": 4, "augmentation": None},
}
METHODS = pytest.mark.parametrize("kind", OPTIONS, ids=lambda kind: kind.__name__)
STUDENT = {"optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9)}


@pytest.fixture
def make(tiny_classifier):
    def build(kind, **options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        common = {"image_shape": SHAPE, "round_size": 12, "check_teacher": False, **STUDENT}
        return kind(**{**nets, **common, **OPTIONS[kind], **options})

    return build


class Spy(Callback):
    """Keeps of every round: labels, kept images, terms by name, images of each step, warm-up."""

    def __init__(self):
        self.rounds = []

    def on_fit_start(self, trainer, method):
        optimize, generate = method._optimize_images, method.synthesizer.generate
        made = []

        def watched(item):
            made.clear()
            images, terms, names = optimize(item)
            history = dict(zip(names, terms.T, strict=True))
            self.rounds.append((item.targets, images, history, list(made), item.warm_up))
            return images, terms, names

        def kept(targets):
            images = generate(targets)
            made.append(images.detach().clone())
            return images

        method._optimize_images, method.synthesizer.generate = watched, kept


@METHODS
def test_lowest_loss_is_kept(make, tiny_data, fit, kind):
    method, spy, calls = make(kind), Spy(), []
    loss = method.synthesizer.loss

    def ordered(*args):
        calls.append(1)
        terms = loss(*args)
        return {**terms, "loss": 1e-6 * terms["loss"] + [1.0, 4.0, 0.0, 2.0][len(calls) % 4]}

    method.synthesizer.loss = ordered
    fit(method, tiny_data(), callbacks=[spy])
    for _, images, history, made, _ in spy.rounds:
        assert history["loss"].argsort().tolist() == [1, 3, 2, 0]
        assert torch.equal(images, made[1].clamp(0, 1))
        assert not any(torch.equal(made[1], made[step]) for step in (0, 2, 3))


@METHODS
def test_loss__weighted_sum(make, tiny_data, fit, kind):
    """And the student is not asked in warm-up."""
    weights = {"bn_weight": 3.0, "ce_weight": 0.7, "adv_weight": 2.0}
    if kind is CMI:
        weights["cr_weight"] = 1.5
    if kind is DeepInversion:
        weights |= {"tv_weight": 0.02, "l2_weight": 0.03}
    spy = Spy()
    fit(make(kind, **weights), tiny_data(), callbacks=[spy])
    assert [warm_up for *_, warm_up in spy.rounds] == [True, True, False, False]
    for *_, history, _, warm_up in spy.rounds:
        terms = set(history) - {"loss", "gradient"}
        every = {name.removesuffix("_weight") for name in weights}
        assert terms == (every - {"adv"} if warm_up else every)
        total = sum(weights[f"{name}_weight"] * history[name] for name in terms)
        torch.testing.assert_close(history["loss"], total)


@METHODS
def test_round__student_unchanged(make, tiny_data, fit, kind):
    method = make(kind)
    before = copy.deepcopy(method.student.state_dict())
    fit(method, tiny_data(), limit_train_batches=1, max_epochs=2)
    assert method.rounds == 2
    assert all(torch.equal(before[k], v) for k, v in method.student.state_dict().items())
    assert all(p.grad is None for p in [*method.student.parameters(), *method.teacher.parameters()])


@METHODS
def test_adam__starts_afresh(make, tiny_data, fit, kind):
    """Of what a round makes; CMI's head goes on."""
    ages = []

    class Watch(Callback):
        def on_train_start(self, trainer, method):
            first = trainer.optimizers[1].param_groups[0]["params"]
            trainer.optimizers[1].register_step_post_hook(
                lambda adam, *_: ages.append({int(adam.state[p]["step"]) for p in first})
            )

    fit(make(kind), tiny_data(), callbacks=[Watch()])
    assert ages == 4 * [{1}, {2}, {3}, {4}]


@METHODS
@pytest.mark.parametrize(
    "augmentation",
    [RandomCropFlip(2), lambda images, rng: images + torch.rand((), generator=rng)],
    ids=["ours", "any callable"],
)
def test_augmentation__judged_not_banked(make, tiny_data, fit, kind, augmentation):
    method, data, spy, seen = make(kind, augmentation=augmentation), tiny_data(), Spy(), []
    observe = method.teacher.observe
    method.teacher.observe = lambda images: seen.append(images.detach()) or observe(images)
    fit(method, data, callbacks=[spy], max_epochs=1, limit_train_batches=1)
    _, images, _, made, _ = spy.rounds[0]
    judged = seen[:: len(seen) // 4]  # CMI also shows parts of images
    assert not any(torch.equal(plain, shown) for plain, shown in zip(made, judged, strict=True))
    banked = data.bank.images.float() / 255
    torch.testing.assert_close(banked, images, atol=0.5 / 255 + 1e-6, rtol=0)


def plain_generator(features, image_shape):
    """Modules of torch alone, a transposed convolution among them."""
    wide = nn.Sequential(nn.Linear(features, 4 * 16), nn.Unflatten(1, (4, 4, 4)))
    return nn.Sequential(wide, nn.ConvTranspose2d(4, image_shape[0], 2, stride=2), nn.Sigmoid())


@pytest.mark.parametrize("kind", [NAYER, CMI])
def test_generator__any_module(make, tiny_data, fit, kind):
    """It starts from scratch in the first distillation epoch (NAYER), or in every round (CMI)."""
    method = make(kind, generator=plain_generator, generator_steps=2, generator_lr=0.0)
    generator = method.synthesizer.generator
    layers = generator[0][0], generator[1]
    before = [layer.weight.clone() for layer in layers]
    fit(method, tiny_data())
    assert not any(torch.equal(old, new.weight) for old, new in zip(before, layers, strict=True))


@METHODS
def test_nonfinite_term(make, tiny_data, fit, kind):
    """It is named, and its round reaches neither bank nor student."""
    method, data, calls = make(kind), tiny_data(), []
    before = copy.deepcopy(method.student.state_dict())
    loss = method.synthesizer.loss

    def broken(*args):
        calls.append(1)
        terms = loss(*args)
        if len(calls) == 7:
            terms |= {"bn": terms["bn"] * float("nan"), "loss": terms["loss"] * float("nan")}
        return terms

    method.synthesizer.loss = broken
    with pytest.raises(DivergenceError, match=r"'bn' became nan at step 3 of round 2"):
        fit(method, data)
    assert data.bank.num_added == 12
    assert all(torch.equal(before[k], v) for k, v in method.student.state_dict().items())


@METHODS
def test_teacher__without_batchnorm(make, tiny_classifier, tiny_data, fit, kind):
    plain = partial(tiny_classifier, norm=False)
    with pytest.raises(InputError, match=r"no BatchNorm2d .*DFAD works with every teacher"):
        make(kind, teacher=plain())
    if kind is CMI:  # its features come from BatchNorms
        with pytest.raises(InputError, match="no BatchNorm2d"):
            make(kind, teacher=plain(), bn_weight=0)
        return
    method = make(kind, teacher=plain(), bn_weight=0)
    fit(method, tiny_data())
    assert method.student_updates == 6


@METHODS
def test_round_size__too_small(make, tiny_data, fit, kind):
    with pytest.raises(InputError, match=r"round_size must be at least the plan's.* 12, not 8"):
        fit(make(kind, round_size=8), tiny_data({"round_size": 12}))


@METHODS
def test_resume(make, tiny_data, fit, tmp_path, kind):
    """In warm-up, between two steps, near the end; and nothing is saved that a round redraws."""

    class KeepAll(Checkpoints):
        kept = 0

        def save(self, trainer):
            super().save(trainer)
            self.kept += 1
            shutil.copy(self.folder / "last.ckpt", self.folder / f"{self.kept}.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method, data = make(kind, bn_momentum=0.9, augmentation=RandomCropFlip(1)), tiny_data()
        saver = KeepAll(tmp_path / "checkpoints", minutes=0)
        fit(method, data, callbacks=[saver], enable_checkpointing=True, **options)
        return [*method.student.state_dict().values(), data.bank.images], saver.kept

    whole, kept = run()
    content = torch.load(tmp_path / "checkpoints" / "4.ckpt", weights_only=True)
    parts = content["nayer_pl"]["ranks"][0]["parts"]
    expected = {
        NAYER: {"generator", "criterion", "conditioning"}, FastDFKD: {"generator", "criterion"},
        CMI: {"head", "criterion"}, DeepInversion: {"criterion"},
    }  # fmt: skip
    assert {name.split(".")[1] for name in parts} == expected[kind]
    assert not any("noisy_layer" in name for name in parts)
    names = ["1.ckpt", "4.ckpt", f"{kept}.ckpt"]
    for name in names:
        shutil.copy(tmp_path / "checkpoints" / name, tmp_path / name)
    for name in names:
        again, _ = run(ckpt_path=tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
