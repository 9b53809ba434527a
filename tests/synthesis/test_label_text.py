import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nayer_pl import EmbeddingFile, InputError, LabelText, class_names

PUBLISHED = Path(__file__).parents[3] / "shared/data/clip_lte"
ROWS = torch.tensor([[0.0, 1.5], [2.0, -3.0], [4.0, 5.0]])


class Lengths:
    def embed(self, names):
        return torch.tensor([[float(len(name))] for name in names])


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


@pytest.mark.parametrize(("names", "warns"), [(["cat", "horse"], False), (["fox", "fox"], True)])
def test_label_text(caplog, names, warns):
    """Rows in the order of the names; equal names are reported."""
    rows = LabelText(names, Lengths()).embeddings()
    assert rows.tolist() == [[float(len(name))] for name in names]
    assert ("fox" in caplog.text) == warns


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0], [math.nan]], "'dog' holds NaN"),
        ([[math.inf], [1.0]], "'cat' holds NaN or infinity"),
        ([[1.0], [1.0]], "same label text"),
    ],
)
def test_label_text__useless(tmp_path, rows, message):
    np.save(tmp_path / "rows.npy", np.array(rows))
    with pytest.raises(InputError, match=message):
        LabelText(["cat", "dog"], EmbeddingFile(tmp_path / "rows.npy")).embeddings()


@pytest.mark.parametrize("names", ["cat", [1, 2]])
def test_label_text__names(names):
    with pytest.raises(InputError, match="names"):
        LabelText(names, Lengths())


def read(path, wanted, names=None):
    rows = EmbeddingFile(path, names).embed(wanted)
    assert rows.dtype == torch.float32
    return rows


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_npy(tmp_path, dtype):
    np.save(tmp_path / "rows.npy", ROWS.numpy().astype(dtype))
    assert torch.equal(read(tmp_path / "rows.npy", "abc"), ROWS)


@pytest.mark.parametrize(
    "tensors",
    [
        {"lte": ROWS.half()}, {"embeddings": ROWS}, {"anything": ROWS},
        {"lte": ROWS, "a": ROWS + 1, "z": ROWS + 2}, {"embeddings": ROWS, "a": ROWS + 1},
    ],
)  # fmt: skip
def test_safetensors(tmp_path, tensors):
    path = stored(tmp_path / "rows.safetensors", **tensors)
    assert torch.equal(read(str(path), ["a", "b", "c"]), ROWS)


@pytest.mark.parametrize(
    ("wanted", "order"),
    [
        (["ice cream", "t-shirt", "Egyptian cat"], [0, 1, 2]),
        (["egyptian_cat", "T-shirt", "ice  cream"], [2, 1, 0]),
        (["T shirt"], [1]),
        (["EGYPTIAN-CAT", "ice-cream"], [2, 0]),
    ],
)
def test_names(tmp_path, npy, wanted, order):
    """Rows are found by name, whatever joins its words."""
    names = listed(tmp_path / "names.txt", "Ice-Cream", "t_shirt", "Egyptian cat")
    assert torch.equal(read(npy, wanted, names), ROWS[order])


def test_names__metadata(tmp_path):
    """They are in the file itself, unless there is another one for them."""
    path = stored(tmp_path / "rows.safetensors", {"names": '["a", "b", "c"]'}, lte=ROWS)
    assert torch.equal(read(path, ["c", "a"]), ROWS[[2, 0]])
    names = listed(tmp_path / "names.txt", "c", "b", "a")
    assert torch.equal(read(path, ["a", "b", "c"], names), ROWS[[2, 1, 0]])


@pytest.mark.parametrize(
    ("known", "wanted", "message"),
    [
        (["cat", "dog", "ship"], ["cat", "truck", "frog"], "for 2 class names, such as 'truck'"),
        (["cat", "dog"], ["cat", "dog"], "3 embeddings for 2 class names"),
        (None, ["cat", "dog"], "3 embeddings for 2 class names"),
        (None, ["cat", "dog", "ship", "frog"], "3 embeddings for 4 class names"),
    ],
)
def test_names__other_classes(tmp_path, npy, known, wanted, message):
    names = listed(tmp_path / "names.txt", *known) if known else None
    with pytest.raises(InputError, match=message):
        read(npy, wanted, names)


@pytest.mark.parametrize("name", ["rows.npy", "rows.safetensors", "rows.txt"])
@pytest.mark.parametrize("content", [None, b"nothing that is known here"])
def test_unreadable(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        read(tmp_path / name, ["a"])


def test_unreadable__content(tmp_path, npy):
    """No tensor at all; a tensor of another shape; names that are no list; no file of names."""
    with pytest.raises(InputError, match=r"empty\.safetensors"):
        read(stored(tmp_path / "empty.safetensors"), ["a"])
    with pytest.raises(InputError, match=r"\[classes, d\] numbers"):
        read(stored(tmp_path / "flat.safetensors", lte=ROWS[0]), ["a", "b"])
    with pytest.raises(InputError, match="not a JSON list"):
        read(stored(tmp_path / "rows.safetensors", {"names": "a, b, c"}, lte=ROWS), ["a"])
    with pytest.raises(InputError, match=r"no file '.*none\.txt'; set names"):
        read(npy, ["a", "b", "c"], tmp_path / "none.txt")


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published embeddings are not here")
def test_published_rows():
    """Those of Tiny-ImageNet are put into label order."""
    names = class_names("tinyimagenet")
    published = PUBLISHED / "tiny_imagenet_le.safetensors"
    rows = EmbeddingFile(published, PUBLISHED / "tiny_imagenet_label.txt").embed(names)
    ordered = EmbeddingFile(PUBLISHED / "tiny_imagenet_le_sorted_wnid.safetensors").embed(names)
    assert rows.shape == (200, 512)
    assert torch.equal(rows, ordered)
    moved = (EmbeddingFile(published).embed(names) != rows).any(dim=1).sum()
    assert moved == 189
