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


def test_label_text_encodes_the_names_in_their_order():
    assert LabelText(["cat", "horse"], Lengths()).embeddings().tolist() == [[3.0], [5.0]]


def test_label_text_warns_of_equal_names(caplog):
    with caplog.at_level(logging.WARNING):
        LabelText(["crane", "cat", "crane"], Lengths()).embeddings()
    assert "crane" in caplog.text
    assert "cat" not in caplog.text.replace("cannot", "")


def test_label_text_says_nothing_about_different_names(caplog):
    with caplog.at_level(logging.WARNING):
        LabelText(["cat", "horse"], Lengths()).embeddings()
    assert caplog.text == ""


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npy_rows_are_labels(tmp_path, dtype):
    np.save(tmp_path / "rows.npy", ROWS.numpy().astype(dtype))
    rows = EmbeddingFile(tmp_path / "rows.npy").embed(["a", "b", "c"])
    assert rows.dtype == torch.float32
    assert torch.equal(rows, ROWS)


@pytest.mark.parametrize("key", ["lte", "embeddings", "anything"])
def test_safetensors_rows_are_labels(tmp_path, key):
    path = stored(tmp_path / "rows.safetensors", **{key: ROWS.half()})
    rows = EmbeddingFile(str(path)).embed(["a", "b", "c"])
    assert rows.dtype == torch.float32
    assert torch.equal(rows, ROWS)


@pytest.mark.parametrize("key", ["lte", "embeddings"])
def test_known_key_is_taken_among_several(tmp_path, key):
    path = stored(tmp_path / "rows.safetensors", **{key: ROWS, "a": ROWS + 1, "z": ROWS + 2})
    assert torch.equal(EmbeddingFile(path).embed(["a", "b", "c"]), ROWS)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1,), (2, 0)])
def test_rows_are_found_by_name(tmp_path, npy, order):
    known = ["cat", "ice cream", "dog"]
    file = EmbeddingFile(npy, listed(tmp_path / "names.txt", *known))
    assert torch.equal(file.embed([known[i] for i in order]), ROWS[list(order)])


def test_names_match_whatever_joins_their_words(tmp_path, npy):
    file = EmbeddingFile(
        npy, listed(tmp_path / "names.txt", "Ice-Cream", "t_shirt", "Egyptian cat")
    )
    wanted = ["egyptian_cat", "T-shirt", "ice  cream"]
    assert torch.equal(file.embed(wanted), ROWS[[2, 1, 0]])


def test_names_travel_in_the_metadata(tmp_path):
    metadata = {"names": json.dumps(["a", "b", "c"])}
    path = stored(tmp_path / "rows.safetensors", metadata, lte=ROWS)
    assert torch.equal(EmbeddingFile(path).embed(["c", "a"]), ROWS[[2, 0]])


def test_names_file_overrules_the_metadata(tmp_path):
    metadata = {"names": json.dumps(["a", "b", "c"])}
    path = stored(tmp_path / "rows.safetensors", metadata, lte=ROWS)
    names = listed(tmp_path / "names.txt", "c", "b", "a")
    assert torch.equal(EmbeddingFile(path, names).embed(["a", "b", "c"]), ROWS[[2, 1, 0]])


def test_name_without_a_row_is_refused(tmp_path, npy):
    file = EmbeddingFile(npy, listed(tmp_path / "names.txt", "cat", "dog", "ship"))
    with pytest.raises(InputError, match="no embedding for 2 class names, such as 'truck'"):
        file.embed(["cat", "truck", "frog"])


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"]])
def test_another_number_of_rows_is_refused(npy, names):
    with pytest.raises(InputError, match=f"3 embeddings for {len(names)} class names"):
        EmbeddingFile(npy).embed(names)


def test_another_number_of_listed_names_is_refused(tmp_path, npy):
    file = EmbeddingFile(npy, listed(tmp_path / "names.txt", "cat", "dog"))
    with pytest.raises(InputError, match="3 embeddings for 2 class names"):
        file.embed(["cat", "dog"])


@pytest.mark.parametrize("name", ["rows.npy", "rows.safetensors", "rows.txt"])
@pytest.mark.parametrize("content", [None, b"nothing that is known here"])
def test_unreadable_file_is_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        EmbeddingFile(tmp_path / name).embed(["a"])


def test_file_without_tensors_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"empty\.safetensors"):
        EmbeddingFile(stored(tmp_path / "empty.safetensors")).embed(["a"])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published embeddings are not here")
def test_published_tiny_imagenet_rows_are_put_into_label_order():
    names = class_names("tinyimagenet")
    published = PUBLISHED / "tiny_imagenet_le.safetensors"
    rows = EmbeddingFile(published, PUBLISHED / "tiny_imagenet_label.txt").embed(names)
    ordered = EmbeddingFile(PUBLISHED / "tiny_imagenet_le_sorted_wnid.safetensors").embed(names)
    assert rows.shape == (200, 512)
    assert torch.equal(rows, ordered)
    moved = (EmbeddingFile(published).embed(names) != rows).any(dim=1).sum()
    assert moved == 189
