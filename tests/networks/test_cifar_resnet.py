import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl import networks
from nayer_pl.networks import build_network
from nayer_pl.networks.cifar_resnet import CifarResNet

NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)
SHAPES = {
    "resnet20": (20, NARROW),
    "resnet32": (32, NARROW),
    "resnet56": (56, NARROW),
    "resnet8x4": (8, WIDE),
    "resnet32x4": (32, WIDE),
}
# Counted with the networks that CRD published, at 100 classes.
CRD = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
}
# Millions of multiply-adds at 10 classes, as published beside the CIFAR checkpoints.
MULTIPLY_ADDS = {"resnet20": 40.81, "resnet32": 69.12, "resnet56": 125.75}


def layout(name, *args):
    with torch.device("meta"):
        return getattr(networks, name)(*args)


def published_shapes(depth, widths, classes, channels=3):
    """Keys and shapes of the published checkpoints, written down without building anything."""
    shapes = {}

    def convolution(conv, norm, shape):
        shapes[f"{conv}.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    convolution("conv1", "bn1", (widths[0], channels, 3, 3))
    for stage in (1, 2, 3):
        before, width = widths[stage - 1], widths[stage]
        for i in range((depth - 2) // 6):
            block = f"layer{stage}.{i}"
            shape = (width, before if i == 0 else width, 3, 3)
            convolution(f"{block}.conv1", f"{block}.bn1", shape)
            convolution(f"{block}.conv2", f"{block}.bn2", (width, width, 3, 3))
            if i == 0 and before != width:
                shape = (width, before, 1, 1)
                convolution(f"{block}.downsample.0", f"{block}.downsample.1", shape)
    shapes["fc.weight"], shapes["fc.bias"] = (classes, widths[3]), (classes,)
    return shapes


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("classes", "channels"), [(10, 3), (100, 3), (7, 1)])
def test_keys_and_shapes_are_those_of_the_published_checkpoints(name, classes, channels):
    state = layout(name, classes, channels).state_dict()
    expected = published_shapes(*SHAPES[name], classes, channels)
    assert {key: tuple(value.shape) for key, value in state.items()} == expected


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_crds(name):
    shapes = published_shapes(*SHAPES[name], 100)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    closed_form = sum(math.prod(s) for key, s in shapes.items() if not key.endswith(buffers))
    assert sum(p.numel() for p in layout(name, 100).parameters()) == closed_form == CRD[name]


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46),
                                                ("resnet56", 0.85)])  # fmt: skip
def test_without_weights_in_the_shortcuts_the_counts_are_the_papers(name, millions):
    parameters = layout(name, 10).named_parameters()
    count = sum(p.numel() for key, p in parameters if "downsample" not in key)
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds_are_the_published_ones(name):
    network, work = layout(name, 10), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, _, out: work.append(out.numel() * m.weight[0].numel())
            )
    network(torch.empty(1, 3, 32, 32, device="meta"))
    assert round(sum(work) / 1e6, 2) == MULTIPLY_ADDS[name]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("size", "side"), [(32, 8), (28, 7)])
def test_features_are_a_quarter_as_wide_as_the_image(name, size, side):
    network, sides = layout(name, 7, 1), []
    network.layer3.register_forward_hook(lambda *args: sides.append(args[2].shape))
    logits = network(torch.empty(2, 1, size, size, device="meta"))
    assert sides == [(2, SHAPES[name][1][3], side, side)]
    assert logits.shape == (2, 7)


def test_whole_network_is_its_parts_in_order():
    torch.manual_seed(1)
    network = CifarResNet(14, (2, 3, 4, 5), num_classes=3, channels=2).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
    s, x = network.state_dict(), torch.randn(2, 2, 8, 8)

    def convolve(x, conv, norm, stride=1):
        weight = s[f"{conv}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        parts = (s[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    out = convolve(x, "conv1", "bn1").relu()
    for block in ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1"):
        stride = 2 if block in ("layer2.0", "layer3.0") else 1
        kept = out
        out = convolve(out, f"{block}.conv1", f"{block}.bn1", stride).relu()
        out = convolve(out, f"{block}.conv2", f"{block}.bn2")
        if block.endswith(".0"):
            kept = convolve(kept, f"{block}.downsample.0", f"{block}.downsample.1", stride)
        out = (out + kept).relu()
    expected = out.mean((2, 3)) @ s["fc.weight"].T + s["fc.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_reach_every_parameter(name):
    network = getattr(networks, name)(5)
    F.cross_entropy(network(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    assert [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


@pytest.mark.parametrize("name", SHAPES)
def test_network_is_rebuilt_from_its_description(name):
    network = layout(name, 7, 1)
    description = {"_target_": f"nayer_pl.networks.{name}", "num_classes": 7, "channels": 1}
    assert network.architecture == description
    with torch.device("meta"):
        rebuilt = build_network(network.architecture)
    shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in (network, rebuilt)]
    assert shapes[0] == shapes[1]
