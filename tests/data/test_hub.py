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


def pixels(count, channels=3, size=(8, 8), seed=0):
    """Random images, uint8 [count, H, W] or [count, H, W, 3]."""
    shape = (count, *size) if channels == 1 else (count, *size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def parquet(folder, split):
    return folder / "data" / f"{split}-00000-of-00001.parquet"


def write(folder, split, arrays, labels, image="image", label="label", **extra):
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = {image: datasets.Image(), label: datasets.ClassLabel(names=list("abcdefgh"))}
    columns = {image: [Image.fromarray(array) for array in arrays], label: labels}
    for name, values in extra.items():
        features[name], columns[name] = datasets.Value("int64"), values
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(parquet(folder, split))


def test_splits_come_as_uint8_images_and_labels_in_order(tmp_path):
    train, test = pixels(5, seed=1), pixels(3, seed=2)
    write(tmp_path / "set", "train", train, [4, 3, 2, 1, 0])
    write(tmp_path / "set", "test", test, [7, 0, 7])
    source = HubImages(str(tmp_path / "set"), (3, 8, 8))
    for split, arrays, wanted in (
        ("train", train, [4, 3, 2, 1, 0]),
        ("evaluation", test, [7, 0, 7]),
    ):
        images, labels = source.load(split)
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        np.testing.assert_array_equal(images.numpy(), arrays.transpose(0, 3, 1, 2))
        assert labels.tolist() == wanted


def test_evaluation_never_opens_the_training_split(tmp_path):
    test = pixels(3)
    write(tmp_path / "set", "train", pixels(5), [0] * 5)
    write(tmp_path / "set", "test", test, [1, 2, 3])
    parquet(tmp_path / "set", "train").write_bytes(GARBAGE)
    source = HubImages(str(tmp_path / "set"), (3, 8, 8))
    images, labels = source.load("evaluation")
    np.testing.assert_array_equal(images.numpy(), test.transpose(0, 3, 1, 2))
    assert labels.tolist() == [1, 2, 3]
    with pytest.raises(Exception, match=r"(?i)parquet"):
        source.load("train")


def test_training_never_opens_the_evaluation_split(tmp_path):
    write(tmp_path / "set", "train", pixels(5), [0, 1, 2, 3, 4])
    write(tmp_path / "set", "test", pixels(3), [1, 2, 3])
    parquet(tmp_path / "set", "test").write_bytes(GARBAGE)
    assert HubImages(str(tmp_path / "set"), (3, 8, 8)).load("train").labels.tolist() == [*range(5)]


def test_damaged_split_is_an_input_error(tmp_path):
    write(tmp_path / "set", "test", pixels(3), [1, 2, 3])
    parquet(tmp_path / "set", "test").write_bytes(GARBAGE)
    with pytest.raises(InputError, match="set"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")


@pytest.mark.parametrize(
    ("image", "label"), [("img", "fine_label"), ("image", "labels"), ("img", "label")]
)
def test_usual_column_names_are_found(tmp_path, image, label):
    arrays = pixels(2)
    write(tmp_path / "set", "test", arrays, [5, 6], image, label, coarse_label=[0, 1])
    images, labels = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")
    np.testing.assert_array_equal(images.numpy(), arrays.transpose(0, 3, 1, 2))
    assert labels.tolist() == [5, 6]


def test_columns_can_be_named(tmp_path):
    write(tmp_path / "set", "test", pixels(2), [5, 6], "picture", coarse_label=[2, 1])
    with pytest.raises(InputError, match="picture"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")
    columns = {"image_column": "picture", "label_column": "coarse_label"}
    source = HubImages(str(tmp_path / "set"), (3, 8, 8), **columns)
    assert source.load("evaluation").labels.tolist() == [2, 1]
    with pytest.raises(InputError, match=r"genus.*picture, label, coarse_label"):
        HubImages(str(tmp_path / "set"), (3, 8, 8), **columns | {"label_column": "genus"}).load(
            "evaluation"
        )


@pytest.mark.parametrize("name", ["validation", "valid", "val", "test"])
def test_evaluation_split_may_have_any_of_its_names(tmp_path, name):
    write(tmp_path / "set", "train", pixels(2), [0, 0])
    write(tmp_path / "set", name, pixels(2), [5, 6])
    labels = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation").labels
    assert labels.tolist() == [5, 6]


def test_grey_images_in_a_colour_set_fill_all_channels(tmp_path):
    gray, color = pixels(1, channels=1)[0], pixels(1)[0]
    write(tmp_path / "set", "test", [color, gray], [0, 1])
    images = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation").images.numpy()
    np.testing.assert_array_equal(images[0], color.transpose(2, 0, 1))
    np.testing.assert_array_equal(images[1], np.stack([gray] * 3))


def test_colour_images_in_a_grey_set_become_their_luminance(tmp_path):
    gray, color = pixels(1, channels=1)[0], pixels(1)[0]
    write(tmp_path / "set", "test", [color, gray], [0, 1])
    images = HubImages(str(tmp_path / "set"), (1, 8, 8)).load("evaluation").images.numpy()
    assert images.shape == (2, 1, 8, 8)
    luminance = color @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(images[0, 0] - luminance).max() <= 1
    np.testing.assert_array_equal(images[1, 0], gray)


def test_images_of_other_sizes_are_resized_and_cropped(tmp_path):
    flat = np.full((4, 12, 3), (10, 100, 200), dtype=np.uint8)
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 16, axis=0)  # 16 high, 32 wide
    exact = pixels(1)[0]
    write(tmp_path / "set", "test", [flat, ramp, exact], [0, 1, 2])
    images = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation").images.numpy()
    assert images.shape == (3, 3, 8, 8)
    assert (images[0] == np.array([10, 100, 200])[:, None, None]).all()
    # Two columns of the ramp become one: their mean. Of 16, the 8 in the middle are kept.
    middle = ramp[0].reshape(16, 2).mean(axis=1)[4:12]
    assert np.abs(images[1] - middle).max() <= 1
    np.testing.assert_array_equal(images[2], exact.transpose(2, 0, 1))


def test_height_and_width_are_not_confused(tmp_path):
    tall = pixels(2, size=(12, 5))
    write(tmp_path / "set", "test", tall, [0, 1])
    images = HubImages(str(tmp_path / "set"), (3, 12, 5)).load("evaluation").images
    np.testing.assert_array_equal(images.numpy(), tall.transpose(0, 3, 1, 2))


def test_missing_split_says_what_there_is(tmp_path):
    write(tmp_path / "set", "train", pixels(2), [0, 1])
    with pytest.raises(InputError, match=r"no split test or validation.*it has train"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_missing_or_empty_folder_is_an_input_error_that_names_it(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"{name}.*data\.path"):
        HubImages(str(tmp_path / name), (3, 8, 8)).load("evaluation")


def test_unreachable_hub_is_an_input_error_that_names_the_set():
    with pytest.raises(InputError, match=r"someone/something.*set data\.path to a folder"):
        HubImages("someone/something", (3, 8, 8)).load("evaluation")


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


def test_card_that_lists_both_splits_does_not_ask_for_both(with_card):
    parquet(with_card, "train").write_bytes(GARBAGE)
    source = HubImages(str(with_card), (3, 8, 8))
    assert source.load("evaluation").labels.tolist() == [5, 6, 7]


def test_configuration_can_be_named(with_card):
    source = HubImages(str(with_card), (3, 8, 8), name="swapped")
    assert source.load("evaluation").labels.tolist() == [0, 1, 2, 3, 4]


def test_set_of_several_configurations_is_an_input_error(with_card):
    card = with_card / "README.md"
    configurations = card.read_text().replace("  default: true\n", "").split("configs:")[1]
    card.write_text(f"---\nconfigs:{configurations}")
    with pytest.raises(InputError, match=r"set' cannot be opened \(.*plain.*swapped"):
        HubImages(str(with_card), (3, 8, 8)).load("evaluation")


def test_class_names_are_those_of_the_card_or_of_the_files(with_card):
    for path in ("train", "test"):
        (with_card / "data" / f"{path}.bak").write_bytes(parquet(with_card, path).read_bytes())
        parquet(with_card, path).write_bytes(GARBAGE)
    assert HubImages(str(with_card), (3, 8, 8)).class_names() == ["zebra", "ape"]
    (with_card / "README.md").unlink()
    (with_card / "data" / "test.bak").rename(parquet(with_card, "test"))
    assert HubImages(str(with_card), (3, 8, 8)).class_names() == list("abcdefgh")


def test_class_names_are_found_without_opening_an_image(tmp_path, monkeypatch):
    write(tmp_path / "set", "test", pixels(2), [0, 1], image="img", label="fine_label")

    def never(*_, **__):
        raise AssertionError("opened an image")

    monkeypatch.setattr(Image, "open", never)
    assert HubImages(str(tmp_path / "set"), (3, 8, 8)).class_names() == list("abcdefgh")


def without_names(folder, labels, kind):
    folder.mkdir(parents=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value(kind)})
    columns = {"image": [Image.fromarray(a) for a in pixels(len(labels))], "label": labels}
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(folder / "test-00000-of-00001.parquet")
    return HubImages(str(folder), (3, 8, 8))


def test_set_without_class_names_asks_for_them(tmp_path):
    source = without_names(tmp_path / "set", [3, None, -1], "int64")
    with pytest.raises(InputError, match=r"does not name its classes.*data\.class_names"):
        source.class_names()
    assert source.load("evaluation").labels.tolist() == [3, -1, -1]


def test_labels_that_are_no_numbers_are_refused(tmp_path):
    source = without_names(tmp_path / "set", ["cat", "dog"], "string")
    with pytest.raises(InputError, match=r"'label'.*no class numbers.*label_column"):
        source.load("evaluation")


def test_other_split_names_can_be_given(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", "seen", pixels(2), [0, 1])
    write(tmp_path / "set", "holdout", pixels(2), [5, 6])
    files = [{"split": name, "path": f"data/{name}-*"} for name in ("seen", "holdout")]
    card = f"---\nconfigs:\n- {{config_name: default, data_files: {json.dumps(files)}}}\n---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    with pytest.raises(InputError, match=r"no split test.*it has seen, holdout"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")
    names = {"train_split": "seen", "evaluation_split": "holdout"}
    source = HubImages(str(tmp_path / "set"), (3, 8, 8), **names)
    assert source.load("evaluation").labels.tolist() == [5, 6]
    assert source.load("train").labels.tolist() == [0, 1]


def test_from_disk_is_the_same_as_in_memory(tmp_path):
    arrays = [pixels(1, channels=c, size=s, seed=i)[0] for i, (c, s) in enumerate(
        [(3, (8, 8)), (1, (8, 8)), (3, (9, 20)), (1, (30, 10)), (3, (5, 5))]
    )]  # fmt: skip
    write(tmp_path / "set", "test", arrays, [0, 1, 2, 3, 4])
    kept = HubImages(str(tmp_path / "set"), (3, 8, 8), crop=0.8).load("evaluation")
    source = HubImages(str(tmp_path / "set"), (3, 8, 8), crop=0.8, in_memory=False, workers=2)
    streamed = source.load("evaluation")
    assert streamed.labels.tolist() == [0, 1, 2, 3, 4]
    images = torch.cat([images for images, _ in Batches(streamed, 2)])
    assert torch.equal(images, kept.images)


def test_damaged_image_is_named_by_its_row_or_left_out(tmp_path):
    write(tmp_path / "set", "test", pixels(4), [0, 1, 2, 3])
    table = pyarrow.parquet.read_table(parquet(tmp_path / "set", "test"))
    rows = table.to_pylist()
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:70]
    damaged = pyarrow.Table.from_pylist(rows, schema=table.schema)
    pyarrow.parquet.write_table(damaged, parquet(tmp_path / "set", "test"))
    with pytest.raises(InputError, match=r"row 2 of the split 'test'.*data\.corrupt=skip"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")
    images, labels = HubImages(str(tmp_path / "set"), (3, 8, 8), corrupt="skip").load("evaluation")
    np.testing.assert_array_equal(images.numpy(), pixels(4)[[0, 1, 3]].transpose(0, 3, 1, 2))
    assert labels.tolist() == [0, 1, 3]


def test_what_was_downloaded_once_needs_no_network(tmp_path):
    write(tmp_path / "set", "train", pixels(5), [0] * 5)
    write(tmp_path / "set", "test", pixels(3), [1, 2, 3])
    HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")
    # This is where `datasets` keeps what comes from the Hub.
    (tmp_path / "cache" / "set").rename(tmp_path / "cache" / "someone___some_set")
    source = HubImages("someone/SomeSet", (3, 8, 8))
    images, labels = source.load("evaluation")
    np.testing.assert_array_equal(images.numpy(), pixels(3).transpose(0, 3, 1, 2))
    assert labels.tolist() == [1, 2, 3]
    assert source.class_names() == list("abcdefgh")
    with pytest.raises(InputError, match="someone/SomeSet"):
        source.load("train")


def test_folder_of_pictures_is_sent_to_the_source_that_reads_it(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("test", "b")):
        (tmp_path / "set" / split / name).mkdir(parents=True)
        Image.fromarray(pixels(1)[0]).save(tmp_path / "set" / split / name / "1.png")
    with pytest.raises(InputError, match=r"data\.source\._target_=nayer_pl\.FolderImages"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")


@pytest.mark.parametrize("alike", [True, False])
def test_pictures_on_the_hub_whose_splits_have_other_classes_are_refused(
    tmp_path, monkeypatch, alike
):
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


def test_file_instead_of_a_folder_is_an_input_error(tmp_path):
    (tmp_path / "set.parquet").write_bytes(GARBAGE)
    with pytest.raises(InputError, match=r"set\.parquet' is a file"):
        HubImages(str(tmp_path / "set.parquet"), (3, 8, 8)).load("evaluation")


@needs_shared
def test_tiny_imagenet_is_decoded_as_pil_does_by_hand():
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
