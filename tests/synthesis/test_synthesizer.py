import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD

from nayer_pl import (
    BankOptions,
    DataFreeDistillation,
    FrozenTeacher,
    OnlineSynthesizer,
    Synthesizer,
)
from nayer_pl.bank import SynthesisRound

SHAPE = (1, 8, 8)
PLAN = {
    "epochs": 4, "warmup_epochs": 0, "rounds_per_epoch": 3, "kd_steps": 6, "interleaved": True,
}  # fmt: skip
LR, STUDENT_LR = 0.02, 0.05


def bright(images, targets, teacher, student, warm_up):
    """Images should be bright, and nothing else."""
    return {"loss": -images.mean()}


@pytest.fixture
def train(tiny_classifier, tiny_data, fit):
    """Train a student with a synthesizer."""

    def run(synthesizer, plan, callbacks=(), **bank):
        teacher, student = tiny_classifier(), tiny_classifier()
        teacher.network.head.weight.data.mul_(20)  # an opinion
        teacher, optimizer = FrozenTeacher(teacher), partial(SGD, lr=STUDENT_LR)
        method = DataFreeDistillation(
            teacher, student, synthesizer, optimizer=optimizer, check_teacher=False
        )
        before = copy.deepcopy(teacher.state_dict())
        fit(method, tiny_data(plan, **bank), callbacks=list(callbacks))
        assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())
        return method

    return run


# A synthesizer of a user


class Pixels(Synthesizer):
    transient = ("pixels",)

    def __init__(self, **options):
        super().__init__(self.judge, steps=15, round_size=12, **options)
        self.pixels = nn.Parameter(torch.zeros(12, *SHAPE))

    def judge(self, images, targets, teacher, student, warm_up):
        return {"loss": F.cross_entropy(teacher(images), targets)}

    def configure_optimizers(self):
        return [torch.optim.Adam([self.pixels], lr=0.3)]

    def start_round(self, targets, teacher, bank):
        self.pixels.data.normal_(generator=self.rng)

    def generate(self, targets):
        return self.pixels[: len(targets)].sigmoid()


class Student(Callback):
    """Keeps the student as it was at the start."""

    def on_train_start(self, trainer, pl_module):
        self.weights = [each.detach().clone() for each in pl_module.student.parameters()]


def test_custom_synthesizer(train):
    """Learned pixels: the teacher sees their labels, and the student learns from them."""
    start = Student()
    method = train(Pixels(), {"epochs": 3}, [start])
    bank, results = method.datamodule.bank, method.results()
    assert results["label_agreement"] > 0.9
    counts = {"images_banked": 5 * 12, "synthesis_steps": 5 * 15, "student_updates": 9}
    assert counts.items() <= results.items()
    assert len(bank.images.unique(dim=0)) == 5 * 12
    learned = zip(start.weights, method.student.parameters(), strict=True)
    assert not any(torch.equal(*pair) for pair in learned)


def test_augmentation(train):
    """What is judged is augmented, and what is banked is not."""
    judged = []

    class Judge(Pixels):
        def judge(self, images, *rest):
            judged.append(images)
            return super().judge(images, *rest)

    method = train(Judge(augmentation=lambda images, rng: images + 2), {"epochs": 1})
    assert all(images.min() >= 2 for images in judged)
    assert method.datamodule.bank.images.float().std() > 1


# OnlineSynthesizer


def generator(**options):
    layers = nn.Linear(6, 64), nn.Sigmoid(), nn.Unflatten(1, SHAPE)
    return OnlineSynthesizer(nn.Sequential(*layers), 6, bright, 2, LR, (0.9, 0.999), **options)


class Witness(Callback):
    """What happens in each item."""

    def __init__(self):
        self.kinds, self.brightness, self.lrs = "", [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.kinds += "RB"[not isinstance(batch, SynthesisRound)]
        self.lrs.append([each.param_groups[0]["lr"] for each in trainer.optimizers])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if isinstance(batch, SynthesisRound):
            self.brightness.append(float(trainer.datamodule.bank.images.float().mean()))


@pytest.fixture
def found(train):
    """A run that was watched, and the images that the student saw."""
    seen, witness, synthesizer = [], Witness(), generator()
    draw = synthesizer.student_images
    synthesizer.student_images = lambda count: seen.append(draw(count)) or seen[-1]
    method = train(synthesizer, PLAN, [witness], bank=BankOptions(capacity=12))
    return method, witness, seen


def test_turns(found):
    """Their images are banked, with what the teacher sees as their labels."""
    method, witness, _ = found
    bank = method.datamodule.bank
    assert torch.equal(method.teacher.classifier(bank.images / 255).argmax(1), bank.labels)
    assert witness.kinds == 4 * "RBBRBBRBB"
    assert (method.rounds, method.synthesis_steps, method.student_updates) == (12, 24, 24)
    counts = {"images_kept": 12, "images_banked": 12 * 12, "label_agreement": None}
    assert counts.items() <= method.results().items()


def test_student_images(found):
    """New ones in every step, none of the bank, and without a gradient."""
    method, _, seen = found
    assert all(images.shape == (8, *SHAPE) for images in seen)
    assert not any(images.requires_grad for images in seen)
    flat = torch.cat(seen).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat) == 24 * 8
    assert torch.cdist(flat, method.datamodule.bank.images.flatten(1) / 255).min() > 0


def test_generator(found):
    """It learns over turns."""
    _, witness, _ = found
    assert witness.brightness[-1] > witness.brightness[0] + 10


@pytest.mark.parametrize("follow_student", [True, False])
def test_learning_rate(train, follow_student):
    witness = Witness()
    method = train(generator(follow_student=follow_student), PLAN, [witness])
    students, own = zip(*witness.lrs, strict=True)
    assert students[-1] < 0.2 * students[0]
    expected = [rate / STUDENT_LR * LR if follow_student else LR for rate in students]
    assert own == pytest.approx(expected)
    bank = method.datamodule.bank
    assert bank.capacity == len(bank) == 12  # by itself it has room for one turn
