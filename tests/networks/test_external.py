"""Networks of other packages and of the user's own module, as the command line chooses them.

timm and torchvision are stand-ins: they are not installed everywhere, and would download.
"""

import importlib
import json
import sys
import types
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from nayer_pl import Classifier, InputError, load_classifier, load_teacher, save_classifier
from nayer_pl.app.instantiate import build
from nayer_pl.networks import from_torch_hub

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
OWN = ["teacher.mean=[0.5]", "teacher.std=[0.25]"]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
OWN_IMAGES = (IMAGES - 0.5) / 0.25


def normalized(images, mean=MEAN, std=STD):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.fixture
def build_teacher(config):
    """The teacher that these options choose."""
    return lambda *options: build(config(*options).teacher)


# A module of the user's

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
CUSTOM = ["data=digits", "teacher=custom", "teacher.architecture._target_=my_nets.build_net"]
GRAY = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def my_nets(tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "my_nets.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield importlib.import_module("my_nets")
    del sys.modules["my_nets"]


def test_custom__teacher(build_teacher, my_nets):
    """Trained by its function, by a file of weights, or by a file of the whole network."""
    network, normalization = my_nets.trained_net(), ([0.4], [0.3])
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, "w.pth")
    torch.save(network, "whole.pth")
    chosen = [*CUSTOM, "teacher.mean=[0.4]", "teacher.std=[0.3]", "teacher.weights=whole.pth"]
    with pytest.raises(InputError, match="trust_code=true"):
        build_teacher(*chosen)
    teachers = [
        load_teacher({"_target_": "my_nets.trained_net"}, None, *normalization),
        load_teacher({"_target_": "my_nets.build_net"}, "w.pth", *normalization),
        build_teacher(*chosen, "teacher.trust_code=true"),
    ]
    for teacher in teachers:
        torch.testing.assert_close(teacher(GRAY), network.eval()((GRAY - 0.4) / 0.3))
    with pytest.raises(InputError, match="mean="):
        build_teacher(*CUSTOM, "teacher.weights=w.pth")


def test_custom__student(config, my_nets, tmp_path):
    """It starts from a file; its arguments travel with its weights."""
    mine = my_nets.build_net(3, (5, 6))
    torch.save({"net": mine.state_dict()}, "start.pth")
    chosen = config(
        "student=custom", "student.weights=start.pth",
        "student.architecture._target_=my_nets.build_net",
        "+student.architecture.num_classes=3", "+student.architecture.widths=[5,6]",
    )  # fmt: skip
    student = build(chosen.student)
    assert all(p.requires_grad for p in student.parameters())
    torch.testing.assert_close(student.eval().network(GRAY), mine.eval()(GRAY))
    save_classifier(tmp_path / "s.safetensors", student)
    with pytest.raises(InputError, match=r"my_nets\.build_net.*architecture=\{"):
        load_classifier(tmp_path / "s.safetensors")
    typed = {"_target_": "my_nets.build_net", "num_classes": 3, "widths": [5, 6]}
    loaded, facts = load_classifier(tmp_path / "s.safetensors", typed, mean=[0.4], std=[0.3])
    assert facts["classifier"]["architecture"] == typed
    student.copy_normalization(loaded)
    assert torch.equal(loaded(GRAY), student.eval()(GRAY))


# timm and torchvision


class Net(nn.Module):
    def __init__(self, num_classes=1000, in_chans=3):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.classifier(self.stem(x).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch):
    """What timm 1.0.31 does with these arguments; `fetched` is what it would have downloaded."""
    cfgs = {
        "tiny.pub": {"num_classes": 10, "input_size": (3, 32, 32), "mean": MEAN, "std": STD},
        "tiny": {"num_classes": 1000, "input_size": (3, 224, 224), "mean": MEAN, "std": STD},
    }
    module = types.ModuleType("timm")
    module.fetched = []
    module.published = {name: Net(cfg["num_classes"]) for name, cfg in cfgs.items()}

    def create_model(model_name, pretrained=False, **kwargs):
        if ":" in model_name:
            module.fetched.append(model_name)
            model_name = model_name.partition(":")[2]
        if model_name not in cfgs:
            raise RuntimeError(f"Unknown model ({model_name})")
        cfg = cfgs[model_name]
        defaults = {"num_classes": cfg["num_classes"], "in_chans": cfg["input_size"][0]}
        net = Net(**{**defaults, **kwargs})
        net.pretrained_cfg = dict(cfg)
        if pretrained:
            module.fetched.append(model_name)
            net.load_state_dict(module.published[model_name].state_dict())
        return net

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


