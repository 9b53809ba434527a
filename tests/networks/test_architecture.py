import pytest
import torch
from torch import nn

from nayer_pl import InputError
from nayer_pl.networks import build_network, vgg11, wrn16_1
from nayer_pl.networks.architecture import architecture


def test_description_names_every_argument_however_it_was_given():
    expected = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 7, "channels": 1}
    assert wrn16_1(7, 1).architecture == expected
    assert wrn16_1(channels=1, num_classes=7).architecture == expected
    assert wrn16_1(7).architecture == {**expected, "channels": 3}


def test_decorated_builder_keeps_its_name_and_refuses_what_it_refused():
    @architecture
    def tiny(width: int) -> nn.Linear:
        """Tiny."""
        return nn.Linear(width, 1)

    assert (tiny.__name__, tiny.__doc__) == ("tiny", "Tiny.")
    assert tiny(3).in_features == 3
    with pytest.raises(TypeError):
        tiny(depth=3)


def test_a_builder_of_anybody_is_described_by_where_it_stands():
    @architecture
    def wide(width: int, **more: int) -> nn.Linear:
        return nn.Linear(width, more["out"])

    found = wide(3, out=2).architecture
    assert found == {"_target_": f"{__name__}.wide", "width": 3, "out": 2}


def test_description_rebuilds_the_same_layout():
    network = vgg11(5, channels=1)
    rebuilt = build_network(network.architecture)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == shapes
    assert rebuilt.architecture == network.architecture


def test_network_of_another_package_is_built_and_described():
    description = {"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}
    network = build_network(description)
    assert isinstance(network, nn.Linear)
    assert network(torch.zeros(1, 3)).shape == (1, 2)
    assert network.architecture == description
    assert description["_target_"] == "torch.nn.Linear"


@pytest.mark.parametrize(
    "target",
    ["nayer_pl.networks.resnet19", "no_such_package.resnet18", "resnet18", "", "math.pi"],
)
def test_unknown_target_is_named(target):
    with pytest.raises(InputError, match=f"'{target}'"):
        build_network({"_target_": target})


def test_missing_target_is_an_input_error():
    with pytest.raises(InputError, match="_target_"):
        build_network({"num_classes": 10})


@pytest.mark.parametrize("arguments", [{}, {"num_classes": 10, "depth": 3}])
def test_wrong_arguments_name_the_builder(arguments):
    with pytest.raises(InputError, match=r"nayer_pl\.networks\.wrn16_1.*(num_classes|depth)"):
        build_network({"_target_": "nayer_pl.networks.wrn16_1", **arguments})


@pytest.mark.parametrize(
    "description",
    [
        {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": -1},
        {"_target_": "builtins.dict"},
        {"_target_": "..resnet18"},
    ],
)
def test_impossible_description_is_an_input_error(description):
    with pytest.raises(InputError):
        build_network(description)


def test_private_import_path_is_described_by_the_public_one():
    network = build_network({"_target_": "nayer_pl.networks.wrn.wrn16_1", "num_classes": 4})
    assert network.architecture == wrn16_1(4).architecture
