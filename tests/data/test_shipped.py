import hashlib
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nayer_pl import Digits, HubImages, InputError, class_names

SHARED = Path(os.environ.get("NAYER_PL_TEST_DATA") or Path(__file__).parents[3] / "shared/data")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no local data sets here")
COUNTS = {
    "cifar10": 10, "fashion_mnist": 10, "cifar100": 100, "tinyimagenet": 200, "imagenet": 1000,
    "digits": 10,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)


def label_names(folder):
    return HubImages(str(SHARED / folder), (3, 8, 8)).class_names()


def lines(file):
    return (SHARED / file).read_text(encoding="utf-8").splitlines()


def first(name):
    """The first of several synonyms."""
    return name.split(",")[0].strip()


@pytest.mark.parametrize("name", COUNTS)
def test_known__one_name_per_class(name):
    names = class_names(name)
    assert len(names) == len(set(names)) == COUNTS[name]
    assert all(text == text.strip() and text for text in names)


@needs_shared
def test_cifar10__names_of_its_labels():
    assert class_names("cifar10") == label_names("cifar10")


@needs_shared
def test_fashion_mnist__order_of_its_labels():
    def letters(text):
        return {"tshirtortop": "tshirttop", "trousers": "trouser"}.get(
            joined := "".join(c for c in text.lower() if c.isalpha()), joined
        )

    labels = label_names("fashion_mnist")
    assert [*map(letters, class_names("fashion_mnist"))] == [*map(letters, labels)]


@needs_shared
def test_tiny_imagenet__order_of_its_labels():
    rows = [line.split("\t") for line in lines("tiny_imagenet/classes.txt")]
    assert [int(row[0]) for row in rows] == list(range(200))
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert [row[1] for row in rows] == label_names("tiny_imagenet")  # what the labels count
    assert class_names("tinyimagenet") == [row[2] for row in rows]


def test_tiny_imagenet__order_of_imagenet():
    # Both count their classes by sorted WordNet identifiers, and Tiny-ImageNet has a part of them.
    position = {name: i for i, name in enumerate(class_names("imagenet"))}
    position["crane"] = position["construction crane"]  # n03126707
    positions = [position[first(name)] for name in class_names("tinyimagenet")]
    assert positions == sorted(set(positions))


@needs_shared
def test_tiny_imagenet__published_text_in_another_order():
    published = lines("clip_lte/tiny_imagenet_label.txt")
    ours = class_names("tinyimagenet")
    assert ours == lines("clip_lte/tiny_imagenet_label_sorted_wnid.txt")
    assert sorted(published) == sorted(ours)
    assert sum(a != b for a, b in zip(published, ours, strict=True)) == 189


DISTINGUISHED = {
    134: "crane bird", 517: "construction crane", 264: "Cardigan Welsh corgi", 639: "tank suit"
}  # fmt: skip


@needs_shared
def test_imagenet__first_synonyms():
    published = [first(name) for name in lines("clip_lte/imagenet_label.txt")]
    small = [name.lower() for name in published]
    assert all(small.count(small[i]) == 2 for i in DISTINGUISHED)
    assert class_names("imagenet") == [DISTINGUISHED.get(i, n) for i, n in enumerate(published)]


def test_imagenet__distinct_in_lower_case():
    names = class_names("imagenet")
    assert len({name.lower() for name in names}) == 1000
    assert {i: names[i] for i in DISTINGUISHED} == DISTINGUISHED


@needs_shared
def test_cifar100__official_order():
    published = lines("clip_lte/cifar100_label.txt")
    assert class_names("cifar100") == [line.replace("_", " ") for line in published]


def test_names__given():
    assert class_names(["cat", 7]) == ["cat", "7"]
    assert class_names(("cifar10",)) == ["cifar10"]
    unasked = object()  # has no names
    assert class_names("cifar10", unasked)[0] == "airplane"
    assert class_names(["a"], unasked) == ["a"]


