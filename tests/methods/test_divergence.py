import math

import pytest
import torch

from nayer_pl.methods.divergence import not_finite

NAMES = ["loss", "ce", "bn"]


def steps(**bad):
    """Five steps of three terms, all fine but those named: name=(step, value)."""
    values = torch.rand(5, len(NAMES))
    for name, (step, value) in bad.items():
        values[step, NAMES.index(name)] = value
    return values


def test_finite_terms_are_no_trouble():
    assert not_finite(steps(), NAMES, "round 1") is None
    assert not_finite(steps(ce=(0, 3e38), bn=(4, -3e38)), NAMES, "round 1") is None


@pytest.mark.parametrize(
    ("value", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_the_term_its_value_the_step_and_the_round_are_named(value, word):
    told = not_finite(steps(bn=(2, value)), NAMES, "round 7")
    assert told is not None
    assert f"'bn' became {word} at step 3 of round 7" in told


def test_a_term_is_named_rather_than_the_sum_that_it_spoils():
    told = not_finite(steps(loss=(1, math.nan), bn=(1, math.inf)), NAMES, "round 1")
    assert told is not None
    assert "'bn' became inf at step 2" in told


def test_the_sum_is_named_where_it_alone_overflows():
    told = not_finite(steps(loss=(3, math.inf)), NAMES, "round 1")
    assert told is not None
    assert "'loss' became inf at step 4" in told


def test_the_first_of_several_steps_is_named():
    told = not_finite(steps(bn=(3, math.nan), ce=(1, math.inf)), NAMES, "round 1")
    assert told is not None
    assert "'ce' became inf at step 2" in told


def test_order_of_the_terms_does_not_matter():
    told = not_finite(torch.tensor([[1.0, math.nan, math.nan]]), ["bn", "loss", "ce"], "round 1")
    assert told is not None
    assert "'ce' became nan at step 1" in told
