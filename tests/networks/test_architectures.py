"""The networks against published counts and key layouts, and against their papers written out."""

import hashlib
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl.networks import (
    build_network,
    create_model,
    list_models,
    mobilenetv2,
    mobilenetv2_imagenet,
    resnet18,
    shufflenetv2,
    wrn16_1,
)
from nayer_pl.networks.cifar import VGG
from nayer_pl.networks.resnet import BasicBlock, Bottleneck, ResNet

# Published counts: of CRD at 100 classes (its ShuffleV2 has a stem of 1x1 instead of 3x3
# convolutions, 24 * 3 * 8 parameters fewer), of torchvision's documentation at 1000 classes, and of
# the data-free distillation literature.
PARAMETERS = {
    "resnet34": {10: 21_282_122, 100: 21_328_292, 200: 21_379_592},
    "resnet50": {10: 23_520_842, 100: 23_705_252},
    "resnet20": {100: 278_324},
    "resnet32": {100: 472_756},
    "resnet56": {100: 861_620},
    "resnet8x4": {100: 1_233_540},
    "resnet32x4": {100: 7_433_860},
    "mobilenetv2": {1000: 3_504_872},
    "shufflenetv2": {100: 1_355_528 + 24 * 3 * 8, 1000: 2_278_604},
}
# Classes, number of entries, and digest of keys and shapes: of the published teachers, of the
# checkpoints published for CIFAR, and of torchvision 0.29.
LAYOUTS = {
    "resnet34": (10, 218, "16658fd839bd35b9"),
    "resnet18": (10, 122, "15e99edfd6f789c7"),
    "wrn40_2": (10, 227, "0b55f662b02a18cd"),
    "wrn16_1": (10, 82, "90ca02d6f00f269b"),
    "wrn16_2": (10, 83, "36963aae9908a7b0"),
    "wrn40_1": (10, 226, "ac02a671cfee9e22"),
    "vgg11": (10, 58, "3d5eec801e23ef0c"),
    "resnet20": (10, 128, "d0646ea64748f691"),
    "resnet32": (10, 200, "75fda7e6a7affe30"),
    "resnet56": (10, 344, "d1812bc89522a672"),
    "resnet8x4": (10, 62, "f97bc30bde40d48e"),
    "resnet32x4": (10, 206, "c57969bb157e31d7"),
    "resnet18_imagenet": (1000, 122, "5191d63ec3989592"),
    "resnet34_imagenet": (1000, 218, "f8de2a1812ef85e4"),
    "resnet50_imagenet": (1000, 320, "a87e91cd6bd1f939"),
    "mobilenetv2": (10, 314, "dc7b0abda4838b2c"),
    "mobilenetv2_imagenet": (1000, 314, "e3eb10f890f74c6e"),
    "shufflenetv2": (10, 338, "425a0d39c14a22f2"),
}
# Classes, image size, and millions of multiply-adds with their decimals: published beside the CIFAR
# checkpoints, and in torchvision's documentation.
MULTIPLY_ADDS = {
    "resnet20": (10, 32, 40.81, 2),
    "resnet32": (10, 32, 69.12, 2),
    "resnet56": (10, 32, 125.75, 2),
    "mobilenetv2": (10, 32, 87.98, 2),
    "shufflenetv2": (10, 32, 45.00, 2),
    "mobilenetv2_imagenet": (1000, 224, 301, 0),
    "resnet18_imagenet": (1000, 224, 1814, 0),
    "resnet34_imagenet": (1000, 224, 3664, 0),
    "resnet50_imagenet": (1000, 224, 4089, 0),
}


def layout(name, *args):
    with torch.device("meta"):
        return create_model(name, *args)


def shapes(network):
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def test_every_network_is_checked():
    assert list_models() == sorted({*PARAMETERS, *LAYOUTS})


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    counts = {k: sum(p.numel() for p in layout(name, k).parameters()) for k in PARAMETERS[name]}
    assert counts == PARAMETERS[name]


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_layouts(name):
    classes, entries, digest = LAYOUTS[name]
    lines = sorted(f"{key} {shape}" for key, shape in shapes(layout(name, classes)).items())
    found = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(lines), found) == (entries, digest)


