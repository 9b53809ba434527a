import sys
import types

import pytest
import torch
from torch import nn

from nayer_pl import Classifier, InputError, load_classifier, save_classifier
from nayer_pl.app.train import build
from nayer_pl.networks import from_timm

MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
CFGS = {
    "tiny.pub": {"num_classes": 10, "input_size": (3, 32, 32), "mean": MEAN, "std": STD},
    "tiny": {"num_classes": 1000, "input_size": (3, 224, 224), "mean": MEAN, "std": STD},
}


class Net(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.num_classes = num_classes
        self.conv_stem = nn.Conv2d(in_chans, 4, 3, stride=2)
        self.bn1 = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.classifier(self.bn1(self.conv_stem(x)).relu().mean((2, 3)))


@pytest.fixture
def timm(monkeypatch):
    """What timm 1.0.31 does with these arguments; `fetched` is what it would have downloaded."""
    module = types.ModuleType("timm")
    module.fetched, module.published = (
        [],
        {name: Net(c["num_classes"], 3) for name, c in CFGS.items()},
    )

    def create_model(model_name, pretrained=False, checkpoint_path=None, **kwargs):
        if ":" in model_name:
            module.fetched.append(model_name)
            model_name = model_name.partition(":")[2]
        if model_name not in CFGS:
            raise RuntimeError(f"Unknown model ({model_name})")
        cfg = CFGS[model_name]
        defaults = {"num_classes": cfg["num_classes"], "in_chans": cfg["input_size"][0]}
        net = Net(**{**defaults, **kwargs})
        net.pretrained_cfg = dict(cfg)
        if pretrained:
            module.fetched.append(model_name)
            state = module.published[model_name].state_dict()
            if net.num_classes != cfg["num_classes"]:  # a new head, without a word
                state = {key: state[key] for key in state if not key.startswith("classifier")}
            net.load_state_dict(state, strict=False)
        return net

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def normalized(images):
    return (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def test_published_teacher_by_configuration(config, timm):
    teacher = build(config("data=cifar10", "teacher=timm", "teacher.name=tiny.pub").teacher)
    images = torch.rand(3, 3, 32, 32)
    expected = timm.published["tiny.pub"].eval()(normalized(images))
    torch.testing.assert_close(teacher(images), expected)
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_given_normalisation_wins_over_the_published_one(config, timm):
    chosen = ["teacher.mean=[0.5,0.5,0.5]", "teacher.std=[0.25,0.25,0.25]"]
    teacher = build(config("teacher=timm", "teacher.name=tiny.pub", *chosen).teacher)
    images = torch.rand(3, 3, 32, 32)
    expected = timm.published["tiny.pub"].eval()((images - 0.5) / 0.25)
    torch.testing.assert_close(teacher(images), expected)


def test_weights_of_your_own_are_loaded_and_nothing_is_fetched(config, timm, tmp_path):
    mine = Net(100, 3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in mine.state_dict().items()}}, "my.pth")
    chosen = ["data=cifar100", "teacher=timm", "teacher.name=tiny", "teacher.weights=my.pth"]
    with pytest.raises(InputError, match=r"teacher\.mean="):
        build(config(*chosen).teacher)
    means = [f"teacher.mean={list(MEAN)}", f"teacher.std={list(STD)}"]
    teacher = build(config(*chosen, *means).teacher)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(teacher(images), mine.eval()(normalized(images)))
    assert timm.fetched == []


@pytest.mark.parametrize(
    ("data", "name", "words"),
    [
        ("cifar10", "tiny", "1000 outputs for images of 3 channels, 10 outputs for 3"),
        ("digits", "tiny.pub", "10 outputs for images of 3 channels, 10 outputs for 1"),
    ],
)
def test_published_weights_for_something_else_are_refused_unfetched(
    config, timm, data, name, words
):
    with pytest.raises(InputError, match=words):
        build(config(f"data={data}", "teacher=timm", f"teacher.name={name}").teacher)
    assert timm.fetched == []


def test_fresh_student_for_the_data_is_rebuilt_from_its_file(config, timm, tmp_path):
    cfg = config("data=digits", "student=timm", "student.name=tiny")
    student = build(cfg.student)
    assert student.num_classes(cfg.data.image_shape) == 10
    assert student.network.conv_stem.in_channels == 1
    assert not student.has_normalization
    network = from_timm("tiny", num_classes=10, channels=1)
    assert network.architecture == student.description["architecture"]
    student = type(student)(network, [0.3], [0.2]).freeze()
    save_classifier(tmp_path / "s.safetensors", student)
    loaded, _ = load_classifier(tmp_path / "s.safetensors")
    images = torch.rand(3, 1, 16, 16)
    assert torch.equal(loaded(images), student(images))
    assert timm.fetched == []


@pytest.mark.parametrize(
    "more",
    [{"pretrained": True}, {"name": "hf-hub:tiny"}, {"name": "local-dir:tiny", "pretrained": True}],
)
def test_a_file_cannot_ask_for_a_download(timm, tmp_path, more):
    network = from_timm("tiny", num_classes=10)
    network.architecture = {**network.architecture, **more}
    save_classifier(tmp_path / "s.safetensors", Classifier(network, [0.5], [0.5]))
    try:
        load_classifier(tmp_path / "s.safetensors")
    except InputError:
        assert "name" in more
    assert timm.fetched == []


def test_unknown_name_is_named(config, timm):
    with pytest.raises(InputError, match=r"'resnet19' \(Unknown model.*list_models"):
        build(config("student=timm", "student.name=resnet19").student)
    with pytest.raises(InputError, match=r"teacher\.name="):
        build(config("teacher=timm").teacher)


def test_no_network_says_where_to_put_weights(config, timm, monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise ConnectionError("Name or service not known\nand a page of advice")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"service not known\).*teacher\.weights=") as caught:
        build(config("teacher=timm", "teacher.name=tiny.pub").teacher)
    assert "\n" not in str(caught.value)


def test_missing_package_says_what_to_install(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="pip install timm"):
        build(config("student=timm", "student.name=tiny").student)
