import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from nayer_pl import HubImages, InputError
from nayer_pl.data import Batches

SHARED = Path(os.environ.get("NAYER_PL_TEST_DATA") or Path(__file__).parents[3] / "shared/data")
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no local data sets here")
GARBAGE = b"not a parquet file " * 50


@pytest.fixture(autouse=True)
def _own_offline_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def pixels(count, size=(8, 8), seed=0):
    """Random images, uint8 [count, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def parquet(folder, split):
    return folder / "data" / f"{split}-00000-of-00001.parquet"


def hub(folder, shape=(3, 8, 8), **options):
    return HubImages(str(folder / "set"), shape, **options)


NAMES = datasets.ClassLabel(names=list("abcdefgh"))


def write(folder, split, arrays, labels, image="image", label="label", kind=NAMES, **extra):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = {image: datasets.Image(), label: kind}
    columns = {image: [Image.fromarray(array) for array in arrays], label: labels}
    for name, values in extra.items():
        features[name], columns[name] = datasets.Value("int64"), values
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(parquet(folder, split))


def check(found, arrays, labels):
    assert (found.images.dtype, found.labels.dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(found.images.numpy(), arrays.transpose(0, 3, 1, 2))
    assert found.labels.tolist() == labels


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_load__opens_no_other_split(tmp_path, split):
    train, test = pixels(5, (12, 5), seed=1), pixels(3, (12, 5), seed=2)
    write(tmp_path / "set", "train", train, [4, 3, 2, 1, 0])
    write(tmp_path / "set", "test", test, [7, 0, 7])
    damaged, other = ("test", "evaluation") if split == "train" else ("train", "train")
    parquet(tmp_path / "set", damaged).write_bytes(GARBAGE)
    source = hub(tmp_path, (3, 12, 5))
    expected = (train, [4, 3, 2, 1, 0]) if split == "train" else (test, [7, 0, 7])
    check(source.load(split), *expected)
    with pytest.raises(InputError, match=r"set' cannot be opened .*(?i:parquet)"):
        source.load(other)


@pytest.mark.parametrize(
    ("image", "label", "split"),
    [("img", "fine_label", "validation"), ("image", "labels", "valid"), ("img", "label", "val")],
)
def test_load__usual_names(tmp_path, image, label, split):
    arrays = pixels(2)
    write(tmp_path / "set", "train", pixels(2), [0, 0], image, label, coarse_label=[0, 1])
    write(tmp_path / "set", split, arrays, [5, 6], image, label, coarse_label=[0, 1])
    check(hub(tmp_path).load("evaluation"), arrays, [5, 6])


def test_columns__given(tmp_path):
    write(tmp_path / "set", "test", pixels(2), [5, 6], "picture", coarse_label=[2, 1])
    with pytest.raises(InputError, match="picture"):
        hub(tmp_path).load("evaluation")
    columns = {"image_column": "picture", "label_column": "coarse_label"}
    source = hub(tmp_path, **columns)
    assert source.load("evaluation").labels.tolist() == [2, 1]
    with pytest.raises(InputError, match=r"genus.*picture, label, coarse_label"):
        hub(tmp_path, **columns | {"label_column": "genus"}).load("evaluation")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{here}/nothing", r"nothing'; set path"),
        ("{here}/empty", r"empty' cannot be opened"),
        ("{here}/set.parquet", r"set\.parquet' is a file"),
        ("someone/something", r"someone/something.*set path to a folder"),
        (None, "set path to a name on the Hub"),
    ],
)
def test_load__no_data_set(tmp_path, path, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "set.parquet").write_bytes(GARBAGE)
    with pytest.raises(InputError, match=message):
        HubImages(path and path.format(here=tmp_path), (3, 8, 8)).load("evaluation")


CARD = """---
dataset_info:
- config_name: plain
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names: {'0': zebra, '1': ape}
  splits:
  - {name: train, num_bytes: 9, num_examples: 5}
  - {name: test, num_bytes: 9, num_examples: 3}
