import copy
from weakref import ref

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from nayer_pl import Classifier, FrozenTeacher, InputError, create_model
from nayer_pl.networks.teacher import ChannelMoments, TeacherFeatures

SHAPE = (1, 8, 8)
WAYS = [FrozenTeacher.forward, lambda teacher, x: teacher.observe(x).logits]


def wrapped(*layers):
    return FrozenTeacher(Classifier(nn.Sequential(*layers), [0.0], [1.0]))


@pytest.fixture
def teacher(tiny_classifier):
    return FrozenTeacher(tiny_classifier())


def images(seed=0, count=6):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


# Frozen


@pytest.mark.parametrize("ask", WAYS)
def test_ask__unchanged(teacher, ask):
    before = copy.deepcopy(teacher.state_dict())
    x = images().requires_grad_()
    for _ in range(2):
        teacher.train()
        ask(teacher, x).sum().backward()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(before[name], t) for name, t in teacher.state_dict().items())
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("ask", WAYS)
def test_ask__follows_the_classifier(teacher, ask):
    """Also after new weights; and there is no second set of weights, and no hook in the network."""
    for assign in (False, True):
        assert torch.equal(ask(teacher, images()), teacher.classifier(images()))
        halves = {name: t * 0.5 for name, t in teacher.classifier.state_dict().items()}
        teacher.classifier.load_state_dict(halves, assign=assign)
    assert torch.equal(ask(teacher, images()), teacher.classifier(images()))
    own = {id(parameter) for parameter in teacher.classifier.parameters()}
    assert {id(parameter) for parameter in teacher.parameters()} == own
    assert not any(module._forward_pre_hooks for module in teacher.classifier.modules())


class Ask(Callback):
    """Asks the teacher in the middle of training."""

    def on_train_batch_start(self, trainer, method, batch, i):
        self.fast, self.logits = method.teacher.fast, method.teacher(images())


def test_accelerate__while_training(tiny_method, tiny_data, fit):
    method, ask = tiny_method(), Ask()
    fit(method, tiny_data(), callbacks=[ask])
    assert ask.fast not in (None, method.teacher.classifier)
    assert method.teacher.fast is None
    torch.testing.assert_close(ask.logits, method.teacher(images()), rtol=1e-3, atol=1e-4)
    method.train()
    assert method.student.training
    assert not any(module.training for module in method.teacher.modules())


@pytest.mark.parametrize(
    "move",
    [
        copy.deepcopy,
        lambda teacher: teacher.double(),
        lambda teacher: teacher.to("meta"),
        lambda teacher: teacher.to(memory_format=torch.channels_last),
    ],
    ids=["copy", "dtype", "device", "layout"],
)
def test_move__one_set_of_tensors(teacher, move):
    """Logits and statistics still come from the same weights, which memory holds once."""
    moved = move(teacher)
    norms = [each for each in moved.classifier.modules() if isinstance(each, nn.BatchNorm2d)]
    for own, observed in zip(norms, moved.norms, strict=True):
        assert own is not observed
        for name, tensor in own.state_dict(keep_vars=True).items():
            assert tensor is getattr(observed, name)
    x = images().to(next(moved.parameters()))
    assert list(moved.observe(x).statistics) == moved.norms


def test_state_dict__classifier_only(teacher):
    teacher.accelerate(SHAPE, "32-true")
    expected = [f"classifier.{name}" for name in teacher.classifier.state_dict()]
    assert list(teacher.state_dict()) == expected


# Observed


