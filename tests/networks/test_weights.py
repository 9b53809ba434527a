import json
import sys
import types
from itertools import cycle

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
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s},
    "net": lambda s: {"net": s, "acc": torch.tensor(0.5)},
    "ddp": lambda s: prefixed(s, "module."),
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


def test_load_weights__two_widths(tmp_path):
    student, network = trained(small(width=6)).state_dict(), small(width=6)
    two_networks(tmp_path / "w.ckpt", small().state_dict(), student)
    load_weights(network, tmp_path / "w.ckpt")
    assert same(network.state_dict(), student)


# Why a file does not fit


def with_head(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, classes))


def spoiled(value):
    state = small().state_dict()
    state["1.bias"][2] = value
    return state


def strange():
    state = small(width=5).state_dict()
    del state["1.running_mean"]
    return {**state, "9.stranger": torch.zeros(1)}


WIDER = "0.weight ((5, 3, 3, 3) instead of (4, 3, 3, 3))"
MISFITS = {  # content, how it is loaded, and what is said
    "averaged weights too": (
        lambda: small().state_dict() | prefixed(small().state_dict(), "ema."), {}, "'' and 'ema.'",
    ),
    "a bigger network": (  # as a ResNet-34 has every key of a ResNet-18, in the same shape
        lambda: nn.ModuleDict({"module": nn.Sequential(*small(), nn.Conv2d(4, 4, 3))}).state_dict(),
        {}, "under 'module.' do not fit Sequential (unexpected: 3.weight, 3.bias)",
    ),
    "an unknown prefix": (
        lambda: small().state_dict(), {"prefix": "ema"},
        "under 'ema.' do not fit Sequential (missing: 0.weight",
    ),
    "other classes": (
        lambda: prefixed(with_head(100).state_dict(), "module."), {"network": with_head(10)},
        "last layer (2) has 100 outputs, 10 are wanted",
    ),
    "another width": (lambda: small(width=5).state_dict(), {}, f"{WIDER}, "),
    "many tensors": (lambda: small(width=5).state_dict(), {}, "and 3 more"),
    "everything": (
        strange, {}, f"(missing: 1.running_mean; unexpected: 9.stranger; of another shape: {WIDER}",
    ),
    "NaN": (lambda: spoiled(torch.nan), {}, "NaN or infinite (1.bias)"),
    "infinity": (lambda: spoiled(torch.inf), {}, "NaN or infinite (1.bias)"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "options", "said"), MISFITS.values(), ids=MISFITS)
def test_load_weights__misfit(tmp_path, content, options, said):
    torch.save(content(), tmp_path / "w.pth")
    assert said in refusal(tmp_path / "w.pth", **options)


# What is no file of weights


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}}, {"epoch": 3}, "text"])
def test_read_weights__no_tensors(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("content", [0.0, 0.5, 0.99, b"accuracy: 0.95", b"{}", b"a", None])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("trust_code", [False, True])
def test_read_weights__other_files(tmp_path, suffix, content, trust_code):
    """The first part of a file of weights, something else, or none at all."""
    path = tmp_path / f"w{suffix}"
    if isinstance(content, float):
        write = save_file if suffix == ".safetensors" else torch.save
        write(small().state_dict(), path)
        whole = path.read_bytes()
        content = whole[: int(content * len(whole))]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"w{suffix}"):
        read_weights(path, trust_code)