# Two sets of weights with two normalizations, of ten classes.
WEIGHTS = {
    name: SimpleNamespace(
        name=name,
        transforms=partial(SimpleNamespace, mean=mean, std=std),
        meta={"categories": list("abcdefghij")},
    )
    for name, mean, std in (("V1", [0.5] * 3, [0.25] * 3), ("V2", MEAN, STD))
}


def description(source, name, num_classes=10, channels=3, pretrained=True):
    target = f"nayer_pl.networks.from_{source}"
    return {
        "_target_": target, "name": name, "num_classes": num_classes, "channels": channels,
        "pretrained": pretrained,
    }  # fmt: skip


@pytest.fixture
def torchvision(monkeypatch):
    """What torchvision.models 0.29 does with these arguments."""
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    package.models = module
    module.fetched = []
    module.published = {name: Net(10) for name in WEIGHTS}

    def tiny(*, weights=None, progress=True, **kwargs):
        if weights is None:
            return Net(**kwargs)
        net = Net(len(weights.meta["categories"]))
        module.fetched.append(weights.name)
        net.load_state_dict(module.published[weights.name].state_dict())
        return net

    def detector(*, weights=None, weights_backbone="default"):
        module.fetched.append(weights_backbone)
        return nn.Identity()

    members = {**WEIGHTS, "DEFAULT": WEIGHTS["V2"]}
    builders = {"tiny": tiny, "detector": detector}
    module.list_models = lambda module=None: ["tiny"] if module else sorted(builders)
    module.get_model = lambda name, **config: builders[name](**config)
    module.get_model_weights = lambda name: {"tiny": SimpleNamespace(__members__=members)}[name]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    return module


@pytest.fixture(params=["timm", "torchvision"])
def package(request):
    """Either of the two, by name and as a module."""
    return request.param, request.getfixturevalue(request.param)


def test_timm__published_teacher(build_teacher, timm):
    chosen = ["data=cifar10", "teacher=timm", "teacher.name=tiny.pub"]
    published = timm.published["tiny.pub"].eval()
    torch.testing.assert_close(build_teacher(*chosen)(IMAGES), published(normalized(IMAGES)))
    torch.testing.assert_close(build_teacher(*chosen, *OWN)(IMAGES), published(OWN_IMAGES))


@pytest.mark.parametrize(
    ("option", "choice"),
    [([], "V2"), (["teacher.pretrained=V1"], "V1"), (["teacher.pretrained=Tiny_Weights.V1"], "V1")],
)
def test_torchvision__published_teacher(build_teacher, torchvision, option, choice):
    teacher = build_teacher("teacher=torchvision", "teacher.name=tiny", *option)
    published = torchvision.published[choice].eval()
    used = WEIGHTS[choice].transforms()
    expected = published(normalized(IMAGES, used.mean, used.std))
    torch.testing.assert_close(teacher(IMAGES), expected)
    assert torchvision.fetched == [choice]


def test_own_weights_replace_the_published_ones(package, tmp_path):
    name, module = package
    mine, path = Net(100), tmp_path / "my.pth"
    torch.save({"state_dict": mine.state_dict()}, path)
    with pytest.raises(InputError, match="mean="):
        load_teacher(description(name, "tiny", 100), path)
    teacher = load_teacher(description(name, "tiny", 100), path, [0.5], [0.25])
    torch.testing.assert_close(teacher(IMAGES), mine.eval()(OWN_IMAGES))
    assert module.fetched == []


@pytest.mark.parametrize("data", ["digits", "cifar100"])
def test_fresh_student_is_rebuilt_from_its_file(config, package, data, tmp_path):
    name, module = package
    cfg = config(f"data={data}", f"student={name}", "student.name=tiny")
    student = build(cfg.student)
    shape = tuple(cfg.data.image_shape)
    assert student.num_classes(shape) == cfg.data.num_classes
    assert not student.has_normalization
    first = student.network.stem[0]
    assert (first.in_channels, first.stride, first.bias) == (shape[0], (2, 2), None)
    # As any fresh convolution: uniform, up to 1 / sqrt(fan in).
    bound = (shape[0] * 9) ** -0.5
    assert 0.5 * bound < first.weight.abs().max() <= bound
    student.copy_normalization(Classifier(nn.Identity(), [0.4], [0.3]))
    student.network.architecture["pretrained"] = True  # the file must not cause a download
    save_classifier(tmp_path / "s.safetensors", student)
    loaded, _ = load_classifier(tmp_path / "s.safetensors")
    images = torch.rand(3, *shape)
    assert torch.equal(loaded(images), student.eval()(images))
    assert module.fetched == []


