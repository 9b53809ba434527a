import pytest
import torch
from torch import nn

from nayer_pl import Classifier, networks
from nayer_pl.networks.folding import folded


def trained(network):
    """With statistics and weights of BatchNorm that are not the initial ones."""
    classifier = Classifier(network, mean=[0.4], std=[0.3])
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    with torch.no_grad():
        for _ in range(3):
            classifier.train()(torch.rand(16, 3, 32, 32))
    return classifier


def norms(module):
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


@pytest.mark.parametrize(
    ("name", "left"),  # what follows an addition or the pre-activation of another block stays
    [("resnet18", 0), ("vgg11", 0), ("wrn16_1", 7), ("mobilenetv2", 0), ("resnet20", 0)],
)
def test_same_function_with_fewer_norms(name, left):
    plain = trained(getattr(networks, name)(num_classes=7))
    before = {key: value.clone() for key, value in plain.state_dict().items()}
    fast = folded(plain, (3, 32, 32))
    images = torch.rand(5, 3, 32, 32, requires_grad=True)
    expected = plain.eval()(images)
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-4)
    (of_plain,) = torch.autograd.grad(expected.square().sum(), images)
    (of_fast,) = torch.autograd.grad(fast(images).square().sum(), images)
    # Not value by value: where a ReLU is about to open, a rounding decides about a whole path.
    assert (of_fast - of_plain).norm() < 1e-2 * of_plain.norm()
    assert norms(fast) == left < norms(plain)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    for key, value in plain.state_dict().items():
        assert torch.equal(value, before[key])


def test_the_modes_of_the_original_are_left_alone():
    plain = trained(networks.wrn16_1(num_classes=3)).train()
    plain.network.bn1.eval()
    folded(plain, (3, 32, 32))
    assert plain.training
    assert not plain.network.bn1.training


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
def test_a_network_that_cannot_be_followed_stays_itself(network):
    plain = trained(network)
    assert folded(plain, (3, 32, 32)) is plain
