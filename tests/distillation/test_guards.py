import logging
import math

import pytest
import torch
from torch import nn

from nayer_pl import DivergenceError
from nayer_pl.distillation.guards import (
    CollapseMonitor,
    NonFiniteGuard,
    describe_nonfinite,
    gradient_norm,
)

NAN, INF = math.nan, math.inf
ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({}, None),
        ({"ce": (0, 3e38), "bn": (4, -3e38)}, None),
        *(({"bn": (2, value)}, f"'bn' became {value} at step 3") for value in (NAN, INF, -INF)),
        # A term is named rather than the sum that it spoils, and a loss rather than its gradient.
        ({"loss": (1, NAN), "bn": (1, INF)}, "'bn' became inf at step 2"),
        ({"loss": (3, INF)}, "'loss' became inf at step 4"),
        ({"gradient": (0, NAN), "loss": (0, NAN)}, "'loss' became nan at step 1"),
        ({"gradient": (0, INF)}, "gradient of the synthesis loss became inf at step 1"),
        # The first of several steps.
        ({"bn": (3, NAN), "ce": (1, INF)}, "'ce' became inf at step 2"),
    ],
)
def test_describe_nonfinite(bad, expected):
    terms = {name: torch.rand(5) for name in ("gradient", "loss", "ce", "bn")}
    for name, (step, value) in bad.items():
        terms[name][step] = value
    found = describe_nonfinite(terms, "round 7", "generator_lr")
    assert found is None if expected is None else f"{expected} of round 7" in found


def test_gradient_norm():
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    (weights[0].square().sum() + 3 * weights[1].sum()).backward()
    unused = nn.Parameter(torch.randn(2))
    expected = torch.cat([w.grad.flatten() for w in weights]).norm()
    torch.testing.assert_close(gradient_norm([*weights, unused]), expected)
    weights[1].grad[2] = NAN
    assert gradient_norm(weights).isnan()


@pytest.mark.parametrize(
    ("loss", "norm", "sentence"),
    [
        (NAN, NAN, "The distillation loss became nan at student update 2"),
        (1.0, INF, "The gradient of the distillation loss became inf at student update 2"),
    ],
)
def test_guard__before_the_step(loss, norm, sentence):
    """And what was reported is not reported again."""
    guard, sgd = NonFiniteGuard(), torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    guard.before_step(sgd, ONE, ONE, 1)
    with pytest.raises(DivergenceError, match=sentence):
        guard.before_step(sgd, torch.tensor(loss), torch.tensor(norm), 2)
    guard.check()
    guard.before_step(sgd, ONE, ONE, 3)


def test_guard__asynchronous_device(monkeypatch):
    """A GPU's way, with the CPU's kernels: the fused optimizer leaves a bad step out."""
    monkeypatch.setattr(NonFiniteGuard, "SYNCHRONOUS", ())
    weight = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    guard = NonFiniteGuard()
    for update, gradient in enumerate([1.0, NAN, 1.0, INF], start=1):
        weight.grad = torch.full((2,), gradient)
        guard.before_step(sgd, ONE, gradient_norm([weight]), update)
        sgd.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 0.1 - 0.19))
    with pytest.raises(DivergenceError, match="became nan at student update 2"):
        guard.check()


ALIKE, VARIED = 0.004, 1.0  # the range of a pixel in a round


@pytest.mark.parametrize(
    ("rounds", "agreement", "warning"),
    [
        ([ALIKE] * 2, 0.9, None),
        ([ALIKE] * 5, 0.9, "generator_lr"),
        ([ALIKE, ALIKE, VARIED, ALIKE, ALIKE], 0.9, None),
        ([ALIKE] * 5, None, "generator_lr"),
        ([VARIED] * 5, None, None),
        ([VARIED] * 5, 0.5, None),
        ([VARIED] * 2, 0.05, None),
        ([VARIED] * 5, 0.10, "guessing would give 10 %"),
    ],
)
def test_collapse(caplog, rounds, agreement, warning):
    """Reported once, in the third round of a row."""
    caplog.set_level(logging.WARNING, "nayer_pl")
    monitor, image = CollapseMonitor("generator_lr"), torch.rand(1, 1, 8, 8)
    for number, spread in enumerate(rounds, start=1):
        images = (1 - spread) * image + spread * torch.rand(20, 1, 8, 8)
        monitor.update(images, agreement, num_classes=10)
        assert len(caplog.records) == (warning is not None and number >= 3)
    assert (warning or "") in caplog.text