@pytest.mark.parametrize("name", MULTIPLY_ADDS)
def test_multiply_adds(name):
    classes, size, millions, decimals = MULTIPLY_ADDS[name]
    network, work = layout(name, classes), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, _, out: work.append(out.numel() * m.weight[0].numel())
            )
    network(torch.empty(1, 3, size, size, device="meta"))
    assert round(sum(work) / 1e6, decimals) == millions


@pytest.mark.parametrize("name", list_models())
def test_size_and_channels_of_the_images(name):
    """And the description that rebuilds the network."""
    gray, color = layout(name, 7, 1), layout(name, 7)
    description = {"_target_": f"nayer_pl.networks.{name}", "num_classes": 7, "channels": 1}
    assert gray.architecture == description
    with torch.device("meta"):
        assert str(build_network(description)) == str(gray)
    for size in (224,) if "imagenet" in name else (16, 28):
        assert gray(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)
    first = next(iter(shapes(color)))
    expected = {first: (shapes(color)[first][0], 1, *shapes(color)[first][2:])}
    assert shapes(gray) == {**shapes(color), **expected}


def test_mobilenet_drops_features_in_training_only():
    network = mobilenetv2(3)
    dropout, features = network.classifier[0], torch.ones(200, 1280)
    assert (dropout(features) == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)
    network.eval()
    assert torch.equal(dropout(features), features)


# The forward passes written out from the papers, on the networks' weights `s` by their keys.


def convolve(x, s, conv, norm=None, stride=1):
    weight = s[f"{conv}.weight"]
    groups, padding = x.shape[1] // weight.shape[1], weight.shape[-1] // 2
    x = F.conv2d(x, weight, s.get(f"{conv}.bias"), stride, padding, groups=groups)
    return x if norm is None else normalize(x, s, norm)


