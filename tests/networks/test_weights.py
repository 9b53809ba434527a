import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from nayer_pl import InputError, load_classifier, load_teacher
from nayer_pl.networks import weights as weights_module
from nayer_pl.networks.weights import load_weights, read_weights, save_weights


def small(width=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Flatten())


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


def test_saved_file_is_an_ordinary_safetensors_file(tmp_path):
    network = small()
    save_weights(tmp_path / "deep" / "w.safetensors", network, {"names": ["ä", "b"], "n": 3})
    assert same(load_file(tmp_path / "deep/w.safetensors"), network.state_dict())
    with safe_open(tmp_path / "deep/w.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop("format") == "pt"
    assert {k: json.loads(v) for k, v in metadata.items()} == {"names": ["ä", "b"], "n": 3}


def test_round_trip_keeps_every_bit_and_the_metadata(tmp_path):
    network, other = small(), small()
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    facts = {"nested": {"a": [1, 2.5, None, True]}, "text": "ok"}
    save_weights(tmp_path / "w.safetensors", network, facts)
    assert load_weights(other, tmp_path / "w.safetensors") == facts
    assert same(network.state_dict(), other.state_dict())


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_torch_files_load_bare_or_wrapped(tmp_path, wrap, suffix):
    network = small()
    torch.save(wrap(network.state_dict()), tmp_path / f"w{suffix}")
    state, facts = read_weights(tmp_path / f"w{suffix}")
    assert same(state, network.state_dict())
    assert facts == {}


def test_misfit_names_missing_unexpected_and_mismatched_keys(tmp_path):
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


def test_fitting_parts_are_not_called_problems(tmp_path):
    state = small().state_dict()
    del state["1.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as caught:
        load_weights(small(), tmp_path / "w.safetensors")
    assert "missing: 1.bias" in str(caught.value)
    assert "unexpected" not in str(caught.value)
    assert "shape" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_truncated_file_is_an_input_error_that_names_it(tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_weights(path, small(), {})
    else:
        torch.save({"state_dict": small().state_dict()}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=f"w{suffix}"):
        read_weights(path)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".safetensors", "accuracy: 0.95\n"),
        (".pth", "{}\n"),
        (".pth", "accuracy: 0.95\n"),
        (".ckpt", "hello\n"),
        (".pth", "a"),
    ],
)
def test_text_file_is_an_input_error_that_names_it(tmp_path, suffix, text):
    (tmp_path / f"w{suffix}").write_text(text)
    with pytest.raises(InputError, match=f"w{suffix}"):
        read_weights(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {}}, {"epoch": 3}, "text"])
def test_file_without_tensors_is_an_input_error(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_missing_file_is_an_input_error_that_names_it(tmp_path, name):
    with pytest.raises(InputError, match=name):
        read_weights(tmp_path / name)


def test_metadata_written_by_others_is_no_damage(tmp_path):
    save_file(small().state_dict(), tmp_path / "w.safetensors", {"format": "pt", "by": "someone"})
    state, _ = read_weights(tmp_path / "w.safetensors")
    assert same(state, small().state_dict())


@pytest.mark.parametrize("load", LOADERS.values(), ids=list(LOADERS))
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
@pytest.mark.parametrize("write", ["torch", "pickle"])
def test_code_in_a_weight_file_never_runs(tmp_path, load, suffix, write):
    marker, path = tmp_path / "marker", tmp_path / f"w{suffix}"
    content = {"state_dict": {"fc.weight": torch.zeros(2, 2)}, "extra": Payload(marker)}
    if write == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(InputError, match=r"could run code|damaged"):
        load(path)
    assert not marker.exists()


def test_the_payload_of_the_test_above_is_live(tmp_path):
    torch.save(Payload(tmp_path / "marker"), tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "marker").exists()


def test_crash_while_saving_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, small(), {"old": True})
    old = path.read_bytes()

    def crash(tensors, target, metadata):
        Path(target).write_bytes(old[: len(old) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(weights_module, "save_file", crash)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, small(width=6), {"old": False})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_saving_replaces_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, small(), {})
    save_weights(path, small(width=6), {})
    assert load_file(path)["0.weight"].shape[0] == 6
    assert list(tmp_path.iterdir()) == [path]


def test_saved_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    save_weights(tmp_path / "w.safetensors", small(), {})
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
