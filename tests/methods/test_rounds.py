"""What NAYER, FastDFKD, CMI and DeepInversion have in common: rounds that fill a bank."""

import copy
import itertools
import shutil
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import CMI, NAYER, DeepInversion, FastDFKD, Generator, InputError, RandomCropFlip
from nayer_pl.bank import SynthesisRound
from nayer_pl.callbacks.checkpoint import Checkpoints

SHAPE = (1, 8, 8)
NOISE = {"noise_features": 16, "generator": partial(Generator, width=8), "generator_steps": 4}
OPTIONS = {
    NAYER: {**NOISE, "label_text": torch.randn(3, 5)},
    FastDFKD: NOISE,
    CMI: {**NOISE, "embedding_features": 8},
    DeepInversion: {"image_steps": 4},
}
OPTIONS[NAYER]["noisy_features"] = OPTIONS[NAYER].pop("noise_features")
WEIGHTS = {"bn": 3.0, "ce": 0.7, "adv": 2.0}
OTHER_WEIGHTS = {CMI: {"cr": 1.5}, DeepInversion: {"tv": 0.02, "l2": 0.03}}
PUBLISHED = {
    "fast_dfkd": {
        "model": {
            "generator_steps": 10, "generator_lr": 2e-3, "latent_lr": 0.01, "noise_features": 256,
            "meta": "fomaml", "first_layer_reset": 120, "bn_weight": 10, "ce_weight": 0.5,
            "adv_weight": 1.33,
        },
        "plan": {
            "epochs": 200, "warmup_epochs": 20, "kd_steps": 400, "warmup_rounds": 1,
            "rounds_per_epoch": 1, "round_size": 256, "batch_size": 256,
        },
    },
    "cmi": {
        "model": {
            "generator_steps": 200, "generator_lr": 1e-3, "noise_features": 256, "bn_weight": 1,
            "ce_weight": 0.5, "adv_weight": 0.5, "cr_weight": 0.8, "cr_temperature": 0.1,
            "embedding_features": 256,
        },
        "plan": {  # 51,200 images in warm-up
            "warmup_epochs": 20, "warmup_rounds": 10, "round_size": 256, "epochs": 40,
            "kd_steps": 2000, "batch_size": 128,
        },
    },
    "deepinversion": {
        "model": {
            "image_steps": 2000, "image_lr": 0.05, "tv_weight": 2.5e-5, "l2_weight": 3e-8,
            "bn_weight": 10, "adv_weight": 10, "adv_temperature": 3,
        },
        "plan": {"round_size": 256},
    },
}  # fmt: skip
every_method = pytest.mark.parametrize("method", OPTIONS)


