import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nayer_pl import EmbeddingFile, InputError, LabelText, class_names

PUBLISHED = Path(__file__).parents[3] / "shared/data/clip_lte"
ROWS = torch.tensor([[0.0, 1.5], [2.0, -3.0], [4.0, 5.0]])


class Lengths:
    """Encodes a name as its length."""

    def embed(self, names):
        return torch.tensor([[float(len(name))] for name in names])


class Constant:
    def __init__(self, value):
        self.value = value

    def embed(self, names):
        return torch.full((len(names), 2), self.value)


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    return tmp_path / "rows.npy"


def stored(path, metadata=None, **tensors):
    save_file(tensors, path, metadata)
    return path


def listed(path, *names):
    path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("names", [["cat", "horse"], ["crane", "cat", "crane"]])
def test_label_text(caplog, names):
    """Names are encoded in their order, with a warning of equal ones."""
    with caplog.at_level(logging.WARNING):
        embeddings = LabelText(names, Lengths()).embeddings()
    assert embeddings.tolist() == [[len(name)] for name in names]
    assert ("crane" in caplog.text) == ("crane" in names) == bool(caplog.text)
    assert ": crane." in caplog.text or not caplog.text


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "'cat' holds NaN"), (1.0, "the same label text")]
)
def test_label_text__useless(value, message):
    with pytest.raises(InputError, match=message):
        LabelText(["cat", "dog"], Constant(value)).embeddings()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy(tmp_path, dtype):
    """Rows are labels."""
    np.save(tmp_path / "rows.npy", ROWS.numpy().astype(dtype))
    rows = EmbeddingFile(tmp_path / "rows.npy").embed(["a", "b", "c"])
    assert rows.dtype == torch.float32
    assert torch.equal(rows, ROWS)


@pytest.mark.parametrize(
    ("key", "others"), [("anything", ""), ("lte", ""), ("lte", "az"), ("embeddings", "az")]
)
def test_safetensors(tmp_path, key, others):
    """Its only tensor, or the one with a known name."""
    tensors = {key: ROWS.half(), **{name: ROWS + i for i, name in enumerate(others, 1)}}
    rows = EmbeddingFile(str(stored(tmp_path / "rows.safetensors", **tensors))).embed("abc")
    assert rows.dtype == torch.float32
    assert torch.equal(rows, ROWS)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1,), (2, 0)])
def test_names(tmp_path, npy, order):
    """Rows are found by name, whatever joins its words."""
    file = EmbeddingFile(npy, listed(tmp_path / "names.txt", "Ice-Cream", "t_shirt", "red cat"))
    names = ["ice  cream", "T-shirt", "red_cat"]
    assert torch.equal(file.embed([names[i] for i in order]), ROWS[list(order)])


def test_names__metadata(tmp_path):
    """A file of names comes first."""
    metadata = {"names": json.dumps(["a", "b", "c"])}
    path = stored(tmp_path / "rows.safetensors", metadata, lte=ROWS)
    assert torch.equal(EmbeddingFile(path).embed(["c", "a"]), ROWS[[2, 0]])
    names = listed(tmp_path / "names.txt", "c", "b", "a")
    assert torch.equal(EmbeddingFile(path, names).embed(["a", "b", "c"]), ROWS[[2, 1, 0]])


def test_names__unknown(tmp_path, npy):
    file = EmbeddingFile(npy, listed(tmp_path / "names.txt", "cat", "dog", "ship"))
    with pytest.raises(InputError, match="no embedding for 2 class names, such as 'truck'"):
        file.embed(["cat", "truck", "frog"])


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("in_file", [True, False])
def test_number_of_rows(tmp_path, npy, names, in_file):
    file = EmbeddingFile(npy, listed(tmp_path / "names.txt", *names) if in_file else None)
    with pytest.raises(InputError, match=f"3 embeddings for {len(names)} class names"):
        file.embed(names)


@pytest.mark.parametrize("name", ["rows.npy", "rows.safetensors", "rows.txt"])
@pytest.mark.parametrize("content", [None, b"nothing that is known here"])
def test_unreadable_file(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        EmbeddingFile(tmp_path / name).embed(["a"])


def test_file_without_tensors(tmp_path):
    with pytest.raises(InputError, match=r"empty\.safetensors"):
        EmbeddingFile(stored(tmp_path / "empty.safetensors")).embed(["a"])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published embeddings are not here")
def test_published_tiny_imagenet():
    """Rows in the order of WordNet's numbers are those that are found by name."""
    names = class_names("tinyimagenet")
    published = PUBLISHED / "tiny_imagenet_le.safetensors"
    rows = EmbeddingFile(published, PUBLISHED / "tiny_imagenet_label.txt").embed(names)
    ordered = EmbeddingFile(PUBLISHED / "tiny_imagenet_le_sorted_wnid.safetensors").embed(names)
    assert rows.shape == (200, 512)
    assert torch.equal(rows, ordered)
    moved = (EmbeddingFile(published).embed(names) != rows).any(dim=1).sum()
    assert moved == 189
