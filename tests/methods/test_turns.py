"""What DAFL, DFAD, DFQ and ZSKT have in common: generator and student take turns."""

import copy
import math
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import BankOptions, Classifier
from nayer_pl.bank import SynthesisRound
from nayer_pl.methods.dafl import DAFL, last_linear
from nayer_pl.methods.dfad import DFAD
from nayer_pl.methods.dfq import DFQ
from nayer_pl.methods.zskt import ZSKT, last_layers
from nayer_pl.networks import wrn16_1

SHAPE = (1, 8, 8)
STEPS = {DAFL: 1, DFAD: 5, DFQ: 1, ZSKT: 10}  # of the student in a turn
SMALL_BANK = BankOptions(capacity=16)
SMALL_STEPS = {"optimizer": partial(torch.optim.SGD, lr=0.01, momentum=0.9)}
ADVERSARY_ALONE = {"bn_weight": 0.0, "entropy_weight": 0.0, "balance_weight": 0.0, **SMALL_STEPS}


def plan(method, turns=3, **sizes):
    return {
        "epochs": 2, "warmup_epochs": 0, "rounds_per_epoch": turns,
        "kd_steps": turns * STEPS[method], "round_size": 16, "batch_size": 16,
        "interleaved": True, **sizes,
    }  # fmt: skip


@pytest.fixture
def make(tiny_classifier):
    def build(method, **options):
        size = {"round_size": 16} if method is ZSKT else {}
        nets = {"teacher": tiny_classifier(), "student": tiny_classifier()}
        small = {"image_shape": SHAPE, "noise_features": 6, "check_teacher": False, **size}
        return method(**{**nets, **small, **options})

    return build


def absolute_error(teacher_logits, student_logits):
    return (teacher_logits - student_logits).abs().sum() / teacher_logits.numel()


def divergence(teacher_logits, student_logits):
    p, q = teacher_logits.softmax(1), student_logits.softmax(1)
    return (p * (p.log() - q.log())).sum() / len(p)


@pytest.mark.parametrize(
    ("method", "options", "term", "discrepancy", "student_share"),
    [
        (DAFL, {}, None, divergence, 1),
        (DFAD, {}, "discrepancy", absolute_error, 1),
        (DFQ, {}, "divergence", divergence, 1),
        (ZSKT, {"beta": 0.0}, "divergence", divergence, 1 / 3),  # averaged over classes
    ],
)
def test_discrepancy(make, tiny_classifier, method, options, term, discrepancy, student_share):
    """What the student minimizes; and, with its gradient through both, the generator maximizes."""
    teacher, images = tiny_classifier(), torch.rand(16, *SHAPE, requires_grad=True)
    for student in (tiny_classifier(), copy.deepcopy(teacher)):
        made = make(method, teacher=copy.deepcopy(teacher), student=student, **options)
        made.student.eval()
        expected = discrepancy(made.teacher(images), made.student(images))
        found = made.student_objective(images, None)
        torch.testing.assert_close(found, student_share * expected, rtol=1e-4, atol=1e-6)
        if term is not None:
            terms = made.synthesizer.loss(images, None, made.teacher, made.student, False)
            torch.testing.assert_close(terms[term], expected, rtol=1e-4, atol=1e-6)
            slopes = [torch.autograd.grad(x, images)[0] for x in (terms[term], expected)]
            torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
            if method is not DFQ:  # which has other terms
                assert torch.equal(terms["loss"], -terms[term])
    assert expected.item() == pytest.approx(0, abs=1e-6)  # a copy has nothing to learn


@pytest.mark.parametrize("search", [last_linear, last_layers])
def test_search_for_layers_leaves_no_trace(search):
    net = Classifier(wrn16_1(10), [0.5], [0.5]).train()
    before = copy.deepcopy(net.state_dict())
    search(net, (3, 16, 16))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