@pytest.mark.parametrize(
    ("source", "name"),
    [("timm", "hf-hub:tiny"), ("timm", "local-dir:tiny"), ("torchvision", "detector")],
)
@pytest.mark.parametrize("pretrained", [False, True])
def test_weight_file_causes_no_download(request, tmp_path, source, name, pretrained):
    module, network = request.getfixturevalue(source), Net(10)
    network.architecture = description(source, name, pretrained=pretrained)
    save_classifier(tmp_path / "s.safetensors", Classifier(network, [0.5], [0.5]))
    with pytest.raises(InputError):
        load_classifier(tmp_path / "s.safetensors")
    assert module.fetched == []


@pytest.mark.parametrize(
    ("source", "given", "message"),
    [
        ("timm", ("tiny",), "1000 outputs for images of 3 channels, 10 outputs for 3 channels"),
        ("timm", ("tiny.pub", 10, 1), "10 outputs for images of 3 channels, 10 outputs for 1"),
        ("timm", ("resnet19",), r"'resnet19' \(Unknown.*list_models"),
        ("timm", (None,), "name="),
        ("torchvision", ("tiny", 100), "10 outputs .* 100 outputs"),
        ("torchvision", ("resnet19",), "'resnet19'.*list_models"),
        ("torchvision", (None,), "name="),
        ("torchvision", ("tiny", 10, 3, "V7"), "'V7' of 'tiny'.*V1, V2, DEFAULT"),
    ],
)
def test_refused(request, source, given, message):
    module = request.getfixturevalue(source)
    with pytest.raises(InputError, match=message):
        load_teacher(description(source, *given))
    assert module.fetched == []


