import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from nayer_pl import FrozenTeacher, InversionLoss
from nayer_pl.losses import BatchNormMatching, GaussianMatching
from nayer_pl.runtime.options import OptionError

SHAPE = (1, 8, 8)
WEIGHTS = {"bn_weight": 3.0, "ce_weight": 0.7, "adv_weight": 2.0}
TARGETS = torch.arange(12) % 3


@pytest.fixture
def images():
    return torch.rand(12, *SHAPE, dtype=torch.float64)


@pytest.fixture
def networks(tiny_classifier, images):
    """Teacher and student that agree on some of the images, in float64."""
    found = [tiny_classifier().double().eval() for _ in range(2)]
    for net in found:  # no class is everybody's favorite
        net.network.head.bias.data -= net(images).detach().mean(0)
    agree = found[0](images).argmax(1) == found[1](images).argmax(1)
    assert 0 < agree.sum() < 12
    return found


def norm_inputs(classifier, images):
    """The network written out: each BatchNorm and its input."""
    net = classifier.network
    first = net.conv1((images - 0.4) / 0.3)
    return (net.norm1, first), (net.norm2, net.conv2(net.norm1(first).relu()))


def written_out(teacher, student, x):
    """The three terms without anything of ours."""
    p, q = teacher(x).softmax(1), student(x).softmax(1)
    agree, distance = p.argmax(1) == q.argmax(1), 0.0
    for norm, seen in norm_inputs(teacher, x):
        distance = distance + (norm.running_mean - seen.mean((0, 2, 3))).norm()
        distance = distance + (norm.running_var - seen.var((0, 2, 3), correction=0)).norm()
    return {
        "ce": -p[range(12), TARGETS].log().mean(),
        "bn": distance,
        "adv": -((p * (p / q).log()).sum(1) * agree).sum() / 12,
    }


@pytest.mark.parametrize("off", [None, "bn", "ce", "adv"])
@pytest.mark.parametrize("warm_up", [False, True])
def test_loss_and_gradient(networks, images, off, warm_up):
    teacher, student = networks
    weights = {**WEIGHTS, **({f"{off}_weight": 0.0} if off else {})}
    frozen = FrozenTeacher(copy.deepcopy(teacher))
    loss = InversionLoss(frozen, **weights, bn_momentum=0.0).double()
    x = images.requires_grad_()
    left_out = {name for name in ("bn", "adv") if name == off} | ({"adv"} if warm_up else set())
    terms = written_out(teacher, student, x)
    expected = {name: term for name, term in terms.items() if name not in left_out}
    expected["loss"] = sum(weights[f"{name}_weight"] * expected[name] for name in expected)
    found = loss(x, TARGETS, frozen, student, warm_up)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    slopes = [torch.autograd.grad(each["loss"], x)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("option", [*WEIGHTS, "bn_momentum"])
def test_options(tiny_classifier, option):
    options = {**WEIGHTS, "bn_momentum": 0.8}
    teacher = FrozenTeacher(tiny_classifier())
    assert InversionLoss(teacher, **options).batchnorm.momentum == 0.8
    with pytest.raises(OptionError, match=f"{option} must be at least 0"):
        InversionLoss(teacher, **{**options, option: -0.1})


# BatchNormMatching


@pytest.fixture
def norms():
    found = [nn.BatchNorm2d(size).double() for size in (4, 3)]
    for norm in found:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return found


def batch(norms):
    """Statistics of a batch, by layer."""
    return {norm: tuple(torch.rand(2, norm.num_features).double()) for norm in norms}


def distance(statistics):
    return sum(
        np.linalg.norm(known.numpy() - np.asarray(value))
        for norm, pair in statistics.items()
        for known, value in zip((norm.running_mean, norm.running_var), pair, strict=True)
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_matching__rounds(norms, momentum):
    """The first stands alone; later ones are averaged with the last step of each earlier one."""
    matching, average = BatchNormMatching(norms, momentum).double(), None
    for steps in (2, 1, 3, 1):
        for _ in range(steps):
            new = expected = batch(norms)
            if average is not None:
                expected = {
                    norm: [
                        momentum * old + (1 - momentum) * value
                        for old, value in zip(average[norm], new[norm], strict=True)
                    ]
                    for norm in norms
                }
            assert float(matching(new)) == pytest.approx(distance(expected), rel=1e-5)
        matching.update_average()
        average = expected


def test_matching__expected_batch(norms):
    """No distance, and a gradient that is a number."""
    known = {n: (n.running_mean.clone(), n.running_var.clone()) for n in norms}
    leaves = [tensor.requires_grad_() for pair in known.values() for tensor in pair]
    loss = BatchNormMatching(norms).double()(known)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-5)
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_matching__norm_without_statistics(norms):
    first = batch(norms[:1])
    found = BatchNormMatching(norms).double()(first)
    assert float(found) == pytest.approx(distance(first), rel=1e-5)


def test_matching__gradient(norms):
    """Through the share of this batch only; the average carries no graph."""
    matching, old, new = BatchNormMatching(norms).double(), batch(norms), batch(norms)
    earlier = [tensor.requires_grad_() for pair in old.values() for tensor in pair]
    matching(old)
    matching.update_average()
    copy.deepcopy(matching)  # which a tensor with a graph does not allow
    leaves = [tensor.requires_grad_() for pair in new.values() for tensor in pair]
    assert torch.autograd.gradcheck(lambda *_: matching(new), leaves)
    assert torch.autograd.grad(matching(new), earlier, allow_unused=True) == (None,) * 4


# GaussianMatching


@pytest.fixture
def teacher(tiny_classifier):
    return FrozenTeacher(tiny_classifier())


def gaussian_matching(teacher, images):
    return GaussianMatching(teacher.norms)(teacher.observe(images).statistics)


def test_gaussian_matching(teacher):
    """Summed over the channels of all layers, as torch.distributions has each."""
    images, expected = torch.rand(16, *SHAPE), 0.0
    for norm, x in norm_inputs(teacher.classifier, images):
        seen = Normal(x.mean((0, 2, 3)), (x.var((0, 2, 3), correction=0) + norm.eps).sqrt())
        data = Normal(norm.running_mean, (norm.running_var + norm.eps).sqrt())
        expected += float(kl_divergence(seen, data).sum())
    assert gaussian_matching(teacher, images).item() == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1


def test_gaussian_matching__constant_channels(teacher):
    nn.init.zeros_(teacher.classifier.network.conv1.weight)
    nn.init.zeros_(teacher.classifier.network.norm1.running_var)
    images = torch.rand(4, *SHAPE, requires_grad=True)
    loss = gaussian_matching(teacher, images)
    loss.backward()
    assert loss.isfinite()
    assert images.grad.isfinite().all()
