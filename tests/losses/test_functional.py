import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon

from nayer_pl.losses.functional import (
    adversarial_loss,
    contrastive_loss,
    entropy_loss,
    jensen_shannon,
    kl_divergence,
    total_variation,
)


@pytest.mark.parametrize("loss", [kl_divergence, adversarial_loss])
def test_divergence__extreme_logits(loss):
    student = torch.tensor([[1e4, 0.0], [1e4, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1e4], [1e4, 0.0]])
    value = loss(student, teacher).sum()
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_entropy_loss__certain_teacher():
    sure = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    entropy_loss(sure).backward()
    assert sure.grad.isfinite().all()


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
