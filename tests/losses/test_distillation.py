import math
from statistics import fmean, stdev

import pytest
import torch

from nayer_pl.losses.distillation import (
    DIST,
    DecoupledKD,
    KLCrossEntropy,
    KLDivergence,
    L1Logits,
    LogitStandardization,
    MSELogits,
)
from nayer_pl.runtime.options import OptionError


def sample(batch=7, classes=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, batch, classes, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    return student.to(dtype), teacher.to(dtype), labels


def softmax(row, temperature=1.0):
    powers = [math.exp(logit / temperature) for logit in row]
    return [power / sum(powers) for power in powers]


def kl(teacher, student):
    return sum(p * math.log(p / q) for p, q in zip(teacher, student, strict=True))


def pearson(first, second):
    pairs = [(a - fmean(first), b - fmean(second)) for a, b in zip(first, second, strict=True)]
    squares = math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    return sum(a * b for a, b in pairs) / squares


def naive_kl(loss, student, teacher, label):
    t = loss.temperature
    return t * t * kl(softmax(teacher, t), softmax(student, t))


def naive_kl_ce(loss, student, teacher, label):
    cross_entropy = -math.log(softmax(student)[label])
    return loss.alpha * naive_kl(loss, student, teacher, label) + (1 - loss.alpha) * cross_entropy


def naive_dkd(loss, student, teacher, label):
    t = loss.temperature
    p, q = softmax(teacher, t), softmax(student, t)
    target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    others = [softmax(row[:label] + row[label + 1 :], t) for row in (teacher, student)]
    return t * t * (loss.alpha * target + loss.beta * kl(*others))


def naive_logit_std(loss, student, teacher, label):
    rows = [[(each - fmean(row)) / stdev(row) for each in row] for row in (student, teacher)]
    return loss.weight * naive_kl(loss, *rows, label)


def naive_power(loss, student, teacher, label):
    power = 1 if isinstance(loss, L1Logits) else 2
    return fmean(abs(a - b) ** power for a, b in zip(student, teacher, strict=True))


def naive_dist(loss, students, teachers, labels):
    t = loss.temperature
    rows = [[softmax(row, t) for row in logits] for logits in (students, teachers)]
    columns = [list(zip(*table, strict=True)) for table in rows]
    inter, intra = (1 - fmean(map(pearson, *tables)) for tables in (rows, columns))
    return t * t * (loss.beta * inter + loss.gamma * intra)


# fmt: off
NAIVE = [
    (KLDivergence(), naive_kl), (KLDivergence(3), naive_kl),
    (KLCrossEntropy(), naive_kl_ce), (KLCrossEntropy(2, alpha=0.3), naive_kl_ce),
    (DecoupledKD(), naive_dkd), (DecoupledKD(1, alpha=0.5, beta=2), naive_dkd),
    (LogitStandardization(), naive_logit_std), (LogitStandardization(1, weight=2), naive_logit_std),
    (L1Logits(), naive_power), (MSELogits(), naive_power),
    (DIST(), naive_dist), (DIST(1, beta=0.5, gamma=3), naive_dist),
]
# fmt: on
every_loss = pytest.mark.parametrize("loss", [loss for loss, _ in NAIVE], ids=repr)


@pytest.mark.parametrize(
    ("loss", "naive"), NAIVE, ids=lambda each: getattr(each, "__name__", repr(each))
)
@pytest.mark.parametrize(("batch", "classes"), [(2, 3), (7, 5), (20, 10)])
def test_naive_reference(loss, naive, batch, classes):
    student, teacher, labels = sample(batch, classes)
    tables = student.tolist(), teacher.tolist(), labels.tolist()
    if naive is naive_dist:  # the only one that looks across images
        expected = naive(loss, *tables)
    else:
        expected = fmean(naive(loss, *image) for image in zip(*tables, strict=True))
    assert loss(student, teacher, labels).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "published"),
    [(DecoupledKD(), 70.67376258), (LogitStandardization(), 7.30824200), (DIST(), 57.65583172)],
    ids=repr,
)
def test_published_code(loss, published):
    n = torch.arange(80, dtype=torch.float64).view(8, 10)
    student, teacher = 4 * torch.sin(1.7 * n), 6 * torch.cos(2.3 * n)
    found = loss(student, teacher, torch.arange(8) * 3 % 10)
    assert found.item() == pytest.approx(published, rel=1e-6)


@every_loss
def test_gradient(loss):
    student, teacher, labels = sample(3, 4)
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), teacher, labels))


@every_loss
def test_precision(loss):
    double, single = (loss(*sample(50, 10, dtype)) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(single, double.float(), rtol=1e-5, atol=0)


@every_loss
@pytest.mark.parametrize("scale", [0, 1, 1e3, 1e6])
@pytest.mark.parametrize("equal", [True, False])
def test_extreme_logits(loss, scale, equal):
    student, teacher, labels = sample(4, 6, torch.float32)
    student = (scale * (teacher if equal else student)).requires_grad_()
    found = loss(student, scale * teacher, labels)
    found.backward()
    assert found.isfinite()
    assert student.grad.isfinite().all()
    saturated = isinstance(loss, DIST) and scale != 1  # no correlation where nothing varies
    if equal and not saturated and not isinstance(loss, KLCrossEntropy):
        assert found.item() == pytest.approx(0, abs=1e-5)
        assert student.grad.abs().max() < 1e-6


def test_dist__single_image():
    """It has no relations within a class."""
    _, teacher, labels = sample()
    assert DIST(1)(teacher[:1], teacher[:1], labels[:1]).item() == pytest.approx(2)


@pytest.mark.parametrize("option", ["temperature", "alpha", "beta"])
@pytest.mark.parametrize("value", [-1, float("nan"), "2"])
def test_options(option, value):
    with pytest.raises(OptionError, match=option):
        DecoupledKD(**{option: value})
