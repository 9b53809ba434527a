import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import Classifier, networks
from nayer_pl.networks.folding import FusedConv, folded, fused

IMAGES = (3, 32, 32)
onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="the fused kernels are oneDNN's"
)


def trained(network):
    """A classifier whose BatchNorms are not as initialized; some weights are negative."""
    classifier = Classifier(network, mean=[0.4], std=[0.3])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for _ in range(3):
            classifier.train()(torch.rand(16, *IMAGES))
    return classifier


def norms(module):
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def fused_layers(network):
    return [module for module in network.modules() if isinstance(module, FusedConv)]


def passes(network):
    """ReLUs, sums and BatchNorms that still are a pass over memory of their own."""
    calls = [node.target for node in network.graph.nodes if node.op == "call_function"]
    modules = [node.target for node in network.graph.nodes if node.op == "call_module"]
    norms = [name for name in modules if isinstance(network.get_submodule(name), nn.BatchNorm2d)]
    return len([call for call in calls if "mean" not in str(call)]) + len(norms)


@pytest.mark.parametrize("dtype", [None, pytest.param(torch.float32, marks=onednn)])
@pytest.mark.parametrize(
    ("name", "left"),  # BatchNorms that follow an addition or the pre-activation of another block
    [("vgg11", 0), ("wrn16_1", 7), ("resnet20", 0), ("mobilenetv2", 0), ("shufflenetv2", 0)],
)
def test_folded__same_function(name, left, dtype):
    plain = trained(getattr(networks, name)(num_classes=7))
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fast = folded(plain, IMAGES, dtype)
    assert plain.training
    images = torch.rand(5, *IMAGES, requires_grad=True)
    expected = plain.eval()(images)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
    (of_plain,) = torch.autograd.grad(expected.square().sum(), images)
    (of_fast,) = torch.autograd.grad(fast(images).square().sum(), images)
    # Not value by value: where a ReLU is about to open, a rounding decides about a whole path.
    assert (of_fast - of_plain).norm() < 1e-2 * of_plain.norm()
    assert norms(fast) == left < norms(plain)
    if dtype:
        assert len(fused_layers(fast)) > 3
    if dtype and name.startswith(("wrn", "resnet")):
        assert passes(fast.network) == 0 < passes(folded(plain, IMAGES).network)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key])


class Branching(nn.Module):
    """What torch.fx cannot follow: the way depends on the values."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.conv(x))
        return (x if x.mean() > 0 else -x).mean((2, 3))


class Misleading(Branching):
    """What torch.fx follows wrongly: it takes the noise for a constant."""

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3)) + torch.rand(4)


@pytest.mark.parametrize("network", [Branching(), Misleading()])
def test_folded__untraceable_network(network):
    plain = trained(network)
    assert folded(plain, IMAGES) is plain


@onednn
@pytest.mark.parametrize("name", ["wrn16_1", "resnet20"])
def test_fused__bfloat16_is_as_exact_as_autocast(name):
    plain = trained(getattr(networks, name)(num_classes=7)).freeze()
    images = torch.rand(32, *IMAGES)
    fast = folded(plain, IMAGES, torch.bfloat16)
    assert {layer.weight.dtype for layer in fused_layers(fast)} == {torch.bfloat16}
    with torch.no_grad():
        truth = copy.deepcopy(plain).double()(images.double())
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(net(images).double() - truth).norm() / truth.norm() for net in (plain, fast)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.1


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
        return self.conv(F.relu(self.conv(x)))

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
@onednn
@torch.no_grad()
def test_fused__unusual_forward_passes(how):
    torch.manual_seed(1)
    plain = trained(Odd(how)).freeze()
    images = torch.rand(4, *IMAGES)
    expected = plain(images)
    fast = fused(folded(plain, IMAGES).network, torch.float32)
    torch.testing.assert_close(fast((images - 0.4) / 0.3), expected)
    fusable = {"one_relu_module_for_all": 2, "a_sum_of_two": 1, "in_place": 1, "to_itself": 0}
    if how in fusable:
        assert len(fused_layers(fast)) == fusable[how]