@pytest.fixture
def make(tiny_classifier):
    def build(method, **options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        small = {"image_shape": SHAPE, "round_size": 12, "check_teacher": False}
        return method(**{**nets, **small, **OPTIONS[method], **options})

    return build


@every_method
def test_round(make, tiny_data, fit, watch_rounds, method):
    """The loss is the sum of its terms; images of the step with the lowest are kept."""
    weights = WEIGHTS | OTHER_WEIGHTS.get(method, {})
    lr = {"image_lr": 1.0} if method is DeepInversion else {"generator_lr": 0.5}
    made = make(method, **lr, **{f"{name}_weight": weight for name, weight in weights.items()})
    for net in (made.teacher.classifier, made.student):  # no class is everybody's favorite
        net.network.head.bias.data -= net.eval()(torch.rand(99, *SHAPE)).detach().mean(0)
    student, rounds, chosen = copy.deepcopy(made.student).eval(), watch_rounds(made), set()
    fit(made, tiny_data())
    assert [each.warm_up for each in rounds] == [True, True, False, False]
    for each in rounds:
        terms = {name: values for name, values in each.terms.items() if name != "gradient"}
        loss, best = terms.pop("loss"), int(each.terms["loss"].argmin())
        assert terms.keys() == weights.keys() - ({"adv"} if each.warm_up else set())
        total = sum(weights[name] * values for name, values in terms.items())
        torch.testing.assert_close(loss, total)
        assert torch.equal(each.kept, each.made[best].clamp(0, 1))
        chosen.add(best)
    assert chosen != {3}, "the last step is always the best: this test shows nothing"

    if method is DeepInversion:  # which has views and another adversary
        return
    images, first = torch.cat(rounds[2].made), rounds[2]  # the student has learned nothing yet
    teacher_logits = made.teacher.classifier(images)
    p, q = teacher_logits.softmax(1), student(images).softmax(1)
    agree = p.argmax(1) == q.argmax(1)
    assert 0 < agree.sum() < len(images)
    divergence = (p * (p / q).log()).sum(1) * agree
    torch.testing.assert_close(first.terms["adv"], -divergence.view(4, 12).mean(1))
    ce = F.cross_entropy(teacher_logits, first.targets.repeat(4), reduction="none")
    torch.testing.assert_close(first.terms["ce"], ce.view(4, 12).mean(1))


@every_method
def test_round__student_untouched(make, tiny_data, fit, method):
    made = make(method)
    before = copy.deepcopy(made.student.state_dict())
    fit(made, tiny_data(), limit_train_batches=1, max_epochs=2)
    assert made.rounds == 2
    assert all(torch.equal(before[k], v) for k, v in made.student.state_dict().items())
    assert all(p.grad is None for p in [*made.student.parameters(), *made.teacher.parameters()])


@every_method
def test_adam__starts_afresh(make, tiny_data, fit, method):
    """In every round, but for CMI's head."""
    made, ages, ages_of_head = make(method), [], []
    head = set(made.synthesizer.head.parameters()) if method is CMI else set()

    def look(adam, *_):
        steps = [(p in head, int(state["step"])) for p, state in adam.state.items()]
        ages.append({step for of_head, step in steps if not of_head})
        ages_of_head.append({step for of_head, step in steps if of_head})

    class Watch(Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[1].register_step_post_hook(look)

        def on_train_batch_end(self, trainer, pl_module, outputs, item, i):
            if isinstance(item, SynthesisRound):
                assert trainer.optimizers[1].state.keys() == head

    fit(made, tiny_data(), callbacks=[Watch()])
    assert ages == 4 * [{1}, {2}, {3}, {4}]
    assert ages_of_head == [{step + 1} if head else set() for step in range(16)]


def plain_generator(features, image_shape):
    """Modules of torch alone, a transposed convolution among them."""
    wide = nn.Sequential(nn.Linear(features, 4 * 16), nn.Unflatten(1, (4, 4, 4)))
    return nn.Sequential(wide, nn.ConvTranspose2d(4, image_shape[0], 2, stride=2), nn.Sigmoid())


@pytest.mark.parametrize("method", [NAYER, CMI])
def test_generator__any_module(make, tiny_data, fit, method):
    """Drawn again in the first distillation epoch (NAYER), or in every round (CMI)."""
    made = make(method, generator=plain_generator, generator_steps=2, generator_lr=0.0)
    layers = made.synthesizer.generator[0][0], made.synthesizer.generator[1]
    before = [layer.weight.clone() for layer in layers]
    fit(made, tiny_data())
    assert not any(torch.equal(old, new.weight) for old, new in zip(before, layers, strict=True))


@pytest.mark.parametrize("method", [NAYER, FastDFKD, DeepInversion])
def test_teacher_without_batchnorm(make, tiny_classifier, tiny_data, fit, method):
    with pytest.raises(InputError, match=r"no BatchNorm2d .*bn_weight=0"):
        make(method, teacher=tiny_classifier(norm=False))
    made = make(method, teacher=tiny_classifier(norm=False), bn_weight=0)
    fit(made, tiny_data())
    assert made.student_updates == 6


class KeepAll(Checkpoints):
    kept = 0

    def save(self, trainer):
        super().save(trainer)
        self.kept += 1
        shutil.copy(self.folder / "last.ckpt", self.folder.parent / f"{self.kept}.ckpt")


@pytest.mark.parametrize(
    ("method", "options", "saved"),
    [
        (FastDFKD, {"first_layer_reset": 2}, {"criterion", "generator"}),
        (CMI, {"negatives": 20}, {"criterion", "head"}),
        (DeepInversion, {"bn_momentum": 0.9}, {"criterion"}),
    ],
)  # NAYER is in tests/app/test_resuming.py
def test_resume(make, tiny_data, fit, tmp_path, method, options, saved):
    """From warm-up, between two steps, and near the end."""
    if method is not DeepInversion:  # which has views by default
        options = {"augmentation": RandomCropFlip(1), **options}

    def run(folder, **trainer_options):
        torch.manual_seed(3)
        made, data = make(method, **options), tiny_data({"warmup_rounds": 3})
        saver = KeepAll(tmp_path / folder / "checkpoints", minutes=0)
        trainer = fit(made, data, callbacks=[saver], enable_checkpointing=True, **trainer_options)
        own = [getattr(made.synthesizer, part, None) for part in ("head", "generator")]
        parts = [made.student, *filter(None, own if method is not CMI else own[:1])]
        tensors = [tensor for part in parts for tensor in part.state_dict().values()]
        if method is FastDFKD:  # a step of the outer optimizer in each round
            outer = trainer.optimizers[2].state.values()
            assert {int(state["step"]) for state in outer} == {5}
        return [*tensors, data.bank.images], saver.kept

    whole, kept = run("whole")
    content = torch.load(tmp_path / "whole" / "5.ckpt", weights_only=True)["nayer_pl"]["ranks"][0]
    names = [name.removeprefix("synthesizer.") for name in content["parts"]]
    assert {name.partition(".")[0] for name in names} == saved
    if method is DeepInversion:
        assert content["optimizers"][0]["state"] == {}
    for number in (1, 5, kept):
        again, _ = run(f"from {number}", ckpt_path=tmp_path / "whole" / f"{number}.ckpt")
        assert all(torch.equal(a, b) for a, b in itertools.zip_longest(again, whole))


@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe__published(config, name, data):
    cfg = config(f"model={name}", f"data={data}")
    for group, published in PUBLISHED[name].items():
        assert {key: cfg[group][key] for key in published} == published
