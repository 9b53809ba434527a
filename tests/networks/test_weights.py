import json
import sys
import types
from itertools import cycle
from unittest.mock import Mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nayer_pl import InputError
from nayer_pl.networks.weights import load_weights, read_weights, save_weights


def small(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten())


def trained(network=None):
    """A network with weights that no fresh one has."""
    network = network or small()
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else tensor + 7)
    return network


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def refusal(path, network=None, **options):
    """Why the file cannot be loaded into a network, which stays as it is."""
    network = network or small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(network, path, **options)
    assert same(network.state_dict(), before)
    return str(caught.value)


# Written


def test_save_weights__round_trip(tmp_path):
    path, network, other = tmp_path / "deep" / "w.safetensors", trained(), small()
    facts = {"names": ["ä", "b"], "nested": {"a": [1, 2.5, None, True]}, "text": "ok"}
    save_weights(path, small(width=6), {})  # is replaced
    save_weights(path, network, facts)
    (tmp_path / "plain").touch()
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert same(load_file(path), network.state_dict())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop("format") == "pt"
    assert {key: json.loads(value) for key, value in metadata.items()} == facts
    assert load_weights(other, path) == facts
    assert same(network.state_dict(), other.state_dict())


def test_save_weights__crash(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, small(), {})
    old = path.read_bytes()
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_weights(path, small(width=6), {})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_save_weights__layer_with_two_names(tmp_path):
    def twice():
        backbone = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        return nn.ModuleDict({"backbone": backbone, "features": nn.Sequential(*backbone)})

    network, other = trained(twice()), twice()
    save_weights(tmp_path / "w.safetensors", network, {})
    load_weights(other, tmp_path / "w.safetensors")
    assert same(other.state_dict(), network.state_dict())


# Loaded, from what training scripts, Lightning, DDP and torch.compile leave in a file

WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best": 0.5},
    "model": lambda s: {"model": s, "args": {"lr": 0.1}},
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s},
    "net": lambda s: {"net": s, "acc": torch.tensor(0.5)},
    "ddp": lambda s: {"state_dict": prefixed(s, "module.")},
    "ddp, bare": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled in ddp": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "lightning": lambda s: {
        "state_dict": prefixed(s, "model.") | {"val_accuracy.correct": torch.tensor(3)},
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.zeros(4, 3, 3, 3)}}}],
    },
    "a student of this package": lambda s: {
        "state_dict": prefixed(s, "student.network.") | {"generator.0.weight": torch.zeros(2, 2)}
    },
    "an optimizer that names what it moves": lambda s: {
        "state_dict": s,
        "optimizer": {"0.weight": torch.ones(4, 3, 3, 3)},
    },
}


@pytest.mark.parametrize(
    ("wrap", "suffix"), zip(WRAPPINGS.values(), cycle([".pth", ".pt", ".ckpt"])), ids=WRAPPINGS
)
def test_load_weights__wrappings(tmp_path, wrap, suffix):
    state, network = trained().state_dict(), small()
    torch.save(wrap(state), tmp_path / f"w{suffix}")
    assert load_weights(network, tmp_path / f"w{suffix}") == {}
    assert same(network.state_dict(), state)


def test_load_weights__safetensors_of_others(tmp_path):
    state, network = trained().state_dict(), small()
    metadata = {"format": "pt", "by": "someone"}
    save_file(prefixed(state, "student.network."), tmp_path / "w.safetensors", metadata)
    assert load_weights(network, tmp_path / "w.safetensors") == {"by": "someone"}
    assert same(network.state_dict(), state)


def test_load_weights__without_batch_counts(tmp_path):
    state, network = trained().state_dict(), small()
    del state["1.num_batches_tracked"]
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth")
    assert same({**state, "1.num_batches_tracked": torch.tensor(0)}, network.state_dict())


class Whole(nn.Sequential):
    """A network that is pickled as an object, as `torch.save(model)` does."""


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"net": net, "epoch": 3}])
def test_load_weights__pickled_network(tmp_path, wrap, monkeypatch):
    # Unpickling imports the class from its module.
    monkeypatch.setitem(sys.modules, "my_networks", types.ModuleType("my_networks"))
    monkeypatch.setattr(Whole, "__module__", "my_networks")
    sys.modules["my_networks"].Whole = Whole
    whole, network = trained(Whole(*small())), small()
    torch.save(wrap(whole), tmp_path / "w.pth")
    assert "could run code" in refusal(tmp_path / "w.pth", network)
    load_weights(network, tmp_path / "w.pth", trust_code=True)
    assert same(network.state_dict(), whole.state_dict())


