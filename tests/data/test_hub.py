import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from nayer_pl import HubImages, InputError

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
    source = HubImages(str(tmp_path / "set"), (3, 8, 8), "picture", "coarse_label")
    assert source.load("evaluation").labels.tolist() == [2, 1]
    with pytest.raises(InputError, match=r"genus.*picture, label, coarse_label"):
        HubImages(str(tmp_path / "set"), (3, 8, 8), "picture", "genus").load("evaluation")


@pytest.mark.parametrize("name", ["validation", "valid", "test"])
def test_evaluation_split_may_have_any_of_its_names(tmp_path, name):
    write(tmp_path / "set", "train", pixels(2), [0, 0])
    write(tmp_path / "set", name, pixels(2), [5, 6])
    labels = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation").labels
    assert labels.tolist() == [5, 6]


def test_grey_images_in_a_colour_set_fill_all_channels(tmp_path):
    grey, colour = pixels(1, channels=1)[0], pixels(1)[0]
    write(tmp_path / "set", "test", [colour, grey], [0, 1])
    images = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation").images.numpy()
    np.testing.assert_array_equal(images[0], colour.transpose(2, 0, 1))
    np.testing.assert_array_equal(images[1], np.stack([grey] * 3))


def test_colour_images_in_a_grey_set_become_their_luminance(tmp_path):
    grey, colour = pixels(1, channels=1)[0], pixels(1)[0]
    write(tmp_path / "set", "test", [colour, grey], [0, 1])
    images = HubImages(str(tmp_path / "set"), (1, 8, 8)).load("evaluation").images.numpy()
    assert images.shape == (2, 1, 8, 8)
    luminance = colour @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert np.abs(images[0, 0] - luminance).max() <= 1
    np.testing.assert_array_equal(images[1, 0], grey)


def test_images_of_other_sizes_are_resized(tmp_path):
    flat = np.full((4, 12, 3), (10, 100, 200), dtype=np.uint8)
    ramp = np.repeat(np.arange(0, 256, 8, dtype=np.uint8)[None], 16, axis=0)  # 16 high, 32 wide
    exact = pixels(1)[0]
    write(tmp_path / "set", "test", [flat, ramp, exact], [0, 1, 2])
    images = HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation").images.numpy()
    assert images.shape == (3, 3, 8, 8)
    assert (images[0] == np.array([10, 100, 200])[:, None, None]).all()
    # Four columns of the ramp become one: inside, its mean.
    inside = ramp[0].reshape(8, 4).mean(axis=1)[1:-1]
    assert np.abs(images[1, 0, :, 1:-1] - inside).max() <= 1
    np.testing.assert_array_equal(images[2], exact.transpose(2, 0, 1))


def test_height_and_width_are_not_confused(tmp_path):
    tall = pixels(2, size=(12, 5))
    write(tmp_path / "set", "test", tall, [0, 1])
    images = HubImages(str(tmp_path / "set"), (3, 12, 5)).load("evaluation").images
    np.testing.assert_array_equal(images.numpy(), tall.transpose(0, 3, 1, 2))


def test_missing_split_says_what_there_is(tmp_path):
    write(tmp_path / "set", "train", pixels(2), [0, 1])
    with pytest.raises(InputError, match=r"validation.*it has train"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_missing_or_empty_folder_is_an_input_error_that_names_it(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{name}.*data.source.path"):
        HubImages(str(tmp_path / name), (3, 8, 8)).load("evaluation")


def test_unreachable_hub_is_an_input_error_that_names_the_set():
    with pytest.raises(InputError, match="someone/something"):
        HubImages("someone/something", (3, 8, 8)).load("evaluation")


def test_set_of_several_configurations_is_an_input_error(tmp_path):
    write(tmp_path / "set", "test", pixels(2), [0, 1])
    files = "  data_files:\n  - split: test\n    path: data/test-*\n"
    card = f"---\nconfigs:\n- config_name: a\n{files}- config_name: b\n{files}---\n"
    (tmp_path / "set" / "README.md").write_text(card)
    with pytest.raises(InputError, match="set"):
        HubImages(str(tmp_path / "set"), (3, 8, 8)).load("evaluation")
