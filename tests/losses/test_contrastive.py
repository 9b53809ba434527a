import math

import pytest
import torch
import torch.nn.functional as F

from nayer_pl.losses.functional import contrastive_loss


@pytest.mark.parametrize("earlier", [0, 4])
def test_contrastive_loss(earlier):
    new, temperature = 3, 0.3
    parts, wholes = F.normalize(torch.randn(2, new + earlier, 5, dtype=torch.float64), dim=2)
    each = []
    for i, part in enumerate(parts):
        similar = [math.exp(float(part @ whole) / temperature) for whole in wholes]
        each.append(-math.log(similar[i] / sum(similar)))
    expected = sum(each[:new]) / new + (sum(each[new:]) / earlier if earlier else 0)
    assert float(contrastive_loss(parts, wholes, new, temperature)) == pytest.approx(expected)


def test_contrastive_loss__limits():
    """It falls when images spread."""
    apart, alike = torch.eye(4), F.normalize(torch.ones(4, 4) + 0.1 * torch.eye(4))
    losses = [float(contrastive_loss(x, x, 4, 0.1)) for x in (apart, alike)]
    assert losses == pytest.approx([math.log1p(3 * math.exp(-10)), math.log(4)], abs=0.02)
