import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from nayer_pl import FolderImages, InputError
from nayer_pl.data import Batches, open_split

SHAPE = (3, 6, 6)


def picture(path, value):
    """One gray value everywhere, without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 6, 3), value, dtype=np.uint8)).save(path, "PNG")


@pytest.fixture
def pets(tmp_path):
    """Train: cat 10, 11; dog 20; emu 30. Test: cat 110; emu 130, 131."""
    for name, values in {
        "train/cat": [10, 11], "train/dog": [20], "train/emu": [30],
        "test/cat": [110], "test/emu": [130, 131],
    }.items():  # fmt: skip
        for value in values:
            picture(tmp_path / "pets" / name / f"{value}.png", value)
    return tmp_path / "pets"


def seen(source, split):
    """{value of the image: its label}"""
    images, labels = source.load(split)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    assert images.shape == (len(labels), *source.image_shape)
    return dict(zip(images[:, 0, 0, 0].tolist(), labels.tolist(), strict=True))


def test_labels__another_number_of_folders(pets):
    """Without a folder for the bee, the cat's pictures would count as bees."""
    source = FolderImages(str(pets), SHAPE)
    with pytest.raises(InputError, match=r"There are 3 class folders, but num_classes=4"):
        open_split(source, "evaluation", 4)
    assert open_split(source, "evaluation", 3).labels.tolist() == [0, 2, 2]
    given = FolderImages(str(pets), SHAPE, classes=["bee", "cat", "dog", "emu"])
    assert open_split(given, "evaluation", 4).labels.tolist() == [1, 3, 3]


@pytest.mark.parametrize(
    ("train", "evaluation", "options"),
    [
        ("train", "test", {}),
        ("train", "validation", {}),
        ("train", "valid", {}),
        ("train", "val", {}),
        ("seen", "held out", {"train_split": "seen", "evaluation_split": "held out"}),
        ("train", "test", {"evaluation_split": ["validation", "test"]}),  # the first that is there
    ],
)
def test_splits__names(pets, train, evaluation, options):
    (pets / "train").rename(pets / train)
    (pets / "test").rename(pets / evaluation)
    source = FolderImages(str(pets), SHAPE, **options)
    assert seen(source, "train") == {10: 0, 11: 0, 20: 1, 30: 2}
    assert seen(source, "evaluation") == {110: 0, 130: 2, 131: 2}  # there is no dog
    assert source.class_names() == ["cat", "dog", "emu"]


def test_splits__missing(pets):
    (pets / "test").rename(pets / "holdout")
    with pytest.raises(InputError, match=r"no folder test or validation.*it has train"):
        FolderImages(str(pets), SHAPE).load("evaluation")
    with pytest.raises(InputError, match="no folder dev"):
        FolderImages(str(pets), SHAPE, evaluation_split="dev").load("evaluation")


def test_splits__class_folders_alone(pets):
    source = FolderImages(str(pets / "train"), SHAPE)
    assert seen(source, "evaluation") == {10: 0, 11: 0, 20: 1, 30: 2}
    assert source.class_names() == ["cat", "dog", "emu"]
    with pytest.raises(InputError, match=r"train/train/CLASS/.*train/test/CLASS/"):
        source.load("train")


def test_splits__evaluation_alone(pets):
    shutil.rmtree(pets / "train")
    assert seen(FolderImages(str(pets), SHAPE), "evaluation") == {110: 0, 130: 1, 131: 1}


def test_splits__class_called_train(tmp_path):
    for i, name in enumerate(["bus", "test", "train"]):
        picture(tmp_path / name / "a.png", i)
    assert seen(FolderImages(str(tmp_path), SHAPE), "evaluation") == {0: 0, 1: 1, 2: 2}


def test_labels__unknown_class(pets):
    picture(pets / "test" / "ant" / "1.png", 1)
    with pytest.raises(InputError, match=r"test/ant' is none of the 3 classes \(cat, dog, emu"):
        FolderImages(str(pets), SHAPE).load("evaluation")
    assert seen(FolderImages(str(pets), SHAPE), "train") == {10: 0, 11: 0, 20: 1, 30: 2}


@pytest.mark.parametrize("as_file", [False, True])
def test_classes__given(pets, tmp_path, as_file):
    classes = ["emu", "yak", "cat", "dog"]
    if as_file:
        (tmp_path / "classes.txt").write_text("emu\n\n yak \ncat\ndog\n")
    given = str(tmp_path / "classes.txt") if as_file else classes
    source = FolderImages(str(pets), SHAPE, classes=given)
    assert seen(source, "train") == {30: 0, 10: 2, 11: 2, 20: 3}
    assert seen(source, "evaluation") == {130: 0, 131: 0, 110: 2}
    assert source.class_names() == classes


