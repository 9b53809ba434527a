"""Every file of conf/experiment and row of NAYER's tables, for one short epoch on stand-in data."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from nayer_pl import save_classifier
from nayer_pl.app.instantiate import build
from nayer_pl.app.train import train
from nayer_pl.networks import Classifier, build_network

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPERIMENTS = [path.stem for path in sorted((CONF / "experiment").glob("*.yaml"))]
CIFAR = ["resnet34 resnet18", "vgg11 resnet18"]
CIFAR += [f"wrn40_2 {student}" for student in ("wrn16_1", "wrn16_2", "wrn40_1")]
IMAGENET = ["resnet18_imagenet", "resnet50_imagenet", "mobilenetv2_imagenet"]
ROWS = [
    *(f"{data} {pair}" for data in ("cifar10", "cifar100") for pair in CIFAR),
    "tinyimagenet resnet34 resnet18",
    *(f"imagenet resnet50_imagenet {student}" for student in IMAGENET),
]
# Less of everything, but the experiment's own networks, data set, losses and order of work.
SHORT = [
    "plan.epochs=1", "plan.warmup_epochs=0", "plan.rounds_per_epoch=1", "plan.kd_steps=1",
    "plan.round_size=4", "plan.batch_size=4", "plan.allow_partial_classes=true",
    "model.generator_steps=1", "model.check_teacher=false", "train_missing_teacher=false",
    "text_encoder=file", "trainer.accelerator=cpu", "logger=csv", "callbacks={progress:null}",
]  # fmt: skip


@pytest.fixture
def stand_in_set(tmp_path):
    """A data set folder in Hugging Face's layout: four pictures of one split."""

    def make(split, size, labels):
        rng = np.random.default_rng(0)
        pictures = [
            Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in labels
        ]
        folder = tmp_path / "set" / "data"
        folder.mkdir(parents=True)
        rows = datasets.Dataset.from_dict({"image": pictures, "label": labels})
        rows.cast_column("image", datasets.Image()).to_parquet(folder / f"{split}-0.parquet")
        return folder.parent

    return make


def row(text):
    names = zip(("data", "teacher", "student"), text.split(), strict=True)
    typed = [f"{group}={name}" for group, name in names]
    # The other rows' networks take too long; this one has the smallest of ImageNet's.
    slow = text != "imagenet resnet50_imagenet resnet18_imagenet"
    return pytest.param(typed, id="-".join(text.split()), marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(
    "chosen",
    [*(pytest.param([f"experiment={e}"], id=e) for e in EXPERIMENTS), *map(row, ROWS)],
)
def test_one_short_epoch(config, chosen, stand_in_set, tmp_path):
    overrides = [*chosen, *SHORT, f"text_encoder.path={tmp_path}/embeddings.npy"]
    cfg = config(*overrides)
    data = cfg.data
    np.save(cfg.text_encoder.path, np.random.default_rng(0).normal(size=(data.num_classes, 8)))
    if data.name != "digits":
        split = "validation" if data.name == "imagenet" else "test"
        labels = [0, 1, 2, data.num_classes - 1]
        folder = stand_in_set(split, min(data.image_shape[1], 64), labels)
        overrides += [f"data.path={folder}", "data.workers=0"]
    if data.name == "imagenet":
        overrides += ["data.image_shape=[3,32,32]"]
    if cfg.teacher.weights is not None:
        architecture = {"num_classes": data.num_classes, "channels": data.image_shape[0]}
        teacher = build_network({**cfg.teacher.architecture, **architecture})
        file = tmp_path / "teacher.safetensors"
        save_classifier(file, Classifier(teacher, data.mean, data.std))
        overrides += [f"teacher.weights={file}"]
    summary, objects = train(config(*overrides))
    assert summary["images_banked"] == 4
    assert summary["student_updates"] == 1
    assert 0 <= summary["student_accuracy"] <= 1
    if "teacher=vgg11" not in chosen:  # the paper teaches a larger student there
        assert summary["teacher_parameters"] >= summary["student_parameters"]
    student = build(config(*overrides).student)
    trained = objects["method"].student
    assert trained.description["architecture"] == student.description["architecture"]
