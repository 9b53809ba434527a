import numpy as np
import pytest
import torch
from PIL import Image

from nayer_pl import FolderImages, InputError
from nayer_pl.data import Batches
from nayer_pl.data.images import open_split

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


def test_labels_follow_the_sorted_folders_of_the_whole_set(pets):
    source = FolderImages(str(pets), SHAPE)
    assert seen(source, "train") == {10: 0, 11: 0, 20: 1, 30: 2}
    assert seen(source, "evaluation") == {110: 0, 130: 2, 131: 2}  # there is no dog
    assert source.class_names() == ["cat", "dog", "emu"]


def test_folders_that_are_not_one_for_each_class_are_refused(pets):
    """Without a folder for the bee, the cat's pictures would count as bees."""
    source = FolderImages(str(pets), SHAPE)
    with pytest.raises(InputError, match=r"There are 3 class folders, but data\.num_classes=4"):
        open_split(source, "evaluation", 4)
    assert open_split(source, "evaluation", 3).labels.tolist() == [0, 2, 2]
    given = FolderImages(str(pets), SHAPE, classes=["bee", "cat", "dog", "emu"])
    assert open_split(given, "evaluation", 4).labels.tolist() == [1, 3, 3]


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_evaluation_folder_may_have_any_of_its_names(pets, name):
    (pets / "test").rename(pets / name)
    assert seen(FolderImages(str(pets), SHAPE), "evaluation") == {110: 0, 130: 2, 131: 2}


def test_other_names_of_splits_can_be_given(pets):
    (pets / "train").rename(pets / "seen")
    (pets / "test").rename(pets / "held out")
    source = FolderImages(str(pets), SHAPE, train_split="seen", evaluation_split="held out")
    assert seen(source, "train") == {10: 0, 11: 0, 20: 1, 30: 2}
    assert seen(source, "evaluation") == {110: 0, 130: 2, 131: 2}


def test_first_of_several_names_that_is_there(pets):
    source = FolderImages(str(pets), SHAPE, evaluation_split=["validation", "test"])
    assert seen(source, "evaluation") == {110: 0, 130: 2, 131: 2}


def test_missing_split_says_what_there_is(pets):
    (pets / "test").rename(pets / "holdout")
    with pytest.raises(InputError, match=r"no folder test or validation.*it has train"):
        FolderImages(str(pets), SHAPE).load("evaluation")
    with pytest.raises(InputError, match="no folder dev"):
        FolderImages(str(pets), SHAPE, evaluation_split="dev").load("evaluation")


def test_class_folders_alone_are_for_evaluation(pets):
    source = FolderImages(str(pets / "train"), SHAPE)
    assert seen(source, "evaluation") == {10: 0, 11: 0, 20: 1, 30: 2}
    assert source.class_names() == ["cat", "dog", "emu"]
    with pytest.raises(InputError, match=r"train/train/CLASS/.*train/test/CLASS/"):
        source.load("train")


def test_evaluation_split_without_a_training_split(pets):
    for path in sorted((pets / "train").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (pets / "train").rmdir()
    assert seen(FolderImages(str(pets), SHAPE), "evaluation") == {110: 0, 130: 1, 131: 1}


def test_a_class_may_be_called_train(tmp_path):
    for i, name in enumerate(["bus", "test", "train"]):
        picture(tmp_path / name / "a.png", i)
    assert seen(FolderImages(str(tmp_path), SHAPE), "evaluation") == {0: 0, 1: 1, 2: 2}


def test_a_class_that_training_does_not_know_is_an_error(pets):
    picture(pets / "test" / "ant" / "1.png", 1)
    with pytest.raises(InputError, match=r"test/ant' is none of the 3 classes \(cat, dog, emu"):
        FolderImages(str(pets), SHAPE).load("evaluation")
    assert seen(FolderImages(str(pets), SHAPE), "train") == {10: 0, 11: 0, 20: 1, 30: 2}


@pytest.mark.parametrize("as_file", [False, True])
def test_labels_follow_given_classes(pets, tmp_path, as_file):
    classes = ["emu", "yak", "cat", "dog"]
    if as_file:
        (tmp_path / "classes.txt").write_text("emu\n\n yak \ncat\ndog\n")
    given = str(tmp_path / "classes.txt") if as_file else classes
    source = FolderImages(str(pets), SHAPE, classes=given)
    assert seen(source, "train") == {30: 0, 10: 2, 11: 2, 20: 3}
    assert seen(source, "evaluation") == {130: 0, 131: 0, 110: 2}
    assert source.class_names() == classes


def test_given_classes_must_hold_every_folder_once(pets):
    with pytest.raises(InputError, match=r"emu' is none of the 2 classes"):
        FolderImages(str(pets), SHAPE, classes=["dog", "cat"]).load("evaluation")
    with pytest.raises(InputError, match="twice"):
        FolderImages(str(pets), SHAPE, classes=["dog", "cat", "dog", "emu"]).load("evaluation")


def test_nested_files_and_any_suffix_are_read_and_nothing_else_is(pets):
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


def test_evaluation_reads_no_training_picture(pets):
    for path in (pets / "train").rglob("*.png"):
        path.write_bytes(b"garbage")
    source = FolderImages(str(pets), SHAPE)
    assert len(source.load("evaluation").labels) == 3
    with pytest.raises(
        InputError, match=r"train/cat/10.png \(no known image format\) \(and 3 more"
    ):
        source.load("train")


def test_truncated_file_is_named_or_left_out(pets):
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


def test_from_disk_only_training_is_cropped_at_random(tmp_path):
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
        (None, r"data\.path=FOLDER"),
        ("nowhere", "nowhere' does not exist"),
        ("file", "file' is not a folder"),
        ("empty", "empty' has no class folders"),
        ("flat", "flat' has no class folders"),
        ("texts", "no images in the class folders of '.*texts'"),
    ],
)
def test_folder_without_images_in_class_folders_is_refused(tmp_path, path, message):
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
        ({"corrupt": "ignore"}, "stop or skip, not 'ignore'"),
        ({"crop": 0}, "data.crop"),
        ({"crop": 1.2}, "data.crop"),
        ({"workers": -1}, "data.workers"),
        ({"image_shape": (2, 8, 8)}, "C = 1 or 3"),
        ({"image_shape": (8, 8)}, "C = 1 or 3"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(option, message):
    with pytest.raises(InputError, match=message):
        FolderImages("anywhere", **{"image_shape": SHAPE, **option})
