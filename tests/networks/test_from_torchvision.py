import sys
import types
from enum import Enum
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nayer_pl import Classifier, InputError, load_classifier, save_classifier
from nayer_pl.app.train import build

# Two sets of weights with two normalizations, of ten classes.
NORMALISATION = {
    "IMAGENET1K_V1": ((0.5,) * 3, (0.25,) * 3),
    "IMAGENET1K_V2": ((0.1, 0.2, 0.3), (1, 2, 4)),
}


class Net(nn.Module):
    def __init__(self, num_classes=1000):
        super().__init__()
        self.features = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
            nn.Conv2d(4, 5, 1),
        )
        self.classifier = nn.Linear(5, num_classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class ImageClassification(nn.Module):
    def __init__(self, *, crop_size, mean, std):
        super().__init__()
        self.crop_size, self.mean, self.std = [crop_size], list(mean), list(std)


def weights(name):
    mean, std = NORMALISATION[name]
    transforms = partial(ImageClassification, crop_size=32, mean=mean, std=std)
    return SimpleNamespace(transforms=transforms, meta={"categories": list("abcdefghij")}, url=name)


class TinyWeights(Enum):
    IMAGENET1K_V1 = weights("IMAGENET1K_V1")
    IMAGENET1K_V2 = weights("IMAGENET1K_V2")
    DEFAULT = IMAGENET1K_V2

    @property
    def transforms(self):
        return self.value.transforms

    @property
    def meta(self):
        return self.value.meta


@pytest.fixture
def models(monkeypatch):
    """What torchvision.models 0.29 does with these arguments."""
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    package.models = module
    module.fetched = []
    module.published = {choice: Net(10) for choice in TinyWeights}

    def tiny(*, weights=None, progress=True, **kwargs):
        if weights is None:
            return Net(**kwargs)
        kwargs["num_classes"] = len(weights.meta["categories"])
        net = Net(**kwargs)
        module.fetched.append(weights)
        net.load_state_dict(module.published[weights].state_dict())
        return net

    def detector(*, weights=None, weights_backbone="default"):
        module.fetched.append(weights_backbone)
        return nn.Identity()

    builders = {"tiny": tiny, "detector": detector}
    module.list_models = lambda module=None: ["tiny"] if module else sorted(builders)
    module.get_model = lambda name, **config: builders[name](**config)
    module.get_model_weights = lambda name: {"tiny": TinyWeights}[name]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    return module


@pytest.mark.parametrize(
    ("option", "choice"),
    [
        ([], "IMAGENET1K_V2"),
        (["teacher.pretrained=IMAGENET1K_V1"], "IMAGENET1K_V1"),
        (["teacher.pretrained=Tiny_Weights.IMAGENET1K_V1"], "IMAGENET1K_V1"),
    ],
)
def test_published_teacher_by_configuration(config, models, option, choice):
    teacher = build(config("teacher=torchvision", "teacher.name=tiny", *option).teacher)
    images = torch.rand(3, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in NORMALISATION[choice])
    expected = models.published[TinyWeights[choice]].eval()((images - mean) / std)
    torch.testing.assert_close(teacher(images), expected)
    assert models.fetched == [TinyWeights[choice]]


def test_weights_of_your_own_are_loaded_and_nothing_is_fetched(config, models):
    mine = Net(100)
    torch.save({"net": mine.state_dict()}, "my.pth")
    cfg = config(
        "data=cifar100", "teacher=torchvision", "teacher.name=tiny", "teacher.weights=my.pth",
        "teacher.mean=[0.5]", "teacher.std=[0.2]",
    )  # fmt: skip
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(build(cfg.teacher)(images), mine.eval()((images - 0.5) / 0.2))
    assert models.fetched == []


def test_published_weights_of_other_classes_are_refused_unfetched(config, models):
    with pytest.raises(InputError, match=r"10 outputs .* 100 outputs"):
        build(config("data=cifar100", "teacher=torchvision", "teacher.name=tiny").teacher)
    assert models.fetched == []


@pytest.mark.parametrize("data", ["digits", "cifar100"])
def test_fresh_student_for_the_data_is_rebuilt_from_its_file(config, models, data, tmp_path):
    cfg = config(f"data={data}", "student=torchvision", "student.name=tiny")
    student = build(cfg.student)
    assert student.num_classes(cfg.data.image_shape) == cfg.data.num_classes
    first, original = student.network.features[0][0], Net().features[0][0]
    assert first.in_channels == cfg.data.image_shape[0]
    assert (first.stride, first.bias) == (original.stride, None)
    # As any fresh convolution: uniform, up to 1 / sqrt(fan in).
    bound = (first.in_channels * 9) ** -0.5
    assert 0.5 * bound < first.weight.abs().max() <= bound
    student.copy_normalization(Classifier(nn.Identity(), [0.4], [0.3]))
    save_classifier(tmp_path / "s.safetensors", student)
    loaded, _ = load_classifier(tmp_path / "s.safetensors")
    images = torch.rand(3, *cfg.data.image_shape)
    assert torch.equal(loaded(images), student.eval()(images))
    assert models.fetched == []


@pytest.mark.parametrize("more", [{"pretrained": True}, {"name": "detector"}])
def test_a_file_cannot_ask_for_a_download(config, models, tmp_path, more):
    student = build(
        config(
            "student=torchvision", "student.name=tiny", "student.mean=[0.5]", "student.std=[0.5]"
        ).student
    )
    student.network.architecture = {**student.network.architecture, **more}
    save_classifier(tmp_path / "s.safetensors", student)
    try:
        load_classifier(tmp_path / "s.safetensors")
    except InputError:
        assert "name" in more
    assert models.fetched == []


def test_unknown_names_are_named(config, models):
    with pytest.raises(InputError, match=r"'resnet19'.*list_models"):
        build(config("student=torchvision", "student.name=resnet19").student)
    with pytest.raises(InputError, match=r"'V7' of 'tiny'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build(config("teacher=torchvision", "teacher.name=tiny", "teacher.pretrained=V7").teacher)
    with pytest.raises(InputError, match=r"student\.name="):
        build(config("student=torchvision").student)


def test_no_network_says_where_to_put_weights(config, models, monkeypatch):
    def offline(name, weights):
        raise OSError("urlopen error")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(InputError, match=r"urlopen error.*teacher\.weights="):
        build(config("teacher=torchvision", "teacher.name=tiny").teacher)


def test_missing_package_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(InputError, match="pip install torchvision"):
        build(config("student=torchvision", "student.name=tiny").student)
