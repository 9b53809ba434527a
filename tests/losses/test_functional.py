import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon

from nayer_pl.losses.functional import (
    adversarial_loss,
    class_loss,
    contrastive_loss,
    jensen_shannon,
    kl_divergence,
    total_variation,
)


def softmax(logits, temperature=1.0):
    powers = [math.exp(logit / temperature - max(logits) / temperature) for logit in logits]
    return [power / sum(powers) for power in powers]


def kl(teacher, student, temperature=1.0):
    pairs = zip(softmax(teacher, temperature), softmax(student, temperature), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs)


def logits(batch, classes, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(batch, classes, dtype=torch.float64, generator=rng)


@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (7, 5), (20, 3)])
def test_class_loss(batch, classes):
    """The mean negative log probability; its gradient is probability minus one-hot."""
    teacher, targets = logits(batch, classes).requires_grad_(), torch.arange(batch) % classes
    loss = class_loss(teacher, targets)
    loss.backward()
    probabilities = torch.tensor([softmax(row) for row in teacher.tolist()], dtype=torch.float64)
    expected = -probabilities[range(batch), targets].log().mean()
    assert loss.ndim == 0
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    probabilities[range(batch), targets] -= 1
    torch.testing.assert_close(teacher.grad, probabilities / batch)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_kl_divergence(temperature):
    student, teacher = logits(9, 6, 1), logits(9, 6, 2)
    pairs = zip(teacher.tolist(), student.tolist(), strict=True)
    expected = [kl(*pair, temperature) for pair in pairs]
    found = kl_divergence(student, teacher, temperature).tolist()
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("loss", [kl_divergence, adversarial_loss])
def test_divergence__shifted_logits(loss):
    teacher = logits(6, 5)
    found = loss(teacher + torch.arange(6.0).unsqueeze(1), teacher)
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("seed", range(4))
def test_adversarial_loss(seed):
    """Over images on which both see the same class, and only these; with gradients for both."""
    student, teacher = logits(12, 3, seed), logits(12, 3, seed + 100)
    student.requires_grad_(), teacher.requires_grad_()
    rows = list(zip(student.tolist(), teacher.tolist(), strict=True))
    agree = [s.index(max(s)) == t.index(max(t)) for s, t in rows]
    expected = -sum(kl(t, s) for (s, t), counts in zip(rows, agree, strict=True) if counts) / 12
    loss = adversarial_loss(student, teacher)
    loss.backward()
    assert loss.ndim == 0
    assert expected < 0
    assert float(loss) == pytest.approx(expected, rel=1e-10)
    for net in (student, teacher):
        assert (net.grad.abs().sum(1) > 0).tolist() == agree


@pytest.mark.parametrize("loss", [kl_divergence, adversarial_loss])
def test_divergence__extreme_logits(loss):
    student = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4], [1e4, 0.0]])
    value = loss(student, teacher).sum()
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_jensen_shannon():
    first, second = torch.randn(2, 6, 5, dtype=torch.float64) * 4
    p, q = (each.div(3).softmax(1).numpy() for each in (first, second))
    expected = torch.tensor([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    torch.testing.assert_close(jensen_shannon(first, second, 3.0), expected)
    certain = 1000 * torch.eye(2)
    limits = jensen_shannon(certain, certain[[0, 0]], 3.0)
    assert limits.tolist() == pytest.approx([0.0, math.log(2)])


def test_total_variation():
    images = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    expected = 0.0
    for down, right in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        squares = 0.0
        for b, c, i, j in itertools.product(*map(range, images.shape)):
            if 0 <= i + down < 4 and j + right < 5:
                squares += float(images[b, c, i, j] - images[b, c, i + down, j + right]) ** 2
        expected += math.sqrt(squares)
    assert float(total_variation(images)) == pytest.approx(expected)


@pytest.mark.parametrize("earlier", [0, 4])
def test_contrastive_loss(earlier):
    new, temperature = 3, 0.3
    parts, wholes = F.normalize(torch.randn(2, new + earlier, 5, dtype=torch.float64), dim=2)
    each = []
    for i, part in enumerate(parts):
        alike = [math.exp(float(part @ whole) / temperature) for whole in wholes]
        each.append(-math.log(alike[i] / sum(alike)))
    expected = sum(each[:new]) / new + (sum(each[new:]) / earlier if earlier else 0)
    assert float(contrastive_loss(parts, wholes, new, temperature)) == pytest.approx(expected)


def test_contrastive_loss__limits():
    apart, alike = torch.eye(4), F.normalize(torch.ones(4, 4) + 0.1 * torch.eye(4))
    losses = [float(contrastive_loss(x, x, 4, 0.1)) for x in (apart, alike)]
    assert losses == pytest.approx([math.log1p(3 * math.exp(-10)), math.log(4)], abs=0.02)