def test_observe__statistics(tiny_classifier):
    """Against NumPy in float64, layer by layer."""
    teacher = FrozenTeacher(tiny_classifier())
    net, x = copy.deepcopy(teacher.classifier).double(), images().double()
    first = net.network.conv1((x - 0.4) / 0.3)
    second = net.network.conv2(net.network.norm1(first).relu())
    statistics = teacher.observe(images()).statistics
    assert list(statistics) == teacher.norms
    for expected, (mean, variance) in zip((first, second), statistics.values(), strict=True):
        np.testing.assert_allclose(mean, expected.detach().numpy().mean((0, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(variance, expected.detach().numpy().var((0, 2, 3)), rtol=1e-4)


def test_observe__which_norms():
    """Two-dimensional ones with running statistics, and among them those that are called."""
    norms = nn.BatchNorm2d(2), nn.BatchNorm2d(2, track_running_stats=False)
    teacher = wrapped(*norms, nn.Flatten(), nn.BatchNorm1d(8))
    assert [norm.weight for norm in teacher.norms] == [norms[0].weight]
    norms[0].unused = nn.BatchNorm2d(7)
    teacher = wrapped(norms[0], nn.Flatten())
    assert len(teacher.norms) == 2
    assert list(teacher.observe(torch.rand(4, 2, 2, 2)).statistics) == teacher.norms[:1]


@pytest.mark.parametrize("optional", [True, False])
def test_require_norms(tiny_classifier, optional):
    FrozenTeacher(tiny_classifier()).require_norms(optional)
    with pytest.raises(InputError, match="no BatchNorm2d") as error:
        FrozenTeacher(tiny_classifier(norm=False)).require_norms(optional)
    assert ("bn_weight=0" in str(error.value)) == optional


def test_observe__weight_normalization():
    """It keeps a tensor that was computed, as an attribute; such cannot be copied."""
    convolution = nn.utils.weight_norm(nn.Conv2d(1, 4, 3))
    teacher = wrapped(convolution, nn.BatchNorm2d(4), nn.Flatten())
    torch.testing.assert_close(teacher.observe(images()).logits, teacher.classifier(images()))


@pytest.mark.parametrize("used", ["logits", "statistics"])
def test_observe__keeps_no_graph(teacher, used):
    inputs = []
    teacher.norms[0].register_forward_pre_hook(lambda _, given: inputs.append(ref(given[0])))
    observation = teacher.observe(images().requires_grad_())
    last = list(observation.statistics.values())[-1][0]
    (observation.logits if used == "logits" else last).sum().backward()
    del observation, last
    assert inputs[0]() is None
    copy.deepcopy(teacher)


# The moments of channels


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (4, 3, 5, 2), (2, 6, 1, 1), (4, 3, 5, 5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_channel_moments__var_mean(shape, layout):
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    expected = torch.var_mean(x, (0, 2, 3), correction=0)
    found = ChannelMoments.apply(x)
    for pair in zip(found, reversed(expected), strict=True):
        torch.testing.assert_close(*pair)
    slopes = [
        torch.autograd.grad(sum(each.square().sum() for each in moments), x)[0]
        for moments in (found, expected)
    ]
    torch.testing.assert_close(*slopes)


def test_channel_moments__large_mean():
    x = torch.randn(8, 2, 4, 4) + 1e3
    expected = x.numpy().astype(np.float64).var((0, 2, 3))
    np.testing.assert_allclose(ChannelMoments.apply(x)[1].numpy(), expected, rtol=1e-3)


def test_channel_moments__bfloat16():
    """Summed in float32, and differentiated to the digits of bfloat16."""
    x = (torch.randn(32, 3, 32, 32) + 2).bfloat16().to(memory_format=torch.channels_last)
    found, slopes = [], []
    for dtype in (torch.bfloat16, torch.float64):
        y = x.detach().to(dtype, copy=True).requires_grad_()
        moments = ChannelMoments.apply(y)
        sum(each.square().sum() for each in moments).backward()
        found.append([each.double() for each in moments])
        slopes.append(y.grad.double())
    for each, expected in zip(*found, strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-3, atol=0)
    assert (slopes[0] - slopes[1]).norm() / slopes[1].norm() < 1e-2


def norm_inputs(classifier, images):
    """Mean of every channel that goes into a BatchNorm, by hooks of its own: [B, features]."""
    found = []
    norms = [each for each in classifier.modules() if isinstance(each, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(lambda _, x, y: found.append(x[0])) for norm in norms]
    classifier.eval()(images)
    for handle in handles:
        handle.remove()
    return [torch.stack([image.mean((1, 2)) for image in x]) for x in found]


@pytest.mark.parametrize(("layers", "channels"), [("all", 464), ("stages", 16 + 32 + 64)])
def test_features(layers, channels):
    """Of all layers, or of the last one per resolution."""
    classifier = Classifier(create_model("wrn16_1", 10, channels=1), [0.4], [0.3])
    features = TeacherFeatures(FrozenTeacher(classifier), (1, 16, 16), layers)
    images = torch.rand(2, 1, 16, 16)
    expected = norm_inputs(classifier, images)
    if layers == "stages":
        expected = [expected[-1]]
    found = features(images)
    assert found.shape == (2, features.count) == (2, channels)
    expected = torch.cat(expected, dim=1)
    torch.testing.assert_close(found[:, -expected.shape[1] :], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(features.last(), found)


def test_features__gradient(tiny_classifier):
    classifier = tiny_classifier()
    features = TeacherFeatures(FrozenTeacher(classifier), (1, 8, 8), "all")
    images = torch.rand(3, 1, 8, 8, requires_grad=True)
    both = features(images), torch.cat(norm_inputs(classifier, images), dim=1)
    slopes = [torch.autograd.grad(each.square().sum(), images)[0] for each in both]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
