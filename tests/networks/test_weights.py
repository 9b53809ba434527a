import errno
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nayer_pl import InputError, load_classifier, load_teacher
from nayer_pl.networks.weights import load_weights, read_weights, save_weights


def small(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten())


def randomize(network):
    for tensor in network.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else tensor + 7)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10}
LOADERS = {
    "load_weights": lambda path: load_weights(small(), path),
    "load_teacher": lambda path: load_teacher(WRN, path),
    "load_classifier": load_classifier,
    "load_classifier of a given architecture": lambda path: load_classifier(path, WRN),
}


def test_save_weights__file(tmp_path):
    network = small()
    save_weights(tmp_path / "deep" / "w.safetensors", small(width=6), {})  # is replaced
    save_weights(tmp_path / "deep" / "w.safetensors", network, {"names": ["ä", "b"], "n": 3})
    assert len(list((tmp_path / "deep").iterdir())) == 1
    assert same(load_file(tmp_path / "deep/w.safetensors"), network.state_dict())
    with safe_open(tmp_path / "deep/w.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop("format") == "pt"
    assert {k: json.loads(v) for k, v in metadata.items()} == {"names": ["ä", "b"], "n": 3}


def test_round_trip(tmp_path):
    network, other = small(), small()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    facts = {"nested": {"a": [1, 2.5, None, True]}, "text": "ok"}
    save_weights(tmp_path / "w.safetensors", network, facts)
    assert load_weights(other, tmp_path / "w.safetensors") == facts
    assert same(network.state_dict(), other.state_dict())


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


# How training scripts, Lightning, DDP and torch.compile leave a network in a file.
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


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=list(WRAPPINGS))
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_load_weights__wrappings(tmp_path, wrap, suffix):
    trained, network = small(), small()
    randomize(trained)
    torch.save(wrap(trained.state_dict()), tmp_path / f"w{suffix}")
    assert load_weights(network, tmp_path / f"w{suffix}") == {}
    assert same(network.state_dict(), trained.state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "student.network."])
def test_load_weights__safetensors_prefix(tmp_path, prefix):
    trained, network = small(), small()
    randomize(trained)
    save_file(prefixed(trained.state_dict(), prefix), tmp_path / "w.safetensors")
    load_weights(network, tmp_path / "w.safetensors")
    assert same(network.state_dict(), trained.state_dict())


def two_networks(path, other=None):
    teacher, student = small(), other or small()
    randomize(teacher)
    randomize(student)
    torch.save(
        {
            "state_dict": prefixed(teacher.state_dict(), "teacher.")
            | prefixed(student.state_dict(), "student.network.")
        },
        path,
    )
    return teacher, student


def test_load_weights__two_networks(tmp_path):
    teacher, student = two_networks(tmp_path / "w.ckpt")
    network = small()
    with pytest.raises(InputError, match=r"prefix=") as caught:
        load_weights(network, tmp_path / "w.ckpt")
    assert "'state_dict.teacher.'" in str(caught.value)
    assert "'state_dict.student.network.'" in str(caught.value)
    load_weights(network, tmp_path / "w.ckpt", prefix="state_dict.teacher.")
    assert same(network.state_dict(), teacher.state_dict())
    load_weights(network, tmp_path / "w.ckpt", prefix="state_dict.student.network")
    assert same(network.state_dict(), student.state_dict())


@pytest.mark.parametrize("name", ["ema", "model_ema"])
def test_load_weights__averaged_weights(tmp_path, name):
    state = small().state_dict()
    torch.save({"model": state, name: state}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"'model.'.*'{name}.'"):
        load_weights(small(), tmp_path / "w.pth")
    torch.save(state | prefixed(state, f"{name}."), tmp_path / "w.pth")
    with pytest.raises(InputError, match=f"''.*'{name}.'"):
        load_weights(small(), tmp_path / "w.pth")


def test_load_weights__two_widths(tmp_path):
    _, student = two_networks(tmp_path / "w.ckpt", other=small(width=6))
    network = small(width=6)
    load_weights(network, tmp_path / "w.ckpt")
    assert same(network.state_dict(), student.state_dict())


def test_load_weights__part_of_a_bigger_network(tmp_path):
    # A ResNet-34 has every key of a ResNet-18, in the same shape.
    bigger = nn.Sequential(*small(), nn.Conv2d(4, 4, 3))
    torch.save({"state_dict": prefixed(bigger.state_dict(), "module.")}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"under 'state_dict\.module\.'.*unexpected: 3\.weight"):
        load_weights(small(), tmp_path / "w.pth")