def test_classes__missing_or_twice(pets):
    with pytest.raises(InputError, match=r"emu' is none of the 2 classes"):
        FolderImages(str(pets), SHAPE, classes=["dog", "cat"]).load("evaluation")
    with pytest.raises(InputError, match="twice"):
        FolderImages(str(pets), SHAPE, classes=["dog", "cat", "dog", "emu"]).load("evaluation")


def test_files__nested_and_any_suffix(pets):
    cats = pets / "test" / "cat"
    picture(cats / "more" / "deep" / "a.PNG", 111)
    picture(cats / "b.JPG", 112)  # a PNG all the same
    picture(cats / ".ipynb_checkpoints" / "c.png", 113)
    for name in ("Thumbs.db", ".DS_Store", "notes.txt", "._b.JPG", "list.csv"):
        (cats / name).write_bytes(b"not an image")
    (pets / "test" / ".cache").mkdir()
    (pets / "test" / "readme.md").write_text("")
    source = FolderImages(str(pets), SHAPE)
    assert seen(source, "evaluation") == {110: 0, 111: 0, 112: 0, 130: 2, 131: 2}


def test_load__opens_no_other_split(pets):
    for path in (pets / "train").rglob("*.png"):
        path.write_bytes(b"garbage")
    source = FolderImages(str(pets), SHAPE)
    assert len(source.load("evaluation").labels) == 3
    with pytest.raises(InputError, match=r"cat/10.png \(no known image format\) \(and 3 more"):
        source.load("train")


def test_load__truncated_file(pets):
    damaged = pets / "test" / "emu" / "130.png"
    damaged.write_bytes(damaged.read_bytes()[:45])
    with pytest.raises(InputError, match=r"test/emu/130.png"):
        FolderImages(str(pets), SHAPE).load("evaluation")
    source = FolderImages(str(pets), SHAPE, corrupt="skip")
    assert seen(source, "evaluation") == {110: 0, 131: 2}
    streamed = FolderImages(str(pets), SHAPE, corrupt="skip", in_memory=False, workers=1)
    [(images, labels)] = Batches(streamed.load("evaluation"), 3)
    assert images[:, 0, 0, 0].tolist() == [110, 131]
    assert labels.tolist() == [0, 2]


def test_load__random_crops_from_disk(tmp_path):
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (24, 1))
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i in range(4):
            Image.fromarray(ramp).save(tmp_path / split / "a" / f"{i}.png")
    source = FolderImages(str(tmp_path), (1, 8, 8), in_memory=False, workers=0)
    [(evaluation, _)] = Batches(source.load("evaluation"), 4)
    assert (evaluation == evaluation[0]).all()
    epochs = [next(iter(Batches(source.load("train"), 4, True, 0, epoch)))[0] for epoch in (0, 1)]
    every = torch.cat([evaluation[:1], *epochs])
    assert len({image.numpy().tobytes() for image in every}) == 9


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "set path to a folder"),
        ("nowhere", "nowhere' does not exist"),
        ("file", "file' is not a folder"),
        ("empty", "empty' has no class folders"),
        ("flat", "flat' has no class folders"),
        ("texts", "no images in the class folders of '.*texts'"),
    ],
)
def test_load__folder_without_images(tmp_path, path, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    picture(tmp_path / "flat" / "1.png", 1)
    (tmp_path / "texts" / "a").mkdir(parents=True)
    (tmp_path / "texts" / "a" / "notes.txt").write_text("")
    where = None if path is None else str(tmp_path / path)
    with pytest.raises(InputError, match=message):
        FolderImages(where, SHAPE).load("evaluation")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"corrupt": "ignore"}, "corrupt must be"),
        ({"crop": 0}, "crop must be"),
        ({"crop": 1.2}, "crop must be"),
        ({"workers": -1}, "workers must be"),
        ({"image_shape": (2, 8, 8)}, "C = 1 or 3"),
        ({"image_shape": (8, 8)}, "C = 1 or 3"),
    ],
)
def test_options__out_of_range(option, message):
    with pytest.raises(InputError, match=message):
        FolderImages("anywhere", **{"image_shape": SHAPE, **option})
