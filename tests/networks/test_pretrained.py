import copy
import json
import logging

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nayer_pl import (
    Classifier,
    InputError,
    build_classifier,
    load_classifier,
    load_teacher,
    save_classifier,
)

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 5, "channels": 1}
OUTSIDE = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3}
MEAN, STD = [0.1307], [0.3081]
IMAGES = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.safetensors"


@pytest.fixture
def classifier():
    """A classifier whose BatchNorm statistics are not those of a fresh one."""
    classifier = build_classifier(WRN, MEAN, STD)
    for _ in range(3):
        classifier(torch.rand(16, 1, 12, 12))
    return classifier.eval()


@pytest.fixture
def file(classifier, path):
    save_classifier(path, classifier)
    return path


@pytest.fixture
def bare(classifier, tmp_path):
    """A file without anything but weights."""
    torch.save({"state_dict": classifier.network.state_dict()}, tmp_path / "s.pth")
    return tmp_path / "s.pth"


# The files of this package


def test_save_classifier__file(classifier, path, caplog):
    classifier.train()
    before = copy.deepcopy(classifier.state_dict())
    facts = {"class_names": ["é", "b"], "image_shape": [1, 12, 12], "measured": {"val/x": 0.5}}
    with caplog.at_level(logging.WARNING):
        save_classifier(path, classifier, **facts)
    assert not caplog.records
    assert load_file(path).keys() == classifier.network.state_dict().keys()
    with safe_open(path, framework="pt") as file:
        held = {key: json.loads(text) for key, text in file.metadata().items() if key != "format"}
    mean, std = pytest.approx(MEAN), pytest.approx(STD)
    assert held == {"classifier": {"architecture": WRN, "mean": mean, "std": std}, **facts}
    assert classifier.training
    assert all(p.requires_grad for p in classifier.parameters())
    assert all(torch.equal(v, before[k]) for k, v in classifier.state_dict().items())

    loaded, returned = load_classifier(path)
    assert returned == held
    assert loaded.description == classifier.description
    assert torch.equal(loaded(IMAGES), classifier.eval()(IMAGES))
    assert not any(module.training for module in loaded.modules())
    assert not any(p.requires_grad for p in loaded.parameters())


def test_save_classifier__undescribed_network(path, caplog):
    with caplog.at_level(logging.WARNING):
        save_classifier(path, Classifier(nn.Conv2d(1, 4, 3)))
    assert "weights only: how Conv2d is built was not recorded" in caplog.text
    with pytest.raises(InputError, match="architecture="):
        load_classifier(path)
    loaded, _ = load_classifier(path, OUTSIDE, [0.5], [0.5])
    assert loaded.network.out_channels == 4


MAKE_FOLDER = {"_target_": "os.mkdir", "path": "marker"}


@pytest.mark.parametrize(
    "description",
    [
        MAKE_FOLDER,
        {**MAKE_FOLDER, "_target_": "mkdir"},
        {**MAKE_FOLDER, "_target_": ""},
        {**MAKE_FOLDER, "_target_": "nayer_pl.networksx.f"},
        {**MAKE_FOLDER, "_target_": "nayer_pl.networks.weights.read_weights"},
        {"_target_": "nayer_pl.networks.build_network", "description": MAKE_FOLDER},
        {"_target_": "nayer_pl.networks.build_classifier", "architecture": MAKE_FOLDER},
        "resnet18",
    ],
)
def test_load_classifier__file_does_not_choose_the_code(path, classifier, description, monkeypatch):
    monkeypatch.chdir(path.parent)
    classifier.network.architecture = description
    save_classifier(path, classifier)
    with pytest.raises(InputError, match="does not name an architecture of this package"):
        load_classifier(path)
    assert list(path.parent.iterdir()) == [path]


def test_load_classifier__malformed_description(path, classifier):
    save_file(classifier.network.state_dict(), path, {"classifier": json.dumps("text")})
    with pytest.raises(InputError, match="does not name an architecture of this package"):
        load_classifier(path)


# Normalization


@pytest.mark.parametrize("given", [(), (MEAN, STD), ([0.5], [0.25])])
def test_load_teacher__normalization_of_the_file_wins(classifier, file, given, caplog):
    with caplog.at_level(logging.WARNING):
        teacher = load_teacher(WRN, file, *given)
    assert torch.equal(teacher(IMAGES), classifier(IMAGES))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == (given == ([0.5], [0.25]))
    assert all("mean [0.13" in text and "not [0.5] and [0.25]" in text for text in warned)


def test_load_teacher__one_value_for_all_channels_is_the_same_normalization(path, caplog):
    color = {**WRN, "channels": 3}
    save_classifier(path, build_classifier(color, [0.5] * 3, [0.25] * 3))
    with caplog.at_level(logging.WARNING):
        load_teacher(color, path, (0.5,), (0.25,))
    assert not caplog.records


@pytest.mark.parametrize(
    "load", [load_teacher, lambda wrn, path, *given: load_classifier(path, wrn, *given)[0]]
)
def test_file_without_normalization(classifier, bare, caplog, load):
    with caplog.at_level(logging.WARNING):
        loaded = load(WRN, bare, (0.5,), (0.25,))
    assert torch.equal(loaded(IMAGES), classifier.network((IMAGES - 0.5) / 0.25))
    assert not caplog.records
    with pytest.raises(InputError, match=r"mean=\[\.\.\.\] and std=\[\.\.\.\]"):
        load(WRN, bare)


# Teachers


def test_load_teacher__missing_weights(tmp_path):
    path = tmp_path / "teachers" / "none.safetensors"
    with pytest.raises(InputError) as caught:
        load_teacher(WRN, path, trained_by="a night of training")
    assert f"at '{path}'; give weights=PATH, or make them by a night of" in str(caught.value)
    with pytest.raises(InputError) as caught:
        load_teacher(WRN, tmp_path)  # a folder
    assert str(tmp_path) in str(caught.value)
    assert "make them" not in str(caught.value)


@pytest.mark.parametrize("more", [{}, {"pretrained": False}])
def test_load_teacher__untrained(more):
    with pytest.raises(InputError, match=r"untrained.*weights="):
        load_teacher({**WRN, **more}, None, MEAN, STD)
