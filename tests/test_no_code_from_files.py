"""Files are data: wherever they are read, code in them is not run."""

import hashlib
import io
import json
import os
import pickle
import sys
import tarfile
import types
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from nayer_pl import (
    EmbeddingFile,
    FolderImages,
    HubImages,
    InputError,
    MemoryBank,
    TextEncoder,
    build_classifier,
    load_classifier,
    load_teacher,
)
from nayer_pl.app.resume import find_checkpoint
from nayer_pl.bank.bank import read_bank
from nayer_pl.bank.files import BankFiles
from nayer_pl.networks import from_timm, from_transformers

WRN = {"_target_": "nayer_pl.networks.wrn16_1", "num_classes": 10, "channels": 1}


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


FORMATS = {"zip": torch.save, "legacy": write_legacy, "pickle": write_pickle}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def malicious(request, marker):
    """Writes a file that looks like weights and holds a payload too."""

    def write(path):
        state = {"conv1.weight": torch.zeros(2, 2)}
        request.param({"state_dict": state, "extra": Payload(marker)}, path)
        return path

    return write


def test_payload_runs_in_a_trusting_reader(malicious, marker, tmp_path):
    """Or the tests below would prove nothing."""
    path = malicious(tmp_path / "w.pth")
    with suppress(RuntimeError):  # after it ran: "pickle" is no file of torch's
        torch.load(path, weights_only=False)
    assert marker.exists()


LOADERS = {
    "teacher": lambda path: load_teacher(WRN, path, [0.3], [0.3]),
    "student": lambda path: build_classifier(WRN, weights=path),
    "classifier": load_classifier,
    "bank": lambda path: MemoryBank(4, (1, 2, 2)).add(*read_bank(path)),
    "embeddings": lambda path: EmbeddingFile(path).embed(["cat", "dog"]),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npy"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_tensor_files(malicious, marker, tmp_path, load, suffix):
    path = malicious(tmp_path / f"file{suffix}")
    with pytest.raises(InputError, match=f"file{suffix}"):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("resume", ["auto", None])
def test_checkpoints(malicious, marker, tmp_path, resume):
    (tmp_path / "checkpoints").mkdir()
    path = malicious(tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(InputError, match="intact" if resume else "cannot be continued from"):
        find_checkpoint(tmp_path, resume, None if resume else str(path))
    assert not marker.exists()


def test_bank_files(malicious, marker, tmp_path):
    """With the right checksum, as in a checkpoint that was forged too."""
    content = malicious(tmp_path / "bank-0.safetensors").read_bytes()
    sha = hashlib.sha256(content).hexdigest()
    record = {"file": "bank-0.safetensors", "sha256": sha, "first": 0, "images": 1}
    state = {"added": 1, "images": 1, "files": [record]}
    with pytest.raises((InputError, SafetensorError)):
        BankFiles(tmp_path, "bank-0").load(MemoryBank(1, (1, 2, 2)), state)
    assert not marker.exists()


def test_object_arrays(marker, tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.array([Payload(marker)] * 2, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"rows\.npy"):
        EmbeddingFile(path).embed(["cat", "dog"])
    assert not marker.exists()
    np.load(path, allow_pickle=True)
    assert marker.exists()


def test_cached_embeddings(malicious, marker, tmp_path, monkeypatch):
    """The text is encoded again."""
    said = []
    log = "nayer_pl.synthesis.text_encoder.log.warning"
    monkeypatch.setattr(log, lambda text, *args: said.append(text))
    monkeypatch.setattr(TextEncoder, "_encode", lambda *_: torch.eye(2))
    encoder = TextEncoder("model", cache_dir=tmp_path / "cache")
    encoder.embed(["cat", "dog"])
    [file] = (tmp_path / "cache").iterdir()
    malicious(file)
    assert torch.equal(encoder.embed(["cat", "dog"]), torch.eye(2))
    assert "is damaged" in said[0]
    assert not marker.exists()


# Models of the Hub, in a local folder


def save_bert(folder):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog"]
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=7, intermediate_size=4, **sizes)).save_pretrained(folder)


def save_resnet(folder):
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "layer_type": "basic"}
    network = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=3, **sizes))
    network.save_pretrained(folder)


MODELS = {
    "text encoder": (
        save_bert, lambda path: TextEncoder(str(path), "mean").embed(["cat", "dog"]),
    ),
    "teacher": (save_resnet, lambda path: from_transformers(str(path), 3, 1, pretrained=True)),
}  # fmt: skip


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def model(request, tmp_path):
    """A folder, and a function that reads it."""
    save, load = request.param
    save(tmp_path / "model")
    return tmp_path / "model", lambda: load(tmp_path / "model")


@pytest.mark.usefixtures("no_network")
def test_hub_models__weights(malicious, marker, model):
    folder, load = model
    load()
    (folder / "model.safetensors").unlink()
    malicious(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="more than tensors, and that could run code"):
        load()
    assert not marker.exists()


@pytest.mark.usefixtures("no_network")
def test_hub_models__code(marker, model, monkeypatch):
    """transformers would ask, and the answer is yes."""
    folder, load = model
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\nConfig = Model = None\n")
    file = folder / "config.json"
    names = ("Model", "ModelForImageClassification")
    own = {"AutoConfig": "code.Config", **{f"Auto{name}": "code.Model" for name in names}}
    config = {**json.loads(file.read_text()), "auto_map": own, "model_type": "theirs"}
    file.write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(InputError, match="cannot be loaded"):
        load()
    assert not marker.exists()


def test_timm_weights(malicious, marker, tmp_path, monkeypatch):
    """timm 1.0 opens files that are no `.safetensors` by `torch.load(..., weights_only=False)`."""
    path = malicious(tmp_path / "pytorch_model.bin")
    facts = {"num_classes": 3, "input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}

    def create_model(name, pretrained=False, **_):
        if pretrained:
            torch.load(path, weights_only=False)
        return types.SimpleNamespace(pretrained_cfg=facts)

    module = types.ModuleType("timm")
    module.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", module)
    with pytest.raises(InputError, match="timm cannot make"):
        from_timm("local-dir:model", 3, 1, pretrained=True)
    assert not marker.exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ  # trusted files can still be opened


# Data sets


def test_pictures(malicious, marker, tmp_path):
    (tmp_path / "set" / "cat").mkdir(parents=True)
    malicious(tmp_path / "set" / "cat" / "1.png")
    with pytest.raises(InputError, match=r"1\.png"):
        FolderImages(str(tmp_path / "set"), (1, 8, 8)).load("evaluation")
    assert not marker.exists()


def tar_of(content, path):
    """A shard of webdataset, whose members may be of any kind."""
    with tarfile.open(path, "w") as archive:
        for name in ("1.pyd", "1.pickle", "1.pth", "1.npy", "1.npz"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("suffix", [".pkl", ".parquet", ".h5", ".tar", ".zip"])
def test_data_sets(marker, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder, content = tmp_path / "set", pickle.dumps(Payload(marker))
    folder.mkdir()
    if suffix == ".tar":
        tar_of(content, folder / "test.tar")
    else:
        (folder / f"test{suffix}").write_bytes(content)
    (folder / "set.py").write_text(f"open({str(marker)!r}, 'w')\n")  # a loading script, once
    with pytest.raises(InputError, match="The data set"):
        HubImages(str(folder), (1, 8, 8)).load("evaluation")
    assert not marker.exists()
