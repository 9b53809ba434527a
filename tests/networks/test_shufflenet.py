import hashlib

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nayer_pl.networks import build_network, shufflenetv2
from nayer_pl.networks.shufflenet import shuffle


def layout(*args):
    with torch.device("meta"):
        return shufflenetv2(*args)


def digest(state):
    lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


# At 1000 classes the 1x network of torchvision's documentation. At 100 classes CRD's ShuffleV2,
# whose stem of 1x1 and not 3x3 convolutions has 24 * 3 * 8 parameters fewer.
@pytest.mark.parametrize(
    ("classes", "count"), [(1000, 2_278_604), (100, 1_355_528 + 24 * 3 * 8), (10, 1_263_854)]
)
def test_parameter_counts_are_the_published_ones(classes, count):
    assert sum(p.numel() for p in layout(classes).parameters()) == count


def test_keys_and_shapes_are_torchvisions():
    state = layout(10).state_dict()
    assert len(state) == 338
    # Taken from torchvision 0.29's source, with its classifier at 10 classes.
    assert digest(state) == "425a0d39c14a22f2"


def test_multiply_adds_are_the_published_ones():
    network, work = layout(10), []
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda m, _, out: work.append(out.numel() * m.weight[0].numel())
            )
    network(torch.empty(1, 3, 32, 32, device="meta"))
    # As published beside the CIFAR checkpoints.
    assert round(sum(work) / 1e6, 2) == 45.00


@pytest.mark.parametrize(("size", "side"), [(32, 4), (28, 4)])
def test_size_of_the_features(size, side):
    network, sides = layout(7, 1), []
    network.conv5.register_forward_hook(lambda *args: sides.append(args[2].shape))
    logits = network(torch.empty(2, 1, size, size, device="meta"))
    assert sides == [(2, 1024, side, side)]
    assert logits.shape == (2, 7)


def test_one_channel_changes_the_first_convolution_only():
    gray, color = (layout(7, channels).state_dict() for channels in (1, 3))
    differ = [key for key, value in color.items() if value.shape != gray[key].shape]
    assert differ == ["conv1.0.weight"]
    assert gray["conv1.0.weight"].shape == (24, 1, 3, 3)


def one_by_one(left, right):
    """The shuffle of the paper, channel by channel."""
    pairs = zip(left.unbind(1), right.unbind(1), strict=True)
    return torch.stack([channel for pair in pairs for channel in pair], dim=1)


def test_shuffle_takes_channels_in_turn():
    left, right = torch.randn(2, 2, 3, 4, 5).unbind(0)
    assert torch.equal(shuffle(left, right), one_by_one(left, right))


def test_whole_network_is_its_parts_in_order():
    torch.manual_seed(1)
    network = shufflenetv2(3).eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.weight.data.uniform_(1, 3)
            norm.bias.data.normal_()
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.1, 0.5)
    s, x = network.state_dict(), torch.randn(2, 3, 24, 24)

    def convolve(x, prefix, i, stride=1):
        weight = s[f"{prefix}.{i}.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
        norm = f"{prefix}.{i + 1}"
        parts = (s[f"{norm}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def branch2(x, unit, stride):
        x = convolve(x, f"{unit}.branch2", 0).relu()
        x = convolve(x, f"{unit}.branch2", 3, stride)
        return convolve(x, f"{unit}.branch2", 5).relu()

    out = convolve(x, "conv1", 0).relu()
    for stage, depth in (("stage2", 4), ("stage3", 8), ("stage4", 4)):
        left = convolve(out, f"{stage}.0.branch1", 0, 2)
        left = convolve(left, f"{stage}.0.branch1", 2).relu()
        out = one_by_one(left, branch2(out, f"{stage}.0", 2))
        half = out.shape[1] // 2
        for i in range(1, depth):
            out = one_by_one(out[:, :half], branch2(out[:, half:], f"{stage}.{i}", 1))
    out = convolve(out, "conv5", 0).relu().mean((2, 3))
    expected = out @ s["fc.weight"].T + s["fc.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter():
    network = shufflenetv2(5)
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    assert [key for key, p in network.named_parameters() if not p.grad.abs().sum() > 0] == []


def test_network_is_rebuilt_from_its_description():
    network = layout(7, 1)
    assert network.architecture == {
        "_target_": "nayer_pl.networks.shufflenetv2", "num_classes": 7, "channels": 1,
    }  # fmt: skip
    with torch.device("meta"):
        rebuilt = build_network(network.architecture)
    assert digest(rebuilt.state_dict()) == digest(network.state_dict())
