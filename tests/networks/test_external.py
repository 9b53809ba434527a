"""Networks of timm, torchvision, transformers and torch.hub, as the command line chooses them.

timm and torchvision are stand-ins: they are not installed everywhere, and would download.
"""

import json
import sys
import types
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from nayer_pl import Classifier, InputError, load_classifier, save_classifier
from nayer_pl.app.instantiate import build

MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
OWN = ["teacher.mean=[0.5]", "teacher.std=[0.25]"]
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def normalized(images, mean=MEAN, std=STD):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Net(nn.Module):
    def __init__(self, num_classes=1000, in_chans=3):
        super().__init__()
        self.num_classes = num_classes
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

    def create_model(model_name, pretrained=False, checkpoint_path=None, **kwargs):
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
            state = module.published[model_name].state_dict()
            if net.num_classes != cfg["num_classes"]:  # a new last layer, without a message
                state = {key: state[key] for key in state if not key.startswith("classifier")}
            net.load_state_dict(state, strict=False)
        return net

    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


# Two sets of weights with two normalizations, of ten classes.
NORMALIZATION = {"IMAGENET1K_V1": ([0.5] * 3, [0.25] * 3), "IMAGENET1K_V2": (MEAN, STD)}


WEIGHTS = {
    name: SimpleNamespace(
        name=name,
        transforms=partial(SimpleNamespace, mean=mean, std=std),
        meta={"categories": list("abcdefghij")},
    )
    for name, (mean, std) in NORMALIZATION.items()
}
MEMBERS = {**WEIGHTS, "DEFAULT": WEIGHTS["IMAGENET1K_V2"]}


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

    builders = {"tiny": tiny, "detector": detector}
    module.list_models = lambda module=None: ["tiny"] if module else sorted(builders)
    module.get_model = lambda name, **config: builders[name](**config)
    module.get_model_weights = lambda name: {"tiny": SimpleNamespace(__members__=MEMBERS)}[name]
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", module)
    return module


@pytest.fixture(params=["timm", "torchvision"])
def package(request):
    """Either of the two, by name and as a module."""
    return request.param, request.getfixturevalue(request.param)


def test_timm__published_teacher(config, timm):
    chosen = ["data=cifar10", "teacher=timm", "teacher.name=tiny.pub"]
    teacher = build(config(*chosen).teacher)
    published = timm.published["tiny.pub"].eval()
    torch.testing.assert_close(teacher(IMAGES), published(normalized(IMAGES)))
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    teacher = build(config(*chosen, *OWN).teacher)
    torch.testing.assert_close(teacher(IMAGES), published((IMAGES - 0.5) / 0.25))


@pytest.mark.parametrize(
    ("option", "choice"),
    [
        ([], "IMAGENET1K_V2"),
        (["teacher.pretrained=IMAGENET1K_V1"], "IMAGENET1K_V1"),
        (["teacher.pretrained=Tiny_Weights.IMAGENET1K_V1"], "IMAGENET1K_V1"),
    ],
)
def test_torchvision__published_teacher(config, torchvision, option, choice):
    teacher = build(config("teacher=torchvision", "teacher.name=tiny", *option).teacher)
    expected = torchvision.published[choice].eval()
    torch.testing.assert_close(
        teacher(IMAGES), expected(normalized(IMAGES, *NORMALIZATION[choice]))
    )
    assert torchvision.fetched == [choice]


def test_own_weights_replace_the_published_ones(config, package):
    name, module = package
    mine = Net(100)
    torch.save({"state_dict": {f"module.{k}": v for k, v in mine.state_dict().items()}}, "my.pth")
    chosen = ["data=cifar100", f"teacher={name}", "teacher.name=tiny", "teacher.weights=my.pth"]
    with pytest.raises(InputError, match="mean="):
        build(config(*chosen).teacher)
    teacher = build(config(*chosen, *OWN).teacher)
    torch.testing.assert_close(teacher(IMAGES), mine.eval()((IMAGES - 0.5) / 0.25))
    assert module.fetched == []


@pytest.mark.parametrize(
    ("source", "name", "data", "message"),
    [
        ("timm", "tiny", "cifar10", "1000 outputs for images of 3 channels, 10 outputs for 3"),
        ("timm", "tiny.pub", "digits", "10 outputs for images of 3 channels, 10 outputs for 1"),
        ("torchvision", "tiny", "cifar100", "10 outputs .* 100 outputs"),
    ],
)
def test_published_weights_for_other_data(config, request, source, name, data, message):
    module = request.getfixturevalue(source)
    with pytest.raises(InputError, match=message):
        build(config(f"data={data}", f"teacher={source}", f"teacher.name={name}").teacher)
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
    save_classifier(tmp_path / "s.safetensors", student)
    loaded, _ = load_classifier(tmp_path / "s.safetensors")
    images = torch.rand(3, *shape)
    assert torch.equal(loaded(images), student.eval()(images))
    assert module.fetched == []


