import copy

import pytest
import torch

from nayer_pl import FrozenTeacher, InputError, InversionLoss
from nayer_pl.runtime.options import OptionError

SHAPE = (1, 8, 8)
WEIGHTS = {"bn_weight": 3.0, "ce_weight": 0.7, "adv_weight": 2.0}
TARGETS = torch.arange(12) % 3


@pytest.fixture
def networks(tiny_classifier):
    """Teacher and student that agree on some of the images, in float64."""
    x = images()
    found = [tiny_classifier().double().eval() for _ in range(2)]
    for net in found:  # no class is everybody's favorite
        net.network.head.bias.data -= net(x).detach().mean(0)
    agree = found[0](x).argmax(1) == found[1](x).argmax(1)
    assert 0 < agree.sum() < 12
    return found


def images(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(12, *SHAPE, dtype=torch.float64, generator=rng)


def written_out(teacher, student, x, earlier=None, momentum=0.0):
    """The three terms without anything of ours; and the statistics."""
    p, q = teacher(x).softmax(1), student(x).softmax(1)
    agree = p.argmax(1) == q.argmax(1)
    net = teacher.network
    first = net.conv1((x - 0.4) / 0.3)
    second = net.conv2(net.norm1(first).relu())
    moments, distance = [], 0.0
    for norm, seen in ((net.norm1, first), (net.norm2, second)):
        for known, value in (
            (norm.running_mean, seen.mean((0, 2, 3))),
            (norm.running_var, seen.var((0, 2, 3), correction=0)),
        ):
            if earlier is not None:
                value = momentum * earlier[len(moments)] + (1 - momentum) * value
            distance = distance + (known - value).square().sum().sqrt()
            moments.append(value)
    terms = {
        "ce": -p[range(12), TARGETS].log().mean(),
        "bn": distance,
        "adv": -((p * (p / q).log()).sum(1) * agree).sum() / 12,
    }
    return terms, moments


@pytest.mark.parametrize("off", [None, "bn", "ce", "adv"])
@pytest.mark.parametrize("warm_up", [False, True])
def test_loss_and_gradient(networks, off, warm_up):
    teacher, student = networks
    weights = {**WEIGHTS, **({f"{off}_weight": 0.0} if off else {})}
    frozen = FrozenTeacher(copy.deepcopy(teacher))
    loss = InversionLoss(frozen, **weights, bn_momentum=0.0).double()
    x = images().requires_grad_()
    terms, _ = written_out(teacher, student, x)
    left_out = {name for name in ("bn", "adv") if name == off} | ({"adv"} if warm_up else set())
    expected = {name: term for name, term in terms.items() if name not in left_out}
    expected["loss"] = sum(weights[f"{name}_weight"] * expected[name] for name in expected)
    found = loss(x, TARGETS, frozen, student, warm_up)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    slopes = [torch.autograd.grad(each["loss"], x)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes)


def test_momentum(networks):
    teacher, student = networks
    frozen = FrozenTeacher(copy.deepcopy(teacher))
    loss = InversionLoss(frozen, **WEIGHTS, bn_momentum=0.9).double()
    loss(images(0), TARGETS, frozen, student, False)
    loss.batchnorm.update_average()
    _, earlier = written_out(teacher, student, images(0))
    expected, _ = written_out(teacher, student, images(1), earlier, momentum=0.9)
    found = loss(images(1), TARGETS, frozen, student, False)
    torch.testing.assert_close(found["bn"], expected["bn"])


def test_adversary(networks):
    frozen, x = FrozenTeacher(networks[0]), images()
    loss = InversionLoss(frozen, **WEIGHTS, bn_momentum=0.0, adversary=torch.nn.MSELoss()).double()
    expected = (networks[0](x) - networks[1](x)).square().mean()
    torch.testing.assert_close(loss(x, TARGETS, frozen, networks[1], False)["adv"], expected)


def test_teacher_without_norms(tiny_classifier):
    teacher = FrozenTeacher(tiny_classifier(norm=False))
    InversionLoss(teacher, 0.0, 1.0, 1.0, 0.9)
    with pytest.raises(InputError, match="bn_weight=0"):
        InversionLoss(teacher, 1.0, 1.0, 1.0, 0.9)


@pytest.mark.parametrize("option", [*WEIGHTS, "bn_momentum"])
def test_options(tiny_classifier, option):
    options = {**WEIGHTS, "bn_momentum": 0.9, option: -0.1}
    with pytest.raises(OptionError, match=f"{option} must be at least 0"):
        InversionLoss(FrozenTeacher(tiny_classifier()), **options)
