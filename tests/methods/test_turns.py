"""What DAFL, DFAD, DFQ and ZSKT have in common: generator and student take turns."""

import copy
import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from nayer_pl import Classifier
from nayer_pl.methods.dafl import DAFL, last_linear
from nayer_pl.methods.dfad import DFAD
from nayer_pl.methods.dfq import DFQ
from nayer_pl.methods.zskt import ZSKT, last_layers
from nayer_pl.networks import wrn16_1

SHAPE = (1, 8, 8)


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
        (DFAD, {"log_form": True}, "discrepancy", absolute_error, 1),
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
                gain = (1 + terms[term]).log() if options.get("log_form") else terms[term]
                torch.testing.assert_close(terms["loss"], -gain)
    assert expected.item() == pytest.approx(0, abs=1e-6)  # a copy has nothing to learn


@pytest.mark.parametrize("search", [last_linear, last_layers])
def test_search_for_layers_leaves_no_trace(search):
    net = Classifier(wrn16_1(10), [0.5], [0.5]).train()
    before = copy.deepcopy(net.state_dict())
    search(net, (3, 16, 16))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


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
def test_learning_rates(make, turns, fit, method, kind, lr, student, generator):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, _, item, i):
            if i == 0:
                assert isinstance(trainer.optimizers[0], kind)
                assert trainer.optimizers[0].defaults.get("nesterov", False) == (method is DFQ)
                rates.append([each.param_groups[0]["lr"] for each in trainer.optimizers])

    fit(make(method, generator_lr=1e-3), turns(1, epochs=5), callbacks=[Watch()])
    found = [[one / lr, other / 1e-3] for one, other in rates]
    assert found == [pytest.approx(pair) for pair in zip(student, generator, strict=True)]
