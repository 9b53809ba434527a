import copy

import numpy as np
import pytest
import torch
from torch import nn

from nayer_pl.losses.inversion import BatchNormMatching
from nayer_pl.runtime.options import OptionError

SIZES = (4, 3)


@pytest.fixture
def norms():
    found = [nn.BatchNorm2d(size) for size in SIZES]
    for norm in found:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return found


def batch(norms, seed):
    """Statistics of a batch, by layer."""
    rng = np.random.default_rng(seed)
    draw = lambda norm: torch.from_numpy(rng.random(norm.num_features)).float()  # noqa: E731
    return {norm: (draw(norm), draw(norm)) for norm in norms}


def mixed(new, old, momentum):
    weigh = lambda n, o: momentum * np.asarray(o) + (1 - momentum) * np.asarray(n)  # noqa: E731
    return {norm: tuple(map(weigh, new[norm], old[norm])) for norm in new}


def distance(statistics):
    return sum(
        np.linalg.norm(norm.running_mean.numpy() - np.asarray(mean))
        + np.linalg.norm(norm.running_var.numpy() - np.asarray(variance))
        for norm, (mean, variance) in statistics.items()
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_rounds(norms, momentum):
    """The first stands alone; later ones are averaged with the last step of each earlier one."""
    matching, average = BatchNormMatching(norms, momentum), None
    for seeds in ((1, 2), (3,), (4, 5, 6), (7,)):
        for seed in seeds:
            new = batch(norms, seed)
            expected = new if average is None else mixed(new, average, momentum)
            assert float(matching(new)) == pytest.approx(distance(expected), rel=1e-5)
        matching.update_average()
        average = expected


def test_momentum__default(norms):
    default, same = BatchNormMatching(norms), BatchNormMatching(norms, 0.9)
    for matching in (default, same):
        matching(batch(norms, 1))
        matching.update_average()
    assert torch.equal(default(batch(norms, 2)), same(batch(norms, 2)))


@pytest.mark.parametrize("momentum", [-0.1, 1.0])
def test_momentum__range(norms, momentum):
    with pytest.raises(OptionError, match="momentum"):
        BatchNormMatching(norms, momentum)


def test_expected_batch(norms):
    """No distance, and a gradient that is a number."""
    known = {n: (n.running_mean.clone(), n.running_var.clone()) for n in norms}
    leaves = [tensor.requires_grad_() for pair in known.values() for tensor in pair]
    loss = BatchNormMatching(norms)(known)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_norm_without_statistics(norms):
    new = batch(norms, 1)
    first = {norms[0]: new[norms[0]]}
    assert float(BatchNormMatching(norms)(first)) == pytest.approx(distance(first), rel=1e-5)


def test_gradient(norms):
    """Through the share of this batch only, along a direction; the average carries no graph."""
    matching, old, new = BatchNormMatching(norms, 0.9), batch(norms, 1), batch(norms, 2)
    earlier = [tensor.requires_grad_() for pair in old.values() for tensor in pair]
    matching(old)
    matching.update_average()
    leaves = [tensor.requires_grad_() for pair in new.values() for tensor in pair]
    found = torch.autograd.grad(matching(new), leaves)
    assert all(leaf.grad is None for leaf in earlier)
    rng, step = np.random.default_rng(9), 1e-5
    way = {norm: tuple(rng.normal(size=len(t)) for t in pair) for norm, pair in new.items()}
    plain = lambda pairs: {n: [t.detach().double().numpy() for t in p] for n, p in pairs.items()}  # noqa: E731
    old, new = plain(old), plain(new)

    def moved(by):
        there = {n: [t + by * d for t, d in zip(new[n], way[n], strict=True)] for n in new}
        return distance(mixed(there, old, 0.9))

    flat = [direction for pair in way.values() for direction in pair]
    along = sum(float(g.double().numpy() @ d) for g, d in zip(found, flat, strict=True))
    assert along == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-3)


def test_update_average__keeps_no_graph(norms):
    matching, new = BatchNormMatching(norms), batch(norms, 1)
    new[norms[0]][0].requires_grad_()
    matching(new)
    matching.update_average()
    copy.deepcopy(matching)