def normalize(x, s, norm):
    mean, var, weight, bias = (
        s[f"{norm}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def pool_and_classify(x, s, head):
    return x.mean((2, 3)) @ s[f"{head}.weight"].T + s[f"{head}.bias"]


def resnet(x, s):
    for_imagenet = s["conv1.weight"].shape[-1] == 7
    shortcut, head = ("shortcut", "linear") if "linear.weight" in s else ("downsample", "fc")
    x = convolve(x, s, "conv1", "bn1", 2 if for_imagenet else 1).relu()
    if for_imagenet:
        # Nothing is below zero here, so a border of zeros changes no maximum.
        x = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    for block in dict.fromkeys(key[:8] for key in s if key.startswith("layer")):
        kept, stride = x, 2 if block[7] == "0" and block[5] != "1" else 1
        if f"{block}.conv3.weight" in s:
            x = convolve(x, s, f"{block}.conv1", f"{block}.bn1").relu()
            x = convolve(x, s, f"{block}.conv2", f"{block}.bn2", stride).relu()
            x = convolve(x, s, f"{block}.conv3", f"{block}.bn3")
        else:
            x = convolve(x, s, f"{block}.conv1", f"{block}.bn1", stride).relu()
            x = convolve(x, s, f"{block}.conv2", f"{block}.bn2")
        if x.shape != kept.shape:
            name = f"{block}.{shortcut}"
            kept = convolve(kept, s, f"{name}.0", f"{name}.1", stride)
        x = (x + kept).relu()
    return pool_and_classify(x, s, head)


def wide_resnet(x, s):
    x = convolve(x, s, "conv1")
    for stage, strides in ((1, (1, 1)), (2, (2, 1)), (3, (2, 1))):
        for i, stride in enumerate(strides):
            block = f"block{stage}.layer.{i}"
            activated = normalize(x, s, f"{block}.bn1").relu()
            out = convolve(activated, s, f"{block}.conv1", f"{block}.bn2", stride).relu()
            if f"{block}.convShortcut.weight" in s:
                x = convolve(activated, s, f"{block}.convShortcut", stride=stride)
            x = convolve(out, s, f"{block}.conv2") + x
    return pool_and_classify(normalize(x, s, "bn1").relu(), s, "fc")


def small_vgg(x, s):
    x = convolve(x, s, "block0.0", "block0.1").relu()
    x = x.reshape(*x.shape[:2], 4, 2, 4, 2).amax((3, 5))
    x = convolve(x, s, "block1.0", "block1.1").relu()
    x = convolve(x, s, "block1.3", "block1.4").relu()
    return pool_and_classify(x, s, "classifier")


def mobilenet(x, s, halving):
    """With the first blocks of the stages that halve the resolution."""

    def clipped(x, prefix, stride=1):
        return convolve(x, s, f"{prefix}.0", f"{prefix}.1", stride).clamp(0, 6)

    x = clipped(x, "features.0", 2 if 0 in halving else 1)
    assert x.amax() == 6, "the test must tell ReLU6 from ReLU"
    for i in range(1, 18):
        block, stride, kept = f"features.{i}.conv", 2 if i in halving else 1, x
        if i == 1:
            x = convolve(clipped(x, f"{block}.0"), s, f"{block}.1", f"{block}.2")
        else:
            x = clipped(clipped(x, f"{block}.0"), f"{block}.1", stride)
            x = convolve(x, s, f"{block}.2", f"{block}.3")
        if i in {3, 5, 6, 8, 9, 10, 12, 13, 15, 16}:
            x = x + kept
    return pool_and_classify(clipped(x, "features.18"), s, "classifier.1")


def shufflenet(x, s):
    def shuffle(left, right):
        pairs = zip(left.unbind(1), right.unbind(1), strict=True)
        return torch.stack([channel for pair in pairs for channel in pair], dim=1)

    def step(x, prefix, i, stride=1):
        return convolve(x, s, f"{prefix}.{i}", f"{prefix}.{i + 1}", stride)

    def branch2(x, unit, stride):
        x = step(x, f"{unit}.branch2", 0).relu()
        return step(step(x, f"{unit}.branch2", 3, stride), f"{unit}.branch2", 5).relu()

    x = step(x, "conv1", 0).relu()
    for stage, depth in (("stage2", 4), ("stage3", 8), ("stage4", 4)):
        left = step(step(x, f"{stage}.0.branch1", 0, 2), f"{stage}.0.branch1", 2).relu()
        x = shuffle(left, branch2(x, f"{stage}.0", 2))
        half = x.shape[1] // 2
        for i in range(1, depth):
            x = shuffle(x[:, :half], branch2(x[:, half:], f"{stage}.{i}", 1))
    return pool_and_classify(step(x, "conv5", 0).relu(), s, "fc")


@pytest.mark.parametrize(
    ("build", "reference", "size"),
    [
        (lambda: ResNet(BasicBlock, (2, 2, 2), (2, 3, 4, 5), 3, 2), resnet, 8),
        (lambda: ResNet(Bottleneck, (2, 1, 2), (3, 2, 3, 4), 3, 2), resnet, 8),
        (lambda: ResNet(Bottleneck, (2, 1, 1), (8, 8, 12, 16), 3, 2, True), resnet, 48),
        (lambda: resnet18(3, 2), resnet, 16),
        (lambda: wrn16_1(3, 2), wide_resnet, 8),
        (lambda: VGG([[4], [5, 6]], 3, 2), small_vgg, 8),
        (lambda: mobilenetv2(3, 2), partial(mobilenet, halving={4, 7, 14}), 48),
        (lambda: mobilenetv2_imagenet(3, 2), partial(mobilenet, halving={0, 2, 4, 7, 14}), 48),
        (lambda: shufflenetv2(3, 2), shufflenet, 24),
    ],
)
@torch.no_grad()
def test_forward_pass(build, reference, size):
    torch.manual_seed(1)
    network = build().eval().double()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.uniform_(1, 3)
            norm.bias.normal_()
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.1, 0.5)
    x = torch.randn(2, 2, size, size, dtype=torch.float64)
    expected = reference(x, network.state_dict())
    torch.testing.assert_close(network(x), expected, rtol=1e-8, atol=1e-8)
    assert expected.std() > 0