def test_download_fails(package, monkeypatch):
    name, module = package

    def offline(name, pretrained=False, weights=None):
        if pretrained or weights:
            raise OSError("urlopen error\nand a page of advice")
        return SimpleNamespace(pretrained_cfg={"num_classes": 10, "input_size": (3, 32, 32)})

    monkeypatch.setattr(module, {"timm": "create_model", "torchvision": "get_model"}[name], offline)
    with pytest.raises(InputError, match=r"urlopen error\).*weights=PATH") as caught:
        load_teacher(description(name, "tiny"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_missing_package(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(InputError, match=f"pip install {name}"):
        load_teacher(description(name, "tiny"))


# transformers, with folders in place of the Hub

PROCESSOR = {"do_normalize": True, "image_mean": MEAN, "image_std": STD}


def tiny(labels=10):
    return ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=labels
    )


@pytest.fixture
def hub(tmp_path):
    """A folder, where a network and a processor can be put, and the teacher that is read there."""
    folder = tmp_path / "net"

    def put(processor=PROCESSOR, network=None):
        network = network or ResNetForImageClassification(tiny())
        network.save_pretrained(folder)
        if processor is not None:
            (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return network.eval()

    load = partial(load_teacher, description("transformers", str(folder)))
    return SimpleNamespace(folder=folder, put=put, load=load)


@pytest.mark.parametrize(
    ("processor", "factor"),
    [
        (PROCESSOR, 1 / 255),
        ({**PROCESSOR, "do_rescale": True, "rescale_factor": 0.00392156862745098}, 1 / 255),
        ({**PROCESSOR, "rescale_factor": 1 / 127.5}, 1 / 127.5),
        ({**PROCESSOR, "do_rescale": False}, 1),
        ({"do_normalize": False}, 1 / 255),
    ],
)
def test_transformers__image_processor(hub, processor, factor):
    network = hub.put(processor)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32))
    seen = pixels * factor
    if processor["do_normalize"]:
        seen = (seen - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = network(torch.from_numpy(seen).float()).logits
    logits = hub.load()(torch.from_numpy(pixels / 255).float())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("processor", [None, {"do_normalize": True}])
def test_transformers__unknown_normalization(hub, processor):
    """And weights of half precision."""
    network = hub.put(processor, ResNetForImageClassification(tiny()).half())
    with pytest.raises(InputError, match="mean="):
        hub.load()
    logits = hub.load(None, [0.5], [0.25])(IMAGES)
    torch.testing.assert_close(logits, network.float()(OWN_IMAGES).logits)


@pytest.mark.parametrize(
    ("processor", "network", "message"),
    [
        ({**PROCESSOR, "do_flip_channel_order": True}, None, "do_flip_channel_order"),
        ({**PROCESSOR, "include_top": True}, None, "include_top"),
        ({**PROCESSOR, "rescale_offset": True}, None, "rescale_offset"),
        (PROCESSOR, lambda: ResNetForImageClassification(tiny(7)), "7 outputs .* 10 outputs"),
        (PROCESSOR, lambda: ResNetModel(tiny()), "no trained image classifier"),
    ],
)
def test_transformers__refused(hub, processor, network, message):
    hub.put(processor, network and network())
    with pytest.raises(InputError, match=message):
        hub.load()


def test_transformers__published_weight_file(build_teacher, hub):
    network = hub.put()
    file = (hub.folder / "model.safetensors").rename("mine.safetensors")
    hub.put(network=ResNetForImageClassification(tiny(labels=3)))
    name = f"teacher.name={hub.folder}"
    teacher = build_teacher(
        "data=cifar10", "teacher=transformers", name, f"teacher.weights={file}", *OWN
    )
    torch.testing.assert_close(teacher(IMAGES), network(OWN_IMAGES).logits)


def test_transformers__fresh_student(config, tmp_path):
    tiny(labels=1000).save_pretrained(tmp_path / "net")  # no weights there
    cfg = config("data=digits", "student=transformers", f"student.name={tmp_path}/net")
    student = build(cfg.student)
    assert student.num_classes(cfg.data.image_shape) == 10
    assert student.network.config.hidden_sizes == [4, 6]
    assert student.network(torch.rand(2, 1, 16, 16, requires_grad=True)).requires_grad
    student.copy_normalization(Classifier(nn.Identity(), [0.4], [0.3]))
    save_classifier(tmp_path / "s.safetensors", student)
    # The file alone must not choose the folder that is read.
    with pytest.raises(InputError, match=r"from_transformers.*architecture=\{"):
        load_classifier(tmp_path / "s.safetensors")
    loaded, facts = load_classifier(tmp_path / "s.safetensors", student.description["architecture"])
    assert torch.equal(loaded(GRAY), student.eval()(GRAY))
    assert facts["classifier"]["architecture"]["name"] == f"{tmp_path}/net"


@pytest.mark.parametrize(
    ("name", "message"),
    [("nobody/nothing", "'nobody/nothing' cannot be loaded.*local folder"), (None, "name=")],
)
def test_transformers__unknown_name(name, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        load_teacher(description("transformers", name))


# torch.hub, with a folder in place of GitHub

HUBCONF = """
from pathlib import Path
import torch

Path(__file__).with_name("marker").touch()

def tiny(num_classes=4, pretrained=False):
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, num_classes))
    if not pretrained:
        torch.nn.init.zeros_(net[1].weight)
    return net

def broken():
    raise KeyError("no such file")
"""


@pytest.fixture
def repo(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/hubconf.py").write_text(HUBCONF)
    return tmp_path / "repo"


def test_torch_hub__published_teacher(build_teacher, repo):
    """Nothing runs before it is trusted."""
    options = [
        "teacher=torch_hub", f"teacher.repo={repo}", "teacher.source=local", "teacher.name=tiny",
        "+teacher.architecture.pretrained=true", "+teacher.architecture.num_classes=7", *OWN,
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"code of '.*/repo'.*trust_code=true"):
        build_teacher(*options)
    assert not (repo / "marker").exists()
    teacher = build_teacher(*options, "teacher.trust_code=true")
    torch.manual_seed(3)
    expected = nn.Linear(3 * 32 * 32, 7)(OWN_IMAGES.flatten(1))
    torch.testing.assert_close(teacher(IMAGES), expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "tiny"}, "mean="),
        ({"name": "broken"}, "'broken' of '.*/repo'.*source=local"),
        ({"name": "nothing"}, "'nothing' of '.*/repo'.*source=local"),
        ({"name": "tiny", "repo": None}, "repo=OWNER/NAME"),
    ],
)
def test_torch_hub__refused(repo, given, message):
    target = {"_target_": "nayer_pl.networks.from_torch_hub", "repo": str(repo), "source": "local"}
    with pytest.raises(InputError, match=message):
        load_teacher({**target, "trust_code": True, **given})


def test_torch_hub__github(monkeypatch):
    asked = {}

    def load(repo, name, **options):
        asked.update(options, repo=repo, name=name)
        raise ConnectionError("no route")

    monkeypatch.setattr(torch.hub, "load", load)
    with pytest.raises(InputError, match=r"no route.*repo.*source=local"):
        from_torch_hub("owner/name", "net", trust_code=True)
    assert asked == {"repo": "owner/name", "name": "net", "source": "github", "trust_repo": True}