configs:
- config_name: plain
  data_files:
  - {split: train, path: data/train-*}
  - {split: test, path: data/test-*}
  default: true
- config_name: swapped
  data_files:
  - {split: train, path: data/test-*}
  - {split: test, path: data/train-*}
---
"""


@pytest.fixture
def with_card(tmp_path):
    """A set as the Hub's own ones are: its card lists splits, sizes and class names."""
    write(tmp_path / "set", "train", pixels(5), [0, 1, 2, 3, 4])
    write(tmp_path / "set", "test", pixels(3), [5, 6, 7])
    (tmp_path / "set" / "README.md").write_text(CARD)
    return tmp_path / "set"


def test_card__opens_no_other_split(tmp_path, with_card):
    parquet(with_card, "train").write_bytes(GARBAGE)
    assert hub(tmp_path).load("evaluation").labels.tolist() == [5, 6, 7]
    assert hub(tmp_path, name="swapped").load("train").labels.tolist() == [5, 6, 7]


def test_card__several_configurations(tmp_path, with_card):
    card = with_card / "README.md"
    configurations = card.read_text().replace("  default: true\n", "").split("configs:")[1]
    card.write_text(f"---\nconfigs:{configurations}")
    with pytest.raises(InputError, match=r"set' cannot be opened \(.*plain.*swapped"):
        hub(tmp_path).load("evaluation")


def test_class_names__of_the_card_or_the_files(tmp_path, with_card, monkeypatch):
    """No image is opened."""
    monkeypatch.setattr(Image, "open", None)
    for path in ("train", "test"):
        (with_card / "data" / f"{path}.bak").write_bytes(parquet(with_card, path).read_bytes())
        parquet(with_card, path).write_bytes(GARBAGE)
    assert hub(tmp_path).class_names() == ["zebra", "ape"]
    (with_card / "README.md").unlink()
    (with_card / "data" / "test.bak").rename(parquet(with_card, "test"))
    assert hub(tmp_path).class_names() == list("abcdefgh")


def test_labels__without_names(tmp_path):
    write(tmp_path / "set", "test", pixels(3), [3, None, -1], kind=datasets.Value("int64"))
    with pytest.raises(InputError, match=r"does not name its classes.*set class_names"):
        hub(tmp_path).class_names()
    assert hub(tmp_path).load("evaluation").labels.tolist() == [3, -1, -1]
    write(tmp_path / "texts", "test", pixels(2), ["cat", "dog"], kind=datasets.Value("string"))
    with pytest.raises(InputError, match=r"'label'.*no class numbers.*label_column"):
        HubImages(str(tmp_path / "texts"), (3, 8, 8)).load("evaluation")


def test_splits__given(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "seen", pixels(2), [0, 1])
    write(tmp_path / "set", "holdout", pixels(2), [5, 6])
    files = [{"split": name, "path": f"data/{name}-*"} for name in ("seen", "holdout")]
    card = f"---\nconfigs:\n- {{config_name: default, data_files: {json.dumps(files)}}}\n---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    with pytest.raises(InputError, match=r"no split test.*it has seen, holdout"):
        hub(tmp_path).load("evaluation")
    names = {"train_split": "seen", "evaluation_split": "holdout"}
    source = hub(tmp_path, **names)
    assert source.load("evaluation").labels.tolist() == [5, 6]
    assert source.load("train").labels.tolist() == [0, 1]


def test_load__from_disk_as_in_memory(tmp_path):
    arrays = [pixels(1, size)[0] for size in ((8, 8), (9, 20), (30, 10), (5, 5))]
    write(tmp_path / "set", "test", arrays, [0, 1, 2, 3])
    kept = hub(tmp_path, crop=0.8).load("evaluation")
    streamed = hub(tmp_path, crop=0.8, in_memory=False, workers=2).load("evaluation")
    assert streamed.labels.tolist() == [0, 1, 2, 3]
    images = torch.cat([images for images, _ in Batches(streamed, 2)])
    assert torch.equal(images, kept.images)


