from pathlib import Path

import datasets
import pytest

from nayer_pl import InputError, class_names

SHARED = Path(__file__).parents[3] / "shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no local data sets here")
COUNTS = {"cifar10": 10, "fashion_mnist": 10, "cifar100": 100, "tinyimagenet": 200, "digits": 10}


def label_names(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    files = str(SHARED / folder / "data/test-*.parquet")
    test = datasets.load_dataset("parquet", data_files={"test": files}, split="test")
    return test.features["label"].names


@pytest.mark.parametrize("name", COUNTS)
def test_one_name_for_every_class(name):
    names = class_names(name)
    assert len(names) == len(set(names)) == COUNTS[name]
    assert all(text == text.strip() and text for text in names)


@needs_shared
def test_cifar10_names_are_those_of_its_labels(monkeypatch, tmp_path):
    assert class_names("cifar10") == label_names("cifar10", monkeypatch, tmp_path)


@needs_shared
def test_fashion_mnist_names_follow_the_order_of_its_labels(monkeypatch, tmp_path):
    def letters(text):
        return {"tshirtortop": "tshirttop", "trousers": "trouser"}.get(
            joined := "".join(c for c in text.lower() if c.isalpha()), joined
        )

    labels = label_names("fashion_mnist", monkeypatch, tmp_path)
    assert [*map(letters, class_names("fashion_mnist"))] == [*map(letters, labels)]


@needs_shared
def test_tiny_imagenet_names_follow_its_sorted_labels():
    lines = (SHARED / "tiny_imagenet/classes.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    assert [int(row[0]) for row in rows] == list(range(200))
    assert [row[1] for row in rows] == sorted(row[1] for row in rows)
    assert class_names("tinyimagenet") == [row[2] for row in rows]


@needs_shared
def test_cifar100_names_follow_the_official_order():
    lines = (SHARED / "clip_lte/cifar100_label.txt").read_text(encoding="utf-8").splitlines()
    assert class_names("cifar100") == [line.replace("_", " ") for line in lines]


def test_digits_are_counted_from_zero():
    words = "zero one two three four five six seven eight nine"
    assert " ".join(class_names("digits")) == words


def test_given_names_are_taken_as_text():
    assert class_names(["cat", 7]) == ["cat", "7"]
    assert class_names(("cifar10",)) == ["cifar10"]


@pytest.mark.parametrize("name", ["imagenet", "", "cifar10.txt", "../class_names/cifar10"])
def test_unknown_data_set_says_which_are_known(name):
    with pytest.raises(InputError) as caught:
        class_names(name)
    assert all(known in str(caught.value) for known in COUNTS)