def test_load_weights__without_batch_counts(tmp_path):
    state = small().state_dict()
    del state["1.num_batches_tracked"]
    state["1.running_mean"] += 1
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    network = small()
    load_weights(network, tmp_path / "w.pth")
    assert same({**state, "1.num_batches_tracked": torch.tensor(0)}, network.state_dict())


def test_load_weights__unknown_prefix(tmp_path):
    torch.save({"state_dict": small().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"under 'ema\.'.*missing: 0\.weight"):
        load_weights(small(), tmp_path / "w.pth", prefix="ema")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": prefixed(s, "module.")}])
def test_load_weights__another_number_of_classes(tmp_path, wrap):
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    torch.save(wrap(nn.Sequential(*body, nn.Linear(4, 100)).state_dict()), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"last layer \(2\) has 100 outputs, 10 are wanted"):
        load_weights(nn.Sequential(*body, nn.Linear(4, 10)), tmp_path / "w.pth")


def test_load_weights__another_width(tmp_path):
    save_file(small(width=5).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_weights(small(), tmp_path / "w.safetensors")
    assert "0.weight ((5, 3, 3, 3) instead of (4, 3, 3, 3))" in str(caught.value)


def test_load_weights__misfit(tmp_path):
    state = small(width=5).state_dict()
    del state["1.running_mean"]
    state["9.stranger"] = torch.zeros(1)
    save_file(state, tmp_path / "w.safetensors")
    network = small()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_weights(network, tmp_path / "w.safetensors")
    message = str(caught.value)
    assert "missing: 1.running_mean" in message
    assert "unexpected: 9.stranger" in message
    assert "0.weight ((5, 3, 3, 3) instead of (4, 3, 3, 3))" in message
    assert "and 2 more" in message  # six tensors follow the width; one is missing, three are shown
    assert same(network.state_dict(), before)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
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


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"epoch": 3}, "text"])
def test_read_weights__no_tensors(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.safetensors", "accuracy: 0.95\n"),
        ("w.pth", "{}\n"),
        ("w.pth", "accuracy: 0.95\n"),
        ("w.ckpt", "hello\n"),
        ("w.pth", "a"),
        ("w.safetensors", None),
        ("w.pth", None),
    ],
)
@pytest.mark.parametrize("trust_code", [False, True])
def test_read_weights__other_files(tmp_path, name, text, trust_code):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_weights(tmp_path / name, trust_code)


def test_read_weights__metadata_of_others(tmp_path):
    save_file(small().state_dict(), tmp_path / "w.safetensors", {"format": "pt", "by": "someone"})
    state, _ = read_weights(tmp_path / "w.safetensors")
    assert same(state, small().state_dict())


@pytest.mark.parametrize("load", LOADERS.values(), ids=list(LOADERS))
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_load__code_does_not_run(tmp_path, load, suffix, write):
    marker, path = tmp_path / "marker", tmp_path / f"w{suffix}"
    content = {"state_dict": {"fc.weight": torch.zeros(2, 2)}, "extra": Payload(marker)}
    if write == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=r"could run code|damaged"):
        load(path)
    assert not marker.exists()
    if write == "torch":  # but the code would run
        read_weights(path, trust_code=True)
        assert marker.exists()


class Whole(nn.Sequential):
    """A network that is pickled as an object, as `torch.save(model)` does."""


@pytest.mark.parametrize("wrap", [lambda net: net, lambda net: {"net": net, "epoch": 3}])
def test_load_weights__pickled_network(tmp_path, wrap, monkeypatch):
    # Unpickling imports the class from its module.
    monkeypatch.setitem(sys.modules, "my_networks", types.ModuleType("my_networks"))
    monkeypatch.setattr(Whole, "__module__", "my_networks")
    sys.modules["my_networks"].Whole = Whole
    trained, network = Whole(*small()), small()
    randomize(trained)
    torch.save(wrap(trained), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"could run code.*trust_code=true"):
        load_weights(network, tmp_path / "w.pth")
    load_weights(network, tmp_path / "w.pth", trust_code=True)
    assert same(network.state_dict(), trained.state_dict())


def test_save_weights__crash(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, small(), {"old": True})
    old = path.read_bytes()

    def crash(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, small(width=6), {"old": False})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_save_weights__file_mode(tmp_path):
    (tmp_path / "plain").touch()
    save_weights(tmp_path / "w.safetensors", small(), {})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_save_weights__layer_with_two_names(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
            self.features = nn.Sequential(*self.backbone.children())

    network, other = Twice(), Twice()
    save_weights(tmp_path / "w.safetensors", network, {})
    load_weights(other, tmp_path / "w.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
