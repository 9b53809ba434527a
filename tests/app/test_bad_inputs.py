"""Each kind of mistake is one sentence that names the option and what to do, before any work."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from nayer_pl import Classifier, InputError, TextEncoder, save_classifier
from nayer_pl.app.run_dir import resolve_class_names
from nayer_pl.app.train import train
from nayer_pl.distillation import DataFreeDistillation
from nayer_pl.methods import Supervised
from nayer_pl.networks import wrn16_1

QUICK = ("trainer.accelerator=cpu", "logger=csv", "callbacks.progress=null", "run_dir=run")
# A run of digits with a teacher and embeddings that are there; every case spoils something.
DISTILL = (
    *QUICK, "experiment=digits", "train_missing_teacher=false",
    "teacher.weights=teacher.safetensors", "model.check_teacher=false", "model.generator.width=4",
    "model.noisy_features=8", "plan.round_size=10", "plan.batch_size=8",
    "text_encoder=file", "text_encoder.path=text.npy",
)  # fmt: skip
TEACH = (
    *QUICK, "model=supervised", "data=digits", "teacher=wrn16_1", "teacher.weights=new.safetensors",
)  # fmt: skip
PICTURES = (
    "data=folder", "data.path=pictures", "data.image_shape=[1,16,16]", "data.mean=[0.3]",
    "data.std=[0.3]", "data.workers=0", "data.num_classes=10",
)  # fmt: skip
UNTRAINED = ("train_missing_teacher=true", "teacher.weights=untrained.safetensors")
LAST = "run/checkpoints/last.ckpt"


@pytest.fixture
def files(tmp_path: Path) -> None:
    """A teacher of digits that was never trained, embeddings of ten names, and damaged files."""
    torch.manual_seed(0)
    teacher = Classifier(wrn16_1(num_classes=10, channels=1), [0.3053], [0.3398])
    save_classifier(tmp_path / "teacher.safetensors", teacher)
    np.save(tmp_path / "text.npy", np.random.default_rng(0).random((10, 4)))
    for name in ("teacher.safetensors", "text.npy"):
        shutil.copy(tmp_path / name, tmp_path / f"cut_{name}")
        os.truncate(tmp_path / f"cut_{name}", (tmp_path / name).stat().st_size // 2)
    (tmp_path / "used" / "bank").mkdir(parents=True)
    (tmp_path / "text.txt").write_text("hello, this is text, as long as a header\n")
    np.save(tmp_path / "nine.npy", np.ones((9, 4)))
    for name in "abcdefghij":
        path = tmp_path / "pictures" / "test" / name
        path.mkdir(parents=True)
        Image.fromarray(np.full((16, 16), 9, np.uint8)).save(path / "1.png")
    shutil.copytree(tmp_path / "pictures", tmp_path / "damaged")
    shutil.copy(tmp_path / "text.txt", tmp_path / "damaged" / "test" / "c" / "1.png")


@pytest.fixture(autouse=True)
def _no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step, no language model at work, and no network."""

    def never(*_: object) -> None:
        pytest.fail("the mistake was found too late")

    monkeypatch.setattr(DataFreeDistillation, "training_step", never)
    monkeypatch.setattr(Supervised, "training_step", never)
    monkeypatch.setattr(TextEncoder, "_pool", never)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


