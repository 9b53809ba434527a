import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import networks
from nayer_pl.networks import build_network

NAMES = ("mobilenetv2", "mobilenetv2_imagenet")


def layout(name, *args):
    with torch.device("meta"):
        return getattr(networks, name)(*args)


def digest(state):
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# The figures of torchvision's documentation at 1000 classes. At 10 and 100 classes its last layer
# has 1281 parameters a class fewer: the 2.24 M and 2.35 M of the CIFAR checkpoints.
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [1000, 100, 10])
def test_parameter_counts_are_the_published_ones(name, classes):
    count = sum(p.numel() for p in layout(name, classes).parameters())
    assert count == 3_504_872 - 1281 * (1000 - classes)


# Digests taken from torchvision 0.29's source, with its classifier at 10 and at 1000 classes.
@pytest.mark.parametrize(
    ("name", "classes", "keys_and_shapes"),
    [
        ("mobilenetv2", 10, "dc7b0abda4838b2c"),
        ("mobilenetv2_imagenet", 1000, "e3eb10f890f74c6e"),
    ],
)
def test_keys_and_shapes_are_torchvisions(name, classes, keys_and_shapes):
    state = layout(name, classes).state_dict()
    assert len(state) == 314
    assert digest(state) == keys_and_shapes


# Millions, as published beside the CIFAR checkpoints and by torchvision (0.301 * 10^9).
@pytest.mark.parametrize(
    ("name", "classes", "size", "digits", "millions"),
    [
        ("mobilenetv2", 10, 32, 2, 87.98),
        ("mobilenetv2_imagenet", 1000, 224, 0, 301),
    ],
)
def test_multiply_adds_are_the_published_ones(name, classes, size, digits, millions):
    network, work = layout(name, classes), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, _, out: work.append(out.numel() * m.weight[0].numel())
            )
    network(torch.empty(1, 3, size, size, device="meta"))
    assert round(sum(work) / 1e6, digits) == millions


@pytest.mark.parametrize(("name", "size", "side"), [
    ("mobilenetv2", 32, 4), ("mobilenetv2", 28, 4), ("mobilenetv2_imagenet", 224, 7),
])  # fmt: skip
def test_size_of_the_features(name, size, side):
    images = torch.empty(2, 1, size, size, device="meta")
    network, sides = layout(name, 7, 1), []
    network.features.register_forward_hook(lambda *args: sides.append(args[2].shape))
    assert network(images).shape == (2, 7)
    assert sides == [(2, 1280, side, side)]


@pytest.mark.parametrize("name", NAMES)
def test_one_channel_changes_the_first_convolution_only(name):
    gray, color = (layout(name, 7, channels).state_dict() for channels in (1, 3))
    differ = [key for key, value in color.items() if value.shape != gray[key].shape]
    assert differ == ["features.0.0.weight"]
    assert gray["features.0.0.weight"].shape == (32, 1, 3, 3)


# First blocks of the stages that halve the resolution.
@pytest.mark.parametrize(
    ("name", "halving"), [("mobilenetv2", {4, 7, 14}), ("mobilenetv2_imagenet", {0, 2, 4, 7, 14})]
)
def test_whole_network_is_its_parts_in_order(name, halving):
    torch.manual_seed(1)
    network = getattr(networks, name)(3).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(1, 3)
            norm.bias.data.normal_()
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.1, 0.5)
    s, x = network.state_dict(), torch.randn(2, 3, 48, 48)

    def convolve(x, conv, norm, stride=1):
        weight = s[f"{conv}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        parts = (s[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def clipped(x, prefix, stride=1):
        return convolve(x, f"{prefix}.0", f"{prefix}.1", stride).clamp(0, 6)

    out = clipped(x, "features.0", 2 if 0 in halving else 1)
    saturated = out.amax() == 6
    for i in range(1, 18):
        block, stride, kept = f"features.{i}.conv", 2 if i in halving else 1, out
        if i == 1:
            out = clipped(out, f"{block}.0")
            out = convolve(out, f"{block}.1", f"{block}.2")
        else:
            out = clipped(clipped(out, f"{block}.0"), f"{block}.1", stride)
            out = convolve(out, f"{block}.2", f"{block}.3")
        if i in {3, 5, 6, 8, 9, 10, 12, 13, 15, 16}:
            out = out + kept
    out = clipped(out, "features.18").mean((2, 3))
    expected = out @ s["classifier.1.weight"].T + s["classifier.1.bias"]
    assert saturated, "the test must tell ReLU6 from ReLU"
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_features_are_dropped_in_training_only():
    network = networks.mobilenetv2(3)
    dropout, features = network.classifier[0], torch.ones(200, 1280)
    assert (dropout(features) == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    network.eval()
    assert torch.equal(dropout(features), features)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    network = getattr(networks, name)(5)
    F.cross_entropy(network(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    assert [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_network_is_rebuilt_from_its_description(name):
    network = layout(name, 7, 1)
    description = {"_target_": f"nayer_pl.networks.{name}", "num_classes": 7, "channels": 1}
    assert network.architecture == description
    with torch.device("meta"):
        rebuilt = build_network(network.architecture)
    assert digest(rebuilt.state_dict()) == digest(network.state_dict())
    # Small and large have the same weights; what differs is the strides.
    strides = [[m.stride for m in n.modules() if isinstance(m, nn.Conv2d)]
               for n in (network, rebuilt)]  # fmt: skip
    assert strides[0] == strides[1]
