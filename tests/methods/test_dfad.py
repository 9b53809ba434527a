import copy
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import SGD

from nayer_pl import BankOptions
from nayer_pl.app.train import build
from nayer_pl.bank import DistillationBatch, MemoryBank, SynthesisRound
from nayer_pl.bank.epoch import EpochPlan
from nayer_pl.methods.dfad import DFAD

SHAPE = (1, 8, 8)
TURNS, STEPS = 2, 5
PLAN = {
    "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": TURNS, "kd_steps": TURNS * STEPS,
    "round_size": 16, "batch_size": 16, "interleaved": True,
}  # fmt: skip


@pytest.fixture
def dfad(tiny_classifier):
    def make(**options):
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        defaults = {"noise_features": 6, "check_teacher": False, "learning_rate": 0.01}
        return DFAD(image_shape=SHAPE, **{**nets, **defaults, **options})

    return make


def gap(first, second):
    """Mean absolute error of two lists of logits, one number at a time."""
    rows = zip(first.tolist(), second.tolist(), strict=True)
    errors = [abs(a - b) for row in rows for a, b in zip(*row, strict=True)]
    return sum(errors) / len(errors)


class Duel(Callback):
    """What each side's step does to the discrepancy on images of the same z."""

    def __init__(self):
        self.made, self.learned, self.z = [], [], torch.randn(64, 6)

    def measure(self, method, generator, student):
        with torch.no_grad():
            images = copy.deepcopy(generator)(self.z)
            return gap(method.teacher(images), student(images))

    def on_train_batch_start(self, trainer, method, item, i):
        self.before = copy.deepcopy(method.generator), copy.deepcopy(method.student)

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        generator, student = self.before
        if isinstance(item, SynthesisRound):
            student.eval()
            sides = (generator, student), (method.generator, student)
            self.made.append([self.measure(method, *side) for side in sides])
        else:
            after = copy.deepcopy(method.student)
            sides = (method.generator, student), (method.generator, after)
            self.learned.append([self.measure(method, *side) for side in sides])


@pytest.mark.parametrize("log_form", [False, True])
def test_generator_moves_away_from_the_student_and_the_student_follows(
    dfad, tiny_data, fit, log_form
):
    duel = Duel()
    fit(
        dfad(log_form=log_form), tiny_data(PLAN, bank=BankOptions(capacity=16)), callbacks=[duel]
    )  # fmt: skip
    assert len(duel.made) == 2 * TURNS
    assert len(duel.learned) == 2 * TURNS * STEPS
    assert all(new > old for old, new in duel.made)
    rises = [new > old for old, new in duel.learned]
    assert sum(rises) <= len(rises) // 10  # other images than those that were learned


def test_a_copy_of_the_teacher_has_nothing_to_learn(dfad, tiny_classifier):
    teacher, other = tiny_classifier().eval(), tiny_classifier().eval()
    images = torch.rand(16, *SHAPE)
    for student, wanted in (
        (copy.deepcopy(teacher), 0),
        (other, gap(teacher(images), other(images))),
    ):
        plain = dfad(teacher=copy.deepcopy(teacher), student=student)
        slow = dfad(teacher=copy.deepcopy(teacher), student=student, log_form=True)
        assert float(plain.student_loss(images).detach()) == pytest.approx(wanted, abs=1e-6)
        assert float(plain.judge(images)["loss"].detach()) == pytest.approx(-wanted, abs=1e-6)
        logarithm = -math.log(1 + wanted)
        assert float(slow.judge(images)["loss"].detach()) == pytest.approx(logarithm, abs=1e-6)
    assert wanted > 0.01


def test_the_student_is_the_one_that_is_attacked(dfad):
    """The generator's gradient is the student's minus the teacher's pull, by finite differences."""
    method = dfad()
    method.double().student.eval()
    images = torch.rand(4, *SHAPE, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(method.judge(images)["loss"], images)
    direction = torch.randn_like(images)
    with torch.no_grad():
        ahead, behind = (images + sign * 1e-6 * direction for sign in (1, -1))
        difference = gap(*(net(ahead) for net in (method.student, method.teacher))) - gap(
            *(net(behind) for net in (method.student, method.teacher))
        )
    assert float((slope * direction).sum()) == pytest.approx(-difference / 2e-6, rel=1e-4)


def test_both_learning_rates_step_down_at_shares_of_the_run(dfad, tiny_data, fit):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, method, item, i):
            if i == 0:
                assert isinstance(trainer.optimizers[0], SGD)
                rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    method = dfad(learning_rate=0.1, generator_lr=1e-3, milestones=(0.4, 0.8), decay=0.1)
    fit(
        method, tiny_data({**PLAN, "epochs": 5, "rounds_per_epoch": 1, "kd_steps": 1}),
        callbacks=[Watch()],
    )  # fmt: skip
    shares = [1, 1, 0.1, 0.1, 0.01]
    assert rates == [pytest.approx([0.1 * share, 1e-3 * share]) for share in shares]


def test_it_goes_on_from_the_middle_of_a_turn(dfad, tiny_data, fit, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, method, outputs, item, i):
            if trainer.current_epoch == 1 and i == STEPS // 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def run(**options):
        torch.manual_seed(3)
        method = dfad()
        fit(method, tiny_data(PLAN, bank=BankOptions(capacity=16)), **options)
        return method.student.state_dict()

    whole = run(callbacks=[Save()])
    again = run(ckpt_path=tmp_path / "middle.ckpt")
    assert all(torch.equal(whole[key], value) for key, value in again.items())


@pytest.mark.parametrize(
    ("data", "images"),
    [
        ("cifar10", 500 * 50 * 6 * 256),  # as published
        ("cifar100", 500 * 50 * 6 * 256),
        ("digits", 120_000),  # what every method may use there
        ("fashion_mnist", 570_000),
    ],
)
def test_recipes_take_one_step_of_the_generator_to_five_of_the_student(config, data, images):
    cfg = config("model=dfad", f"data={data}")
    plan = build(cfg.plan)
    bank = MemoryBank(1, (1, 2, 2))
    bank.add(torch.rand(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64))
    items = EpochPlan(plan, 0, 3, bank)
    kinds = [
        "RS"[isinstance(item, DistillationBatch)] for item, _ in zip(items, range(18), strict=False)
    ]
    assert "".join(kinds) == 3 * "RSSSSS"
    assert cfg.model.generator_steps == 1
    assert plan.images + plan.epochs * plan.kd_steps * plan.batch_size == pytest.approx(
        images, 0.05
    )