@pytest.mark.parametrize(
    ("source", "more"),
    [
        ("timm", {"pretrained": True}),
        ("timm", {"name": "hf-hub:tiny"}),
        ("timm", {"name": "local-dir:tiny", "pretrained": True}),
        ("torchvision", {"pretrained": True}),
        ("torchvision", {"name": "detector"}),
    ],
)
def test_weight_file_causes_no_download(config, request, tmp_path, source, more):
    module = request.getfixturevalue(source)
    student = build(
        config(
            f"student={source}", "student.name=tiny", "student.mean=[0]", "student.std=[1]"
        ).student
    )
    student.network.architecture = {**student.network.architecture, **more}
    save_classifier(tmp_path / "s.safetensors", student)
    if "name" in more:
        with pytest.raises(InputError):
            load_classifier(tmp_path / "s.safetensors")
    else:
        load_classifier(tmp_path / "s.safetensors")
    assert module.fetched == []


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("timm", ["student=timm", "student.name=resnet19"], r"'resnet19' \(Unknown.*list_models"),
        ("timm", ["student=timm"], "name="),
        (
            "torchvision",
            ["student=torchvision", "student.name=resnet19"],
            "'resnet19'.*list_models",
        ),
        ("torchvision", ["student=torchvision"], "name="),
    ],
)
def test_unknown_names(config, request, source, options, message):
    request.getfixturevalue(source)
    with pytest.raises(InputError, match=message):
        build(config(*options).student)


def test_torchvision__unknown_weights(config, torchvision):
    chosen = ["teacher=torchvision", "teacher.name=tiny", "teacher.pretrained=V7"]
    with pytest.raises(InputError, match=r"'V7' of 'tiny'.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build(config(*chosen).teacher)


def test_download_fails(config, package, monkeypatch):
    name, module = package

    def offline(name, pretrained=False, weights=None):
        if pretrained or weights:
            raise OSError("urlopen error\nand a page of advice")
        return SimpleNamespace(pretrained_cfg={"num_classes": 10, "input_size": (3, 32, 32)})

    monkeypatch.setattr(module, {"timm": "create_model", "torchvision": "get_model"}[name], offline)
    with pytest.raises(InputError, match=r"urlopen error\).*weights=PATH") as caught:
        build(config(f"teacher={name}", "teacher.name=tiny").teacher)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_missing_package(config, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torchvision.models", raising=False)
    with pytest.raises(InputError, match=f"pip install {name}"):
        build(config(f"student={name}", "student.name=tiny").student)


# transformers, with folders in place of the Hub

PROCESSOR = {"do_normalize": True, "image_mean": MEAN, "image_std": STD}


def tiny(labels=10, channels=3):
    torch.manual_seed(0)
    return ResNetConfig(
        num_channels=channels, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1],
        layer_type="basic", num_labels=labels,
    )  # fmt: skip


def saved(folder, processor=PROCESSOR, network=None):
    network = network or ResNetForImageClassification(tiny())
    network.save_pretrained(folder)
    if processor is not None:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(processor))
    return network.eval()


@pytest.fixture
def load(config):
    def teacher_of(name, *more):
        chosen = ["data=cifar10", "teacher=transformers", f"teacher.name={name}", *more]
        return build(config(*chosen).teacher)

    return teacher_of


