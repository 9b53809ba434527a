import math

import pytest
import torch

from nayer_pl import DivergenceError
from nayer_pl.distillation.divergence import NonFiniteGuard, gradient_norm, not_finite

RATE = "model.generator_lr"
NAMES = ["loss", "ce", "bn"]


def steps(**bad):
    """Five steps of three terms, all fine but those named: name=(step, value)."""
    values = torch.rand(5, len(NAMES))
    for name, (step, value) in bad.items():
        values[step, NAMES.index(name)] = value
    return values


def test_finite_terms_are_no_trouble():
    assert not_finite(steps(), NAMES, "round 1", RATE) is None
    assert not_finite(steps(ce=(0, 3e38), bn=(4, -3e38)), NAMES, "round 1", RATE) is None


@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_the_term_its_value_the_step_and_the_round_are_named(value, word):
    told = not_finite(steps(bn=(2, value)), NAMES, "round 7", RATE)
    assert told is not None
    assert f"'bn' became {word} at step 3 of round 7" in told


def test_a_term_is_named_rather_than_the_sum_that_it_spoils():
    told = not_finite(steps(loss=(1, math.nan), bn=(1, math.inf)), NAMES, "round 1", RATE)
    assert told is not None
    assert "'bn' became inf at step 2" in told


def test_the_sum_is_named_where_it_alone_overflows():
    told = not_finite(steps(loss=(3, math.inf)), NAMES, "round 1", RATE)
    assert told is not None
    assert "'loss' became inf at step 4" in told


def test_the_first_of_several_steps_is_named():
    told = not_finite(steps(bn=(3, math.nan), ce=(1, math.inf)), NAMES, "round 1", RATE)
    assert told is not None
    assert "'ce' became inf at step 2" in told


def test_order_of_the_terms_does_not_matter():
    told = not_finite(
        torch.tensor([[1.0, math.nan, math.nan]]), ["bn", "loss", "ce"], "round 1", RATE
    )
    assert told is not None
    assert "'ce' became nan at step 1" in told


def test_a_gradient_is_named_only_where_everything_before_it_was_finite():
    row = torch.tensor([[1.0, 1.0, math.inf]])
    told = not_finite(row, ["loss", "ce", "gradient"], "round 3", RATE)
    assert told is not None
    assert "gradient of the synthesis loss became inf at step 1 of round 3" in told
    row = torch.tensor([[math.nan, 1.0, math.nan]])
    assert "'loss'" in str(not_finite(row, ["loss", "ce", "gradient"], "round 3", RATE))


def test_gradient_norm_is_that_of_one_long_vector():
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    (weights[0].square().sum() + 3 * weights[1].sum()).backward()
    unused = torch.nn.Parameter(torch.randn(2))
    expected = torch.cat([w.grad.flatten() for w in weights]).norm()
    torch.testing.assert_close(gradient_norm([*weights, unused]), expected)
    weights[1].grad[2] = math.nan
    assert gradient_norm(weights).isnan()


@pytest.mark.parametrize(
    ("loss", "norm", "sentence"),
    [
        (math.nan, math.nan, "The distillation loss became nan at student update 2"),
        (1.0, math.inf, "The gradient of the distillation loss became inf at student update 2"),
    ],
)
def test_a_bad_student_step_is_stopped_before_it_is_made(loss, norm, sentence):
    watch, sgd = NonFiniteGuard(), torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    watch.before_step(sgd, torch.tensor(1.0), torch.tensor(2.0), 1)
    with pytest.raises(DivergenceError, match=sentence):
        watch.before_step(sgd, torch.tensor(loss), torch.tensor(norm), 2)


def test_where_asking_would_wait_a_fused_optimizer_leaves_the_bad_step_out(monkeypatch):
    """A GPU's way, with the CPU's kernels: the weight stays, the first bad step is remembered."""
    monkeypatch.setattr("nayer_pl.distillation.divergence.NonFiniteGuard.WAITS_FOR_NOTHING", ())
    weight = torch.nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True)
    watch = NonFiniteGuard()
    for update, gradient in enumerate([1.0, math.nan, 1.0, math.inf], start=1):
        weight.grad = torch.full((2,), gradient)
        watch.before_step(sgd, torch.tensor(1.0), gradient_norm([weight]), update)
        sgd.step()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 0.1 - 0.19))
    with pytest.raises(DivergenceError, match="became nan at student update 2"):
        watch.check()


def test_what_was_told_is_not_told_again():
    watch, sgd = NonFiniteGuard(), torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(DivergenceError):
        watch.before_step(sgd, torch.tensor(math.nan), torch.tensor(math.nan), 1)
    watch.check()
    watch.before_step(sgd, torch.tensor(1.0), torch.tensor(2.0), 1)
