import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import networks
from nayer_pl.networks import build_network
from nayer_pl.networks.imagenet_resnet import ImageNetResNet
from nayer_pl.networks.residual import Bottleneck

# At 1000 classes, of torchvision 0.29: parameters and 10^9 multiply-adds at 224 px from its
# documentation; entries and digest of the state dict's keys and shapes from its source.
TORCHVISION = {
    "resnet18_imagenet": (11_689_512, 1.814, 122, "5191d63ec3989592"),
    "resnet34_imagenet": (21_797_672, 3.664, 218, "f8de2a1812ef85e4"),
    "resnet50_imagenet": (25_557_032, 4.089, 320, "a87e91cd6bd1f939"),
}


def layout(name, *args):
    with torch.device("meta"):
        return getattr(networks, name)(*args)


def digest(state):
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", TORCHVISION)
def test_parameters_keys_and_shapes_are_torchvisions(name):
    parameters, _, entries, keys_and_shapes = TORCHVISION[name]
    network = layout(name, 1000)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(network.state_dict()) == entries
    assert digest(network.state_dict()) == keys_and_shapes


@pytest.mark.parametrize("name", TORCHVISION)
def test_multiply_adds_are_torchvisions(name):
    network, work = layout(name, 1000), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, _, out: work.append(out.numel() * m.weight[0].numel())
            )
    network(torch.empty(1, 3, 224, 224, device="meta"))
    assert round(sum(work) / 1e9, 3) == TORCHVISION[name][1]


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize(("size", "side"), [(224, 7), (32, 1)])
def test_features_are_a_32nd_as_wide_as_the_image(name, size, side):
    network, sides = layout(name, 7, 1), []
    network.layer4.register_forward_hook(lambda *args: sides.append(args[2].shape))
    logits = network(torch.empty(2, 1, size, size, device="meta"))
    assert sides == [(2, 2048 if "50" in name else 512, side, side)]
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", TORCHVISION)
def test_one_channel_and_other_classes_change_the_ends_only(name):
    first = {key: tuple(value.shape) for key, value in layout(name, 1000).state_dict().items()}
    other = {key: tuple(value.shape) for key, value in layout(name, 7, 1).state_dict().items()}
    differ = {key: shape for key, shape in other.items() if shape != first[key]}
    features = first["fc.weight"][1]
    assert differ == {"conv1.weight": (64, 1, 7, 7), "fc.weight": (7, features), "fc.bias": (7,)}


def test_whole_network_is_its_parts_in_order():
    torch.manual_seed(1)
    network = ImageNetResNet(Bottleneck, (2, 1, 1, 1), num_classes=3, channels=2).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
    s, x = network.state_dict(), torch.randn(2, 2, 48, 48)

    def convolve(x, conv, norm, stride=1):
        weight = s[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (s[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    out = convolve(x, "conv1", "bn1", 2).relu()
    # Nothing is below zero here, so a border of zeros changes no maximum.
    out = F.pad(out, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    for block in ("layer1.0", "layer1.1", "layer2.0", "layer3.0", "layer4.0"):
        stride = 1 if block.startswith("layer1") else 2
        kept = out
        out = convolve(out, f"{block}.conv1", f"{block}.bn1").relu()
        out = convolve(out, f"{block}.conv2", f"{block}.bn2", stride).relu()
        out = convolve(out, f"{block}.conv3", f"{block}.bn3")
        if block.endswith(".0"):
            kept = convolve(kept, f"{block}.downsample.0", f"{block}.downsample.1", stride)
        out = (out + kept).relu()
    expected = out.mean((2, 3)) @ s["fc.weight"].T + s["fc.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", TORCHVISION)
def test_gradients_reach_every_parameter(name):
    network = getattr(networks, name)(5)
    F.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    assert [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", TORCHVISION)
def test_network_is_rebuilt_from_its_description(name):
    network = layout(name, 7, 1)
    description = {"_target_": f"nayer_pl.networks.{name}", "num_classes": 7, "channels": 1}
    assert network.architecture == description
    with torch.device("meta"):
        rebuilt = build_network(network.architecture)
    assert digest(rebuilt.state_dict()) == digest(network.state_dict())
