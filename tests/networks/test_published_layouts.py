import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from nayer_pl import networks
from nayer_pl.networks.residual import BasicBlock, Bottleneck
from nayer_pl.networks.vgg import VGG
from nayer_pl.networks.wrn import PreActivationBlock

PUBLISHED = Path(__file__).parents[3] / "shared/published_teachers"
PARAMETERS = {
    "resnet34": {10: 21_282_122, 100: 21_328_292, 200: 21_379_592},
    "resnet18": {10: 11_173_962, 100: 11_220_132},
    "wrn40_2": {10: 2_243_546, 100: 2_255_156},
    "wrn16_1": {10: 175_066, 100: 180_916},
    "wrn16_2": {10: 691_674, 100: 703_284},
    "wrn40_1": {10: 563_930, 100: 569_780},
    "vgg11": {10: 9_231_114, 100: 9_277_284},
    "resnet50": {10: 23_520_842, 100: 23_705_252},
}
STEM_WIDTH = {name: 16 if name.startswith("wrn") else 64 for name in PARAMETERS}


def layout(name, *args):
    with torch.device("meta"):
        return getattr(networks, name)(*args)


def count(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_the_published_ones(name):
    assert {k: count(layout(name, k)) for k in PARAMETERS[name]} == PARAMETERS[name]


def published_files():
    names = [name for name in PARAMETERS if name != "resnet50"]
    missing = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published layouts here")
    return [pytest.param(name, marks=missing) for name in names]


def published_entries(name):
    entries = {}
    for line in (PUBLISHED / f"{name}.txt").read_text().splitlines():
        key, shape, dtype = re.fullmatch(r"(\S+) (\(.*\)) (\w+)", line).groups()
        entries[key] = ast.literal_eval(shape), getattr(torch, dtype)
    return entries


@pytest.mark.parametrize("name", published_files())
def test_keys_shapes_and_types_are_those_of_the_published_checkpoints(name):
    state = layout(name, 10).state_dict()
    ours = {key: (tuple(value.shape), value.dtype) for key, value in state.items()}
    assert ours == published_entries(name)


@pytest.mark.parametrize("name", published_files())
def test_published_checkpoint_loads_unchanged(name, tmp_path):
    torch.manual_seed(0)
    state = {
        key: torch.rand(shape) if dtype.is_floating_point else torch.tensor(7, dtype=dtype)
        for key, (shape, dtype) in published_entries(name).items()
    }
    path = tmp_path / f"cifar10_{name}.pth"
    torch.save({"state_dict": state}, path)
    description = {"_target_": f"nayer_pl.networks.{name}", "num_classes": 10}
    teacher = networks.load_teacher(description, path, (0.5,) * 3, (0.25,) * 3)
    loaded = teacher.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", PARAMETERS)
def test_one_channel_changes_the_first_convolution_only(name):
    gray, color = layout(name, 10, 1), layout(name, 10, 3)
    assert count(color) - count(gray) == 2 * 9 * STEM_WIDTH[name]
    grey_shapes = {k: v.shape for k, v in gray.state_dict().items()}
    differ = [k for k, v in color.state_dict().items() if v.shape != grey_shapes[k]]
    assert len(differ) == 1
    assert grey_shapes[differ[0]][1] == 1


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [16, 28, 64])
def test_any_image_size_gives_logits(name, size):
    images = torch.empty(2, 1, size, size, device="meta")
    assert layout(name, 7, 1)(images).shape == (2, 7)


# What follows computes the blocks again, in numpy.


def as_numpy(module):
    return {key: value.numpy().astype(np.float64) for key, value in module.state_dict().items()}


def convolve(x, weight, stride=1, bias=None):
    pad = weight.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = sliding_window_view(padded, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    out = np.einsum("bchwij,ocij->bohw", windows, weight)
    return out if bias is None else out + bias[:, None, None]


def normalize(x, state, name):
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def relu(x):
    return np.maximum(x, 0)


def randomised(module):
    torch.manual_seed(1)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
                tensor.normal_()
            norm.running_var.uniform_(0.5, 2)
    return module.eval()


def compare(module, reference, channels, size=6):
    module = randomised(module)
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        ours = module(x).numpy()
    expected = reference(x.numpy().astype(np.float64), as_numpy(module))
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (6, 1), (6, 2)])
def test_basic_block(width, stride):
    def reference(x, s):
        out = relu(normalize(convolve(x, s["conv1.weight"], stride), s, "bn1"))
        out = normalize(convolve(out, s["conv2.weight"]), s, "bn2")
        if "shortcut.0.weight" in s:
            x = normalize(convolve(x, s["shortcut.0.weight"], stride), s, "shortcut.1")
        return relu(out + x)

    compare(BasicBlock(4, width, stride, "shortcut"), reference, 4)


@pytest.mark.parametrize(("channels", "stride"), [(4, 1), (12, 1), (12, 2)])
def test_bottleneck(channels, stride):
    def reference(x, s):
        out = relu(normalize(convolve(x, s["conv1.weight"]), s, "bn1"))
        out = relu(normalize(convolve(out, s["conv2.weight"], stride), s, "bn2"))
        out = normalize(convolve(out, s["conv3.weight"]), s, "bn3")
        if "shortcut.0.weight" in s:
            x = normalize(convolve(x, s["shortcut.0.weight"], stride), s, "shortcut.1")
        return relu(out + x)

    compare(Bottleneck(channels, 3, stride, "shortcut"), reference, channels)


@pytest.mark.parametrize(("width", "stride"), [(4, 1), (6, 1), (6, 2)])
def test_pre_activation_block(width, stride):
    def reference(x, s):
        activated = relu(normalize(x, s, "bn1"))
        out = convolve(activated, s["conv1.weight"], stride)
        out = convolve(relu(normalize(out, s, "bn2")), s["conv2.weight"])
        shortcut = s.get("convShortcut.weight")
        return out + (x if shortcut is None else convolve(activated, shortcut, stride))

    compare(PreActivationBlock(4, width, stride), reference, 4)


def test_small_vgg():
    def reference(x, s):
        for name in ("block0", "block1"):
            for i in (0, 3):
                if f"{name}.{i}.weight" in s:
                    x = convolve(x, s[f"{name}.{i}.weight"], bias=s[f"{name}.{i}.bias"])
                    x = relu(normalize(x, s, f"{name}.{i + 1}"))
            if name == "block0":
                x = x.reshape(*x.shape[:2], 3, 2, 3, 2).max(axis=(3, 5))
        return x.mean(axis=(2, 3)) @ s["classifier.weight"].T + s["classifier.bias"]

    compare(VGG([[4], [5, 6]], num_classes=3, channels=2), reference, 2)


def test_wide_resnet_is_its_parts_in_order():
    def block(x, s, name, stride):
        activated = relu(normalize(x, s, f"{name}.bn1"))
        out = convolve(activated, s[f"{name}.conv1.weight"], stride)
        out = convolve(relu(normalize(out, s, f"{name}.bn2")), s[f"{name}.conv2.weight"])
        shortcut = s.get(f"{name}.convShortcut.weight")
        return out + (x if shortcut is None else convolve(activated, shortcut, stride))

    def reference(x, s):
        x = convolve(x, s["conv1.weight"])
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            for i in range(2):
                x = block(x, s, f"block{stage}.layer.{i}", stride if i == 0 else 1)
        x = relu(normalize(x, s, "bn1")).mean(axis=(2, 3))
        return x @ s["fc.weight"].T + s["fc.bias"]

    compare(networks.wrn16_1(5), reference, 3, size=8)
