import importlib
import json
import logging
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from nayer_pl import InputError, load_classifier, save_classifier
from nayer_pl.app.instantiate import build

PACKAGE = """
import torch
from torch import nn

def build_net(num_classes=10, widths=(4,)):
    layers, channels = [], 1
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    return nn.Sequential(*layers)

def trained_net():
    torch.manual_seed(7)
    return build_net()
"""
TEACHER = ["data=digits", "teacher=custom"]
MEANS = ["teacher.mean=[0.4]", "teacher.std=[0.3]"]


@pytest.fixture(autouse=True)
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "my_nets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(folder.parent)
    yield
    sys.modules.pop("my_nets", None)


def net(num_classes=10, widths=(4,)):
    """The same layout, built without the package."""
    layers, channels = [], 1
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    )


def test_teacher__package_and_file(config):
    mine = net()
    torch.save({"state_dict": {f"module.{k}": v for k, v in mine.state_dict().items()}}, "my.pth")
    target = "teacher.architecture._target_=my_nets.build_net"
    teacher = build(config(*TEACHER, target, "teacher.weights=my.pth", *MEANS).teacher)
    images = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(teacher(images), mine.eval()((images - 0.4) / 0.3))
    with pytest.raises(InputError, match="mean="):
        build(config(*TEACHER, target, "teacher.weights=my.pth").teacher)


def test_teacher__function_returns_it_trained(config):
    target = "teacher.architecture._target_=my_nets.trained_net"
    teacher = build(config(*TEACHER, target, *MEANS).teacher)
    torch.manual_seed(7)
    images = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(teacher(images), net().eval()((images - 0.4) / 0.3))


def test_student__arguments(config, tmp_path):
    chosen = ["student=custom", "student.architecture._target_=my_nets.build_net"]
    added = ["+student.architecture.num_classes=3", "+student.architecture.widths=[5,6]"]
    student = build(config(*chosen, *added).student)
    expected = {key: value.shape for key, value in net(3, (5, 6)).state_dict().items()}
    assert {k: v.shape for k, v in student.network.state_dict().items()} == expected
    # What was typed travels as plain values with the weights.
    save_classifier(tmp_path / "s.safetensors", student)
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        described = json.loads(file.metadata()["classifier"])["architecture"]
    assert described == {"_target_": "my_nets.build_net", "num_classes": 3, "widths": [5, 6]}
    with pytest.raises(InputError, match=r"my_nets\.build_net.*architecture=\{"):
        load_classifier(tmp_path / "s.safetensors")
    loaded, _ = load_classifier(tmp_path / "s.safetensors", described, mean=[0.4], std=[0.3])
    student.copy_normalization(loaded)
    images = torch.rand(3, 1, 16, 16)
    assert torch.equal(loaded(images), student.eval()(images))


def test_student__starts_from_a_file(config, caplog):
    mine = net()
    torch.save({"net": mine.state_dict()}, "start.pth")
    np.save("text.npy", np.eye(10, 4, dtype=np.float32))
    cfg = config(
        *TEACHER, *MEANS, "teacher.architecture._target_=my_nets.trained_net",
        "student=custom", "student.architecture._target_=my_nets.build_net",
        "student.weights=start.pth", "text_encoder=file", "text_encoder.path=text.npy",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        method = build(cfg.model)
    images = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(method.student.eval()(images), mine.eval()((images - 0.4) / 0.3))
    assert all(p.requires_grad for p in method.student.parameters())
    assert method.student.normalization == {
        "mean": pytest.approx([0.4]),
        "std": pytest.approx([0.3]),
    }
    assert not caplog.records


@pytest.mark.parametrize("target", [[], ["teacher.architecture._target_=my_nets.none"]])
def test_teacher__missing_function(config, target):
    with pytest.raises(InputError, match="_target_ is the import path"):
        build(config(*TEACHER, *target, *MEANS).teacher)


def test_teacher__pickled_network(config, tmp_path):
    my_nets = importlib.import_module("my_nets")

    torch.save(my_nets.trained_net(), "whole.pth")
    chosen = [*TEACHER, "teacher.architecture._target_=my_nets.build_net", *MEANS]
    with pytest.raises(InputError, match="trust_code=true"):
        build(config(*chosen, "teacher.weights=whole.pth").teacher)
    teacher = build(config(*chosen, "teacher.weights=whole.pth", "teacher.trust_code=true").teacher)
    images = torch.rand(3, 1, 16, 16)
    expected = my_nets.trained_net().eval()((images - 0.4) / 0.3)
    torch.testing.assert_close(teacher(images), expected)