@pytest.mark.parametrize(
    ("processor", "factor"),
    [
        (PROCESSOR, 1 / 255),
        ({**PROCESSOR, "do_rescale": True, "rescale_factor": 0.00392156862745098}, 1 / 255),
        ({**PROCESSOR, "rescale_factor": 1 / 127.5}, 1 / 127.5),
        ({**PROCESSOR, "do_rescale": False}, 1),
        ({**PROCESSOR, "do_normalize": False}, 1 / 255),
        ({"do_normalize": False}, 1 / 255),
    ],
)
def test_transformers__image_processor(load, tmp_path, processor, factor):
    network = saved(tmp_path / "net", processor)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32))
    seen = pixels * factor
    if processor["do_normalize"]:
        seen = (seen - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    expected = network(torch.from_numpy(seen).float()).logits
    teacher = load(tmp_path / "net")
    logits = teacher(torch.from_numpy(pixels / 255).float())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not any(module.training for module in teacher.modules())


@pytest.mark.parametrize("processor", [None, {"do_normalize": True}])
def test_transformers__unknown_normalization(load, tmp_path, processor):
    network = saved(tmp_path / "net", processor)
    with pytest.raises(InputError, match="mean="):
        load(tmp_path / "net")
    teacher = load(tmp_path / "net", *OWN)
    torch.testing.assert_close(teacher(IMAGES), network((IMAGES - 0.5) / 0.25).logits)


@pytest.mark.parametrize(
    ("processor", "network", "message"),
    [
        ({**PROCESSOR, "do_flip_channel_order": True}, None, "do_flip_channel_order"),
        ({**PROCESSOR, "include_top": True}, None, "include_top"),
        ({**PROCESSOR, "rescale_offset": True}, None, "rescale_offset"),
        (
            PROCESSOR,
            lambda: ResNetForImageClassification(tiny(labels=7)),
            "7 outputs .* 10 outputs",
        ),
        (PROCESSOR, lambda: ResNetModel(tiny()), "no trained image classifier"),
    ],
)
def test_transformers__refused(load, tmp_path, processor, network, message):
    saved(tmp_path / "net", processor, network and network())
    with pytest.raises(InputError, match=message):
        load(tmp_path / "net")


def test_transformers__half_precision_weights(load, tmp_path):
    saved(tmp_path / "net", network=ResNetForImageClassification(tiny()).half())
    assert load(tmp_path / "net")(IMAGES).dtype == torch.float32


def test_transformers__published_weight_file(load, tmp_path):
    network = saved(tmp_path / "net")
    saved(tmp_path / "other", network=ResNetForImageClassification(tiny(labels=3)))
    file = f"teacher.weights={tmp_path}/net/model.safetensors"
    teacher = load(tmp_path / "other", file, *OWN)
    torch.testing.assert_close(teacher(IMAGES), network((IMAGES - 0.5) / 0.25).logits)


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
    images = torch.rand(2, 1, 16, 16)
    assert torch.equal(loaded(images), student.eval()(images))
    assert facts["classifier"]["architecture"]["name"] == f"{tmp_path}/net"


def test_transformers__code_beside_a_model_does_not_run(load, tmp_path):
    saved(tmp_path / "net")
    described = json.loads((tmp_path / "net/config.json").read_text())
    described |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "net/config.json").write_text(json.dumps(described))
    (tmp_path / "net/mine.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path / "net")
    assert not (tmp_path / "marker").exists()


def test_transformers__unknown_name(config, load, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"'nobody/nothing' cannot be loaded.*local folder"):
        load("nobody/nothing")
    with pytest.raises(InputError, match="name="):
        build(config("student=transformers").student)


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
TRUST = "teacher.trust_code=true"
PRETRAINED = "+teacher.architecture.pretrained=true"


@pytest.fixture
def hub(config, tmp_path):
    """Build the teacher that these options choose from a local repository."""
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/hubconf.py").write_text(HUBCONF)
    local = [f"teacher.repo={tmp_path}/repo", "teacher.source=local", "teacher.name=tiny"]
    return lambda *options: build(config("teacher=torch_hub", *local, *options).teacher)


@pytest.mark.parametrize("classes", [4, 7])
def test_torch_hub__published_teacher(hub, classes):
    more = [f"+teacher.architecture.num_classes={classes}"] if classes != 4 else []
    teacher = hub(TRUST, PRETRAINED, *OWN, *more)
    torch.manual_seed(3)
    expected = nn.Linear(3 * 32 * 32, classes)(((IMAGES - 0.5) / 0.25).flatten(1))
    torch.testing.assert_close(teacher(IMAGES), expected)


def test_torch_hub__own_weights(hub):
    mine = nn.Linear(3 * 32 * 32, 4)
    torch.save({f"1.{key}": value for key, value in mine.state_dict().items()}, "my.pth")
    teacher = hub(TRUST, PRETRAINED, *OWN, "teacher.weights=my.pth")
    torch.testing.assert_close(teacher(IMAGES), mine(((IMAGES - 0.5) / 0.25).flatten(1)))


def test_torch_hub__nothing_runs_without_trust(hub, tmp_path):
    with pytest.raises(InputError, match=r"code of '.*/repo'.*trust_code=true"):
        hub(*OWN)
    assert not (tmp_path / "repo/marker").exists()
    hub(*OWN, TRUST)
    assert (tmp_path / "repo/marker").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "mean="),
        (["teacher.name=broken"], "'broken' of '.*/repo'.*source=local"),
        (["teacher.name=nothing"], "'nothing' of '.*/repo'.*source=local"),
    ],
)
def test_torch_hub__refused(hub, options, message):
    with pytest.raises(InputError, match=message):
        hub(TRUST, *options)


def test_torch_hub__github(config, monkeypatch):
    asked = {}

    def load(repo, name, **options):
        asked.update(options, repo=repo, name=name)
        raise ConnectionError("no route")

    monkeypatch.setattr(torch.hub, "load", load)
    chosen = ["teacher=torch_hub", "teacher.name=net", TRUST]
    with pytest.raises(InputError, match=r"no route.*repo.*source=local"):
        build(config(*chosen, "teacher.repo=owner/name").teacher)
    assert asked == {"repo": "owner/name", "name": "net", "source": "github", "trust_repo": True}
    with pytest.raises(InputError, match="repo=OWNER/NAME"):
        build(config(*chosen).teacher)