class Duel(Callback):
    """The discrepancy before and after every step of either side, on images of the same z."""

    def __init__(self, discrepancy):
        self.discrepancy, self.made, self.learned = discrepancy, [], []
        self.z = torch.randn(64, 6)

    @torch.no_grad()
    def measure(self, method, generator, student):
        z = method.synthesizer.z if isinstance(method, ZSKT) else self.z
        images = copy.deepcopy(generator)(z)
        return float(self.discrepancy(method.teacher(images), copy.deepcopy(student)(images)))

    def on_train_batch_start(self, trainer, method, item, i):
        self.before = copy.deepcopy(method.synthesizer.generator), copy.deepcopy(method.student)

    def on_train_batch_end(self, trainer, method, outputs, item, i):
        (generator, student), after = self.before, method.synthesizer.generator
        if isinstance(item, SynthesisRound):
            student.eval()
            steps, sides = self.made, ((generator, student), (after, student))
        else:
            steps, sides = self.learned, ((after, student), (after, method.student))
        steps.append([self.measure(method, *side) for side in sides])


@pytest.mark.parametrize(
    ("method", "options", "discrepancy"),
    [
        (DFAD, SMALL_STEPS, absolute_error),
        (DFAD, {"log_form": True, **SMALL_STEPS}, absolute_error),
        (DFQ, ADVERSARY_ALONE, divergence),
        (ZSKT, {"beta": 0.0}, divergence),
    ],
    ids=["dfad", "dfad-log", "dfq", "zskt"],
)
def test_generator_raises_and_student_lowers(make, tiny_data, fit, method, options, discrepancy):
    duel = Duel(discrepancy)
    fit(make(method, **options), tiny_data(plan(method), bank=SMALL_BANK), callbacks=[duel])
    assert (len(duel.made), len(duel.learned)) == (6, 6 * STEPS[method])
    assert sum(after > before for before, after in duel.made) >= 5
    # Other images, except ZSKT's, than those that were learned.
    assert sum(after < before for before, after in duel.learned) >= 0.8 * len(duel.learned)


COSINE = [(1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5)]
TWO_STEPS, EARLY_STEPS = [1, 1, 0.1, 0.1, 0.01], [1, 0.1, 0.01, 0.01, 0.01]


@pytest.mark.parametrize(
    ("method", "kind", "lr", "student", "generator"),
    [
        (DAFL, torch.optim.SGD, 0.1, TWO_STEPS, [1] * 5),
        (DFAD, torch.optim.SGD, 0.1, EARLY_STEPS, EARLY_STEPS),
        (DFQ, torch.optim.SGD, 0.1, COSINE, COSINE),
        (ZSKT, torch.optim.Adam, 2e-3, COSINE, COSINE),
    ],
)
def test_learning_rates(make, tiny_data, fit, method, kind, lr, student, generator):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, _, item, i):
            if i == 0:
                assert isinstance(trainer.optimizers[0], kind)
                rates.append([each.param_groups[0]["lr"] for each in trainer.optimizers])

    sizes = plan(method, turns=1, epochs=5, kd_steps=1)
    fit(make(method, generator_lr=1e-3), tiny_data(sizes, bank=SMALL_BANK), callbacks=[Watch()])
    found = [[one / lr, other / 1e-3] for one, other in rates]
    assert found == [pytest.approx(pair) for pair in zip(student, generator, strict=True)]


@pytest.mark.parametrize(
    ("method", "warmup_epochs", "epoch", "items"),
    [(DAFL, 0, 1, 2), (DFAD, 0, 1, 2), (DFQ, 1, 0, 1), (DFQ, 1, 1, 3), (ZSKT, 0, 1, 5)],
)
def test_resume(make, tiny_data, fit, tmp_path, method, warmup_epochs, epoch, items):
    """From the middle of a turn, and of warm-up."""

    class Save(Callback):
        def on_train_batch_end(self, trainer, made, outputs, item, i):
            if (trainer.current_epoch, i) == (epoch, items):
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def run(**options):
        torch.manual_seed(3)
        made = make(method)
        sizes = plan(method, warmup_epochs=warmup_epochs, warmup_rounds=3)
        fit(made, tiny_data(sizes, bank=SMALL_BANK), **options)
        return made.student.state_dict()

    whole = run(callbacks=[Save()])
    again = run(ckpt_path=tmp_path / "middle.ckpt")
    assert all(torch.equal(whole[key], value) for key, value in again.items())
