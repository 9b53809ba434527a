import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.optimization import fuse

from nayer_pl import Classifier, networks
from nayer_pl.networks.folding import folded
from nayer_pl.networks.fusing import FusedConv, fused

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="the fused kernels are oneDNN's"
)

IMAGES = (3, 32, 32)


def trained(network):
    """With statistics and weights of BatchNorm that are not the initial ones; some negative."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for _ in range(3):
            network.train()(torch.rand(16, *IMAGES))
    return network.eval().requires_grad_(False)


def fused_layers(network):
    return [module for module in network.modules() if isinstance(module, FusedConv)]


def passes(network):
    """ReLUs, sums and BatchNorms that still are a pass over memory of their own."""
    calls = [node for node in network.graph.nodes if node.op == "call_function"]
    modules = [node.target for node in network.graph.nodes if node.op == "call_module"]
    norms = [name for name in modules if isinstance(network.get_submodule(name), nn.BatchNorm2d)]
    return len([node for node in calls if "mean" not in str(node.target)]) + len(norms)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("wrn16_1", 0),
        ("resnet18", 0),
        ("resnet20", 0),
        ("vgg11", None),
        ("mobilenetv2", None),
        ("shufflenetv2", None),
    ],
)
@torch.no_grad()
def test_same_answers_with_fewer_passes(name, left):
    plain = fuse(trained(getattr(networks, name)(num_classes=7)))
    fast = fused(plain, torch.float32)
    images = torch.rand(5, *IMAGES)
    torch.testing.assert_close(fast(images), plain(images), rtol=1e-4, atol=1e-4)
    assert not fused_layers(plain)
    assert len(fused_layers(fast)) > 3
    if left is not None:
        assert passes(fast) == left < passes(plain)


@pytest.mark.parametrize("name", ["wrn16_1", "resnet18"])
def test_in_bfloat16_no_further_from_the_truth_than_autocast(name):
    network = trained(getattr(networks, name)(num_classes=7))
    images = torch.rand(32, *IMAGES)
    plain = Classifier(network, mean=[0.4], std=[0.3]).freeze()
    fast = folded(plain, IMAGES, torch.bfloat16)
    assert {layer.weight.dtype for layer in fused_layers(fast)} == {torch.bfloat16}
    with torch.no_grad():
        truth = copy.deepcopy(plain).double()(images.double())
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(net(images).double() - truth).norm() / truth.norm() for net in (plain, fast)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.1


def test_where_gradients_are_wanted_they_are_those_of_the_plain_form():
    network = trained(networks.wrn16_1(num_classes=7)).double()  # no rounding opens another ReLU
    plain = fuse(network)
    fast = fused(plain, torch.float32)
    images = torch.rand(3, *IMAGES, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(net(images).square().sum(), images)[0] for net in (plain, fast)
    ]
    torch.testing.assert_close(*gradients)
    assert gradients[0].norm() > 0


def test_a_copy_for_float32_and_one_for_gradients_leave_the_original_alone():
    plain = Classifier(trained(networks.wrn16_1(num_classes=3)), mean=[0.4], std=[0.3])
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fast = folded(plain, IMAGES, torch.float32)
    assert fused_layers(fast)
    assert not fused_layers(plain)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key])


class Odd(nn.Module):
    """A convolution in a place where something speaks against taking along what follows."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.circular = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(3, 3, 3, padding="same")
        self.relu = nn.ReLU(inplace=True)
        self.offset = nn.Parameter(torch.rand(1, 3, 1, 1))
        self.how = how

    def forward(self, x):
        return getattr(self, self.how)(x).mean((2, 3))

    def used_twice(self, x):
        y = self.conv(x)
        return F.relu(y) - y

    def called_twice(self, x):
        return F.relu(self.conv(F.relu(self.conv(x))))

    def to_itself(self, x):
        y = self.conv(x)
        return F.relu(y + y)

    def a_constant(self, x):
        return F.relu(self.conv(x) + 0.5)

    def wider_than_the_sum(self, x):
        return F.relu(self.conv(x) + self.offset)

    def scaled(self, x):
        return F.relu(torch.add(self.conv(x), x, alpha=3))

    def one_relu_module_for_all(self, x):
        return self.relu(self.conv(self.relu(self.norm(x))))

    def padded_in_a_circle(self, x):
        return F.relu(self.circular(x))

    def padded_to_the_same(self, x):
        return F.relu(self.same(x))

    def a_sum_of_two(self, x):
        return F.relu(self.conv(x) + self.circular(x))

    def in_place(self, x):
        y = x * 1
        y += self.conv(x)
        return F.relu(y) + y


WAYS = [name for name in vars(Odd) if name not in vars(nn.Module) and name[0] != "_"]


@pytest.mark.parametrize("how", [name for name in WAYS if name != "forward"])
@torch.no_grad()
def test_odd_ways_give_the_same_answers(how):
    torch.manual_seed(1)
    plain = Classifier(trained(Odd(how)), mean=[0.4], std=[0.3]).freeze()
    images = torch.rand(4, *IMAGES)
    expected = plain(images)
    fast = folded(plain, IMAGES, torch.float32)
    torch.testing.assert_close(fast(images), expected)
    fusable = {"one_relu_module_for_all": 2, "a_sum_of_two": 1, "in_place": 1, "to_itself": 0}
    if how in fusable:
        assert len(fused_layers(fast)) == fusable[how]