def test_load__damaged_image(tmp_path):
    write(tmp_path / "set", "test", pixels(4), [0, 1, 2, 3])
    table = pyarrow.parquet.read_table(parquet(tmp_path / "set", "test"))
    rows = table.to_pylist()
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:70]
    damaged = pyarrow.Table.from_pylist(rows, schema=table.schema)
    pyarrow.parquet.write_table(damaged, parquet(tmp_path / "set", "test"))
    with pytest.raises(InputError, match=r"row 2 of the split 'test'.*corrupt=skip"):
        hub(tmp_path).load("evaluation")
    images, labels = hub(tmp_path, corrupt="skip").load("evaluation")
    np.testing.assert_array_equal(images.numpy(), pixels(4)[[0, 1, 3]].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 1, 3]


@pytest.mark.parametrize("whole", [False, True])
def test_load__downloaded_before(tmp_path, whole):
    write(tmp_path / "set", "test", pixels(3), [1, 2, 3])
    write(tmp_path / "set", "test_b", pixels(2), [4, 5])
    datasets.load_dataset(str(tmp_path / "set")) if whole else hub(tmp_path).load("evaluation")
    # This is where `datasets` keeps what comes from the Hub.
    (tmp_path / "cache" / "set").rename(tmp_path / "cache" / "someone___some_set")
    source = HubImages("someone/SomeSet", (3, 8, 8))
    images, labels = source.load("evaluation")
    np.testing.assert_array_equal(images.numpy(), pixels(3).transpose(0, 3, 1, 2))
    assert labels.tolist() == [1, 2, 3]
    assert source.class_names() == list("abcdefgh")
    with pytest.raises(InputError, match=r"someone/SomeSet|no split train"):
        source.load("train")


def test_load__folder_of_pictures(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("test", "b")):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        Image.fromarray(pixels(1)[0]).save(tmp_path / "set" / split / name / "1.png")
    with pytest.raises(InputError, match=r"read it with nayer_pl\.FolderImages"):
        hub(tmp_path).load("evaluation")


@pytest.mark.parametrize("alike", [True, False])
def test_class_names__pictures_on_the_hub(tmp_path, monkeypatch, alike):
    """`datasets` would give the second class of training the label 0 in the other split."""
    for split, names in (("train", "ab"), ("test", "ab" if alike else "b")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(pixels(1)[0]).save(tmp_path / split / name / "1.png")
    load = datasets.load_dataset_builder
    monkeypatch.setattr(HubImages, "_location", lambda self: "me/pets")
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda _, *rest, **files: load(str(tmp_path), **files)
    )
    source = HubImages("me/pets", (3, 8, 8))
    if alike:
        assert source.class_names() == ["a", "b"]
    else:
        with pytest.raises(InputError, match="do not have the same class folders; download it"):
            source.class_names()


@needs_shared
def test_load__tiny_imagenet():
    folder = SHARED / "tiny_imagenet"
    source = HubImages(str(folder), (3, 64, 64), in_memory=False, workers=0)
    file = folder / "data" / "validation-00000-of-00001.parquet"
    rows = next(pyarrow.parquet.ParquetFile(file).iter_batches(200)).to_pylist()
    images, labels = next(iter(Batches(source.load("evaluation"), 200)))
    assert labels.tolist() == [row["label"] for row in rows]
    modes = set()
    for image, row in zip(images.numpy(), rows, strict=True):
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        modes.add(picture.mode)
        channels = np.array(picture)
        expected = channels.transpose(2, 0, 1) if channels.ndim == 3 else np.stack([channels] * 3)
        np.testing.assert_array_equal(image, expected)
    assert modes == {"RGB", "L"}