@pytest.mark.parametrize("name", ["imagenet21k", "", "cifar10.txt", "../class_names/cifar10"])
def test_names__unknown_data_set(name):
    with pytest.raises(InputError) as caught:
        class_names(name)
    assert all(known in str(caught.value) for known in COUNTS)


@pytest.mark.parametrize("names", [[], ["cat", " "]])
def test_names__none_or_empty(names):
    with pytest.raises(InputError, match="class name"):
        class_names(names)


def test_names__lines_of_a_file(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\n\r\n  sea lion \nüber\n".encode())
    assert class_names(str(tmp_path / "names.txt")) == ["cat", "sea lion", "über"]
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(InputError, match=re.escape("picture.png' are not UTF-8 text")):
        class_names(str(tmp_path / "picture.png"))


class Named:
    def class_names(self):
        return ["yes", "no"]


def test_names__of_the_source():
    assert class_names(None, Named()) == ["yes", "no"]
    words = "zero one two three four five six seven eight nine"
    assert " ".join(class_names(None, Digits())) == words
    with pytest.raises(InputError, match="set class_names"):
        class_names()


def raw_rows(split):
    """The 8x8 originals, [N, 64] in 0..16, and the labels, as they were before enlarging."""
    images, labels = Digits(8).load(split)
    return np.rint(images.flatten(1).double().numpy() * 16 / 255).astype(int), labels.numpy()


def test_digits__sizes_and_types():
    for split, count in (("train", 1297), ("evaluation", 500)):
        images, labels = Digits().load(split)
        assert images.shape == (count, 1, 16, 16)
        assert labels.shape == (count,)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        small = Digits(8).load(split).images
        assert (int(small.min()), int(small.max())) == (0, 255)
    with pytest.raises(InputError, match="image_size must be"):
        Digits(0)


def test_digits__stratified_halves():
    def rows(images, labels):
        pairs = zip(images.astype(int), labels, strict=True)
        return [image.tobytes() + bytes([label]) for image, label in pairs]

    originals, labels = load_digits(return_X_y=True)
    halves = rows(*raw_rows("train")) + rows(*raw_rows("evaluation"))
    assert len(set(halves)) == 1797
    assert sorted(halves) == sorted(rows(originals, labels))
    kept = np.bincount(Digits().load("evaluation").labels.numpy())
    np.testing.assert_array_less(np.abs(kept - np.bincount(labels) * 500 / 1797), 1)


@pytest.mark.parametrize("size", [8, 16, 32, 21])
def test_digits__bilinear(size):
    originals, labels = raw_rows("evaluation")
    images, same_labels = Digits(size).load("evaluation")
    centres = (np.arange(size) + 0.5) * 8 / size - 0.5
    weights = np.stack([np.interp(centres, np.arange(8), unit) for unit in np.eye(8)], axis=1)
    gray = originals.reshape(-1, 8, 8) * 255 / 16
    expected = weights @ gray @ weights.T
    assert np.abs(images[:, 0].numpy() - expected).max() < 0.5 + 1e-3
    np.testing.assert_array_equal(labels, same_labels.numpy())


@pytest.mark.parametrize("seed", [3, 4])
def test_digits__fingerprint(seed):
    """The split of all published figures, whatever the machine, scikit-learn or random state."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    for split, expected in {
        "train": "db5f7c516e41a0f21fc308a50a383e32a73f28a0ffafd3f218ec1bb766207fd8",
        "evaluation": "da2b3ef4e6c367545c0780238ec1ff9baa97cd067bc9c9a52edf222ea3f95b19",
    }.items():
        images, labels = Digits(8).load(split)
        content = images.numpy().tobytes() + labels.numpy().tobytes()
        assert hashlib.sha256(content).hexdigest() == expected
    after = torch.rand(1), np.random.rand()
    torch.manual_seed(seed)
    np.random.seed(seed)
    assert after == (torch.rand(1), np.random.rand())