# Which of a file's networks


def two_networks(path, teacher, student):
    both = prefixed(teacher, "teacher.") | prefixed(student, "student.network.")
    torch.save({"state_dict": both}, path)


def test_load_weights__two_networks(tmp_path):
    teacher, student, network = trained().state_dict(), trained().state_dict(), small()
    two_networks(tmp_path / "w.ckpt", teacher, student)
    said = refusal(tmp_path / "w.ckpt", network)
    assert (
        "'state_dict.teacher.' and 'state_dict.student.network.'; choose one with prefix=" in said
    )
    load_weights(network, tmp_path / "w.ckpt", prefix="state_dict.teacher.")
    assert same(network.state_dict(), teacher)
    load_weights(network, tmp_path / "w.ckpt", prefix="state_dict.student.network")
    assert same(network.state_dict(), student)


def test_load_weights__averaged_weights(tmp_path):
    state = small().state_dict()
    torch.save(state | prefixed(state, "ema."), tmp_path / "w.pth")
    assert "'' and 'ema.'" in refusal(tmp_path / "w.pth")


def test_load_weights__two_widths(tmp_path):
    student, network = trained(small(width=6)).state_dict(), small(width=6)
    two_networks(tmp_path / "w.ckpt", small().state_dict(), student)
    load_weights(network, tmp_path / "w.ckpt")
    assert same(network.state_dict(), student)


def test_load_weights__part_of_a_bigger_network(tmp_path):
    # A ResNet-34 has every key of a ResNet-18, in the same shape.
    bigger = nn.Sequential(*small(), nn.Conv2d(4, 4, 3)).state_dict()
    torch.save({"state_dict": prefixed(bigger, "module.")}, tmp_path / "w.pth")
    said = refusal(tmp_path / "w.pth")
    assert "under 'state_dict.module.' do not fit Sequential (unexpected: 3.weight, 3.bias)" in said


def test_load_weights__unknown_prefix(tmp_path):
    torch.save({"state_dict": small().state_dict()}, tmp_path / "w.pth")
    said = refusal(tmp_path / "w.pth", prefix="ema")
    assert "under 'ema.' do not fit Sequential (missing: 0.weight" in said


# Why a file does not fit


def test_load_weights__another_number_of_classes(tmp_path):
    def classifier(classes):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, classes))

    torch.save(prefixed(classifier(100).state_dict(), "module."), tmp_path / "w.pth")
    said = refusal(tmp_path / "w.pth", classifier(10))
    assert "last layer (2) has 100 outputs, 10 are wanted" in said


@pytest.mark.parametrize("broken", [False, True])
def test_load_weights__misfit(tmp_path, broken):
    state = small(width=5).state_dict()
    if broken:
        del state["1.running_mean"]
        state["9.stranger"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    said = refusal(tmp_path / "w.safetensors")
    assert "0.weight ((5, 3, 3, 3) instead of (4, 3, 3, 3))" in said
    assert f"and {2 if broken else 3} more" in said  # of six tensors of another width
    assert ("missing: 1.running_mean; unexpected: 9.stranger;" in said) == broken


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_load_weights__of_training_that_diverged(tmp_path, value):
    state = small().state_dict()
    state["1.bias"][2] = value
    torch.save(state, tmp_path / "w.pth")
    assert "NaN or infinite (1.bias)" in refusal(tmp_path / "w.pth")


# What is no file of weights


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_read_weights__truncated(tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_weights(path, small(), {})
    else:
        torch.save({"state_dict": small().state_dict()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=f"w{suffix}"):
        read_weights(path)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"epoch": 3}, "text"])
def test_read_weights__no_tensors(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("text", ["accuracy: 0.95\n", "{}\n", "hello\n", "a", None])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("trust_code", [False, True])
def test_read_weights__other_files(tmp_path, suffix, text, trust_code):
    path = tmp_path / f"w{suffix}"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=f"w{suffix}"):
        read_weights(path, trust_code)
