import pytest
import torch
from torch import nn

from nayer_pl import Classifier, InputError
from nayer_pl.networks import build_network, create_model, vgg11, wrn16_1
from nayer_pl.networks.registry import architecture, described


def test_architecture__names_every_argument():
    expected = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 7, "channels": 1}
    assert wrn16_1(7, 1).architecture == expected
    assert wrn16_1(channels=1, num_classes=7).architecture == expected
    assert wrn16_1(7).architecture == {**expected, "channels": 3}


def test_architecture__builders_of_others():
    @architecture
    def wide(width: int, **more: int) -> nn.Linear:
        """Wide."""
        return nn.Linear(width, more["out"])

    assert (wide.__name__, wide.__doc__) == ("wide", "Wide.")
    found = wide(3, out=2).architecture
    assert found == {"_target_": f"{__name__}.wide", "width": 3, "out": 2}
    with pytest.raises(TypeError):
        wide(depth=3)


def test_create_model():
    assert create_model("vgg11", 5, channels=1).architecture == vgg11(5, 1).architecture
    with pytest.raises(InputError, match=r"'resnet19'; choose from .*resnet18, .*wrn40_2"):
        create_model("resnet19", 10)


def test_build_network__of_another_package():
    description = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
    network = build_network(description)
    assert isinstance(network, nn.Linear)
    assert network(torch.zeros(1, 3)).shape == (1, 2)
    assert network.architecture == description
    assert description["_target_"] == "torch.nn.Linear"


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ({"_target_": "nayer_pl.networks.resnet19"}, "'nayer_pl.networks.resnet19'"),
        ({"_target_": "no_such_package.resnet18"}, "'no_such_package.resnet18'"),
        ({"_target_": "resnet18"}, "'resnet18'"),
        ({"_target_": "..resnet18"}, "'..resnet18'"),
        ({"_target_": "math.pi"}, "'math.pi'"),
        ({"_target_": "builtins.dict"}, "'builtins.dict'"),
        ({"num_classes": 10}, "_target_"),
        ({"_target_": "nayer_pl.networks.wrn16_1"}, "wrn16_1.*num_classes"),
        ({"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 2, "depth": 3}, "wrn16_1.*depth"),
        ({"_target_": "nayer_pl.networks.wrn16_1", "num_classes": -1}, "wrn16_1"),
    ],
)
def test_build_network__impossible(description, named):
    with pytest.raises(InputError, match=named):
        build_network(description)


def test_build_network__private_import_path():
    network = build_network({"_target_": "nayer_pl.networks.cifar.wrn16_1", "num_classes": 4})
    assert network.architecture == wrn16_1(4).architecture


def test_described():
    expected = "wrn16_1(num_classes=10, channels=3) with 175,066 parameters"
    assert described(wrn16_1(10)) == described(Classifier(wrn16_1(10))) == expected
    assert described(Classifier(nn.Linear(3, 1))) == "Linear with 4 parameters"
