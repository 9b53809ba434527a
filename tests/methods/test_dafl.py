import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributions import Categorical

from nayer_pl import Classifier, InputError, networks
from nayer_pl.methods.dafl import DAFL, last_linear
from nayer_pl.networks.hooks import layer_inputs

SHAPE = (1, 8, 8)


def judge(method, images):
    return method.synthesizer.loss(images, None, method.teacher, method.student, False)


def test_loss(make):
    """Against the network written out layer by layer, not seen through hooks."""
    method = make(DAFL, onehot_weight=0.5, activation_weight=3.0, balance_weight=7.0)
    images, teacher = torch.rand(16, *SHAPE, requires_grad=True), method.teacher.classifier
    net, x = teacher.network, (images - teacher.mean) / teacher.std
    features = net.norm2(net.conv2(net.norm1(net.conv1(x)).relu())).relu().mean((2, 3))
    p = (features @ net.head.weight.T + net.head.bias).softmax(1)
    expected = {
        "onehot": -p.max(1).values.log().mean(),
        "activation": -features.abs().sum() / features.numel(),
        "balance": -Categorical(p.mean(0)).entropy(),
    }
    weights = {"onehot": 0.5, "activation": 3.0, "balance": 7.0}
    expected["loss"] = sum(weight * expected[name] for name, weight in weights.items())
    for parameter in method.student.parameters():  # which has no say
        nn.init.constant_(parameter, torch.nan)
    terms = judge(method, images)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    slopes = [torch.autograd.grad(each["loss"], images)[0] for each in (terms, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-6)
    assert not any(m._forward_pre_hooks for m in teacher.modules())


class Crooked(nn.Module):
    """The head is registered first, the layer before it is called twice, one is never called."""

    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(6, 3))
        self.unused = nn.Linear(6, 3)
        self.inner = nn.Linear(6, 6)
        self.squeeze = nn.Linear(8, 6)
        self.conv = nn.Conv2d(1, 8, 3)

    def forward(self, x):
        x = self.squeeze(self.conv(x).amax((2, 3)))
        return self.head(self.inner(self.inner(x).relu()).tanh())


@pytest.mark.parametrize(
    ("network", "shape", "head"),
    [
        ("wrn16_1", (3, 16, 16), "fc"),
        ("wrn40_2", (3, 8, 8), "fc"),
        ("resnet18", (3, 8, 8), "linear"),
        ("resnet20", (3, 16, 16), "fc"),
        ("vgg11", (3, 16, 16), "classifier"),
        ("mobilenetv2", (3, 16, 16), None),
        (Crooked(), SHAPE, "head.1"),
    ],
)
def test_last_linear(network, shape, head):
    """A network whose head is taken off puts out the features; both make up the logits."""
    network = networks.create_model(network, 10) if isinstance(network, str) else network
    net = Classifier(network, [0.4], [0.3]).freeze()
    images = torch.rand(4, *shape)
    name = last_linear(net, shape)
    assert head in (name, None)
    logits, inputs = layer_inputs(net, images, [name])
    features, layer = inputs[name], net.network.get_submodule(name)
    assert torch.equal(logits, net(images))
    torch.testing.assert_close(F.linear(features, layer.weight, layer.bias), logits)
    headless = copy.deepcopy(net)
    headless.network.set_submodule(name, nn.Identity())
    torch.testing.assert_close(headless(images), features)
    assert features.std(0).max() > 0


class Convolutional(nn.Sequential):
    """Its only linear layer is inside; a convolution puts out the logits."""

    def __init__(self):
        inside = nn.Conv2d(1, 8, 8), nn.Flatten(), nn.Linear(8, 5), nn.Unflatten(1, (5, 1, 1))
        super().__init__(*inside, nn.Conv2d(5, 3, 1), nn.Flatten())


def test_teacher_without_last_linear(make, turns, fit):
    teacher = Classifier(Convolutional(), [0.4], [0.3])
    with pytest.raises(InputError, match=r"linear layer.*activation_weight=0.*ZSKT"):
        make(DAFL, teacher=teacher)
    method = make(DAFL, teacher=teacher, activation_weight=0)
    assert "activation" not in judge(method, torch.rand(4, *SHAPE))
    fit(method, turns())
    assert method.student_updates == 6