# What was typed, and what the answer must hold: an option or file, and what is allowed or to do.
CASES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    # A value of another type
    (("seed=a",), ("seed must", "whole number")),
    (("model.generator_betas=[0.5]",), ("model.generator_betas", "2")),
    (("prompts='a {name}'", "text_encoder=minilm"), ("prompts must", "a list")),
    # Out of range
    (("model.generator_steps=0",), ("model.generator_steps", "at least 1")),
    (("seed=-1",), ("seed", "0")),
    (("trainer.log_every_n_steps=0",), ("trainer.log_every_n_steps", "at least 1")),
    (("checkpoint.minutes=-1", *UNTRAINED), ("checkpoint.minutes", "")),
    (("data.crop=0", *PICTURES), ("data.crop", "0")),
    (("model.label_smoothing=1", *TEACH), ("model.label_smoothing", "1")),
    # Unknown, misspelt, missing
    (("+plan.epoch=3",), ("plan.epoch;", "did you mean 'epochs'")),
    (("text_encoder.path='???'",), ("text_encoder.path", "text_encoder.path=VALUE")),
    (("teacher.architecture._target_=my.Net",), ("'my.Net'", "import path")),
    (("data.path=null", *PICTURES[2:], "data=folder"), ("data.path", "folder")),
    # Not one of the choices
    (("model.conditioning=lt",), ("model.conditioning", "lte")),
    (("resume=always",), ("resume", "auto")),
    (("data.corrupt=mend", *PICTURES), ("corrupt", "skip")),
    (("trainer.precision=bf16-true",), ("trainer.precision", "bf16-mixed")),
    (("export.path=student.pth",), ("export.path", ".safetensors")),
    # A path where nothing is, or nothing can be
    (("teacher.weights=w.pth",), ("'w.pth'", "python train.py model=supervised data=digits")),
    (("student.weights=w.pth",), ("'w.pth'", "exist")),
    (("bank.initial=b.safetensors",), ("'b.safetensors'", "no such file")),
    (("text_encoder.path=nowhere.npy",), ("'nowhere.npy'", "path")),
    (("data.class_names=names.txt",), ("'names.txt'", "")),
    ((*PICTURES, "data.path=nowhere"), ("'nowhere'", "data.path")),
    (("ckpt_path=nowhere.ckpt",), ("'nowhere.ckpt'", "no checkpoint")),
    (("run_dir=text.npy",), ("text.npy'", "run_dir=PATH")),
    (("run_dir=used",), ("already holds a run; ", "resume=auto")),
    (("export.path=text.npy/student.safetensors",), ("export.path=PATH", "")),
    (("export.path=teacher.safetensors",), ("'teacher.safetensors' exists", "export.path=PATH")),
    (("teacher.weights=teacher.safetensors", *TEACH[:-1]), ("exists", "teacher.weights=PATH")),
    (("export.path=teacher.safetensors", *UNTRAINED), ("'teacher.safetensors' exists", "")),
    # Files that are damaged, or something else
    (("teacher.weights=cut_teacher.safetensors",), ("'cut_teacher.safetensors'", "copy it again")),
    (("text_encoder.path=cut_text.npy",), ("cut_text.npy", "cannot be read")),
    (("bank.initial=cut_teacher.safetensors",), ("'cut_teacher.safetensors'", "saved memory bank")),
    ((*PICTURES, "data.path=damaged"), ("damaged/test/c/1.png (", "corrupt=skip")),
    (("ckpt_path=text.txt",), ("text.txt", "cannot be continued from")),
    # What does not fit together
    (("plan.warmup_epochs=0", "plan.rounds_per_epoch=0"), ("no images", "warm-up")),
    (("plan.round_size=9",), ("plan.round_size", "plan.allow_partial_classes=")),
    (("data.num_classes=9",), ("10 class names", "data.class_names")),
    (("text_encoder.path=nine.npy",), ("9 embeddings", "10 class names")),
    (("teacher.std=[0.3,0.3,0.3]",), ("std", "as many values")),
    (("student.architecture.num_classes=7",), ("7 outputs", "10")),
    (("data.image_shape=[1,18,18]",), ("sides divisible by 4", "")),
    (("model.check_teacher=true",), ("guessing", "check_teacher=False")),
    (("teacher.weights=null",), ("nothing to teach", "")),
    (("+trainer.check_val_every_n_epoch=5",), ("trainer.check_val_every_n_epoch", "a divisor of")),
]  # fmt: skip


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("typed", "answers"), CASES, ids=lambda part: part[0])
def test_train__mistake(config, typed, answers):
    run = () if "model=supervised" in typed else DISTILL
    if "text_encoder=minilm" in typed:
        run = [option for option in run if not option.startswith("text_encoder")]
    with pytest.raises(InputError) as caught:
        train(config(*run, *typed))
    message = str(caught.value)
    assert [answer for answer in answers if answer not in message] == [], message
    assert "\n" not in message


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "typed", [DISTILL, (*DISTILL, *PICTURES), TEACH], ids=lambda part: part[-1]
)
def test_train__no_mistake(config, typed):
    with pytest.raises(pytest.fail.Exception, match="found too late"):
        train(config(*typed))


def test_train__finished_run(config, caplog):
    Path("run").mkdir()
    Path("run/summary.json").write_text('{"student_accuracy": 0.5}')
    with caplog.at_level("INFO", "nayer_pl"):
        assert train(config("resume=auto", *DISTILL)) == ({"student_accuracy": 0.5}, {})
    assert "'run' holds a finished run" in caplog.text
    assert os.listdir("run") == ["summary.json"]


@pytest.mark.parametrize("finished", [True, False])
def test_train__other_settings(config, finished):
    """A run neither resumes, nor counts as finished, with another data set."""
    Path(LAST).parent.mkdir(parents=True)
    if finished:
        Path("run/summary.json").write_text("{}")
    torch.save({"nayer_pl": {"format": 1}, "weights": torch.zeros(10_000)}, LAST)
    before = config(*DISTILL)
    resolve_class_names(before)
    before.data.name = "cifar10"
    Path("run/config.yaml").write_text(OmegaConf.to_yaml(before, resolve=True))
    with pytest.raises(InputError, match=r"settings: data\.name=digits \(was cifar10\)"):
        train(config("resume=auto", *DISTILL))
