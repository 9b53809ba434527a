import csv
import json
import os
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from PIL import Image

from nayer_pl import Digits, InputError, load_classifier
from nayer_pl.run import prepare_run_dir, train

ROOT = Path(__file__).resolve().parents[1]

# A digits run of seconds: the real data, encoder, networks and files, only less of everything.
SHORT = [
    "experiment=digits",
    "plan.epochs=2",
    "plan.warmup_epochs=1",
    "plan.warmup_rounds=1",
    "plan.kd_steps=3",
    "plan.round_size=20",
    "plan.batch_size=16",
    "model.generator_steps=3",
    "model.noisy_features=32",
    "teacher=wrn16_1",
    "teacher.weights=teacher.safetensors",
    "trainer.accelerator=cpu",
    "logger=csv",
    "callbacks.progress=null",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A teacher trained for two epochs by the general command, once."""
    folder = tmp_path_factory.mktemp("trained")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        train(
            compose("train", overrides=[
                "model=supervised", "data=digits", "teacher=wrn16_1", "plan.epochs=2", "logger=csv",
                f"teacher.weights={folder}/teacher.safetensors", f"run_dir={folder}/run",
                "callbacks.progress=null", "trainer.accelerator=cpu",
            ])
        )  # fmt: skip
    return folder / "teacher.safetensors"


@pytest.fixture
def teacher_file(trained, config):
    """The teacher in the working directory of the test."""
    shutil.copy(trained, "teacher.safetensors")


@pytest.mark.usefixtures("teacher_file")
def test_a_run_leaves_everything_it_promised(config, tmp_path, capsys):
    summary, objects = train(config(*SHORT))
    run = tmp_path / "run"
    written = json.loads((run / "summary.json").read_text())
    assert written == summary
    keys = {
        "teacher_accuracy", "student_accuracy", "agreement", "seconds_teacher",
        "seconds_synthesis", "seconds_distillation", "images_banked", "student_parameters",
        "teacher_parameters", "seed",
    }  # fmt: skip
    assert keys <= written.keys()
    assert written["images_banked"] == 3 * 20
    assert written["seconds_teacher"] == 0.0
    for key in ("teacher_accuracy", "student_accuracy", "agreement"):
        assert 0 <= written[key] <= 1

    resolved = OmegaConf.load(run / "config.yaml")
    assert resolved.plan.kd_steps == 3
    assert "${" not in (run / "config.yaml").read_text()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"synthesis/bn", "synthesis/ce", "synthesis/adv", "bank/images"} <= rows[0].keys()
    with Image.open(run / "samples.png") as grid:
        assert grid.height == 10 * (16 * 3 + 2)
    with Image.open(run / "curves.png") as curves:
        assert curves.width > curves.height
    assert (run / "checkpoints" / "last.ckpt").is_file()
    out = capsys.readouterr().out
    assert "student accuracy" in out
    assert "student.safetensors" in out

    student, facts = load_classifier(run / "student.safetensors")
    images, labels = Digits(16).load("evaluation")
    right = (student(images / 255).argmax(1) == labels).float().mean().item()
    assert written["student_accuracy"] == pytest.approx(right, abs=1e-6)
    assert facts["class_names"][:2] == ["zero", "one"]
    assert objects["datamodule"].bank.added == 60


@pytest.mark.usefixtures("teacher_file")
def test_the_training_split_is_never_opened(config, monkeypatch):
    opened = []
    load = Digits.load

    def watched(self, split):
        opened.append(split)
        return load(self, split)

    monkeypatch.setattr(Digits, "load", watched)
    train(config(*SHORT))
    assert opened == ["evaluation"]


@pytest.mark.usefixtures("teacher_file")
def test_without_evaluation_no_real_image_is_opened_at_all(config, monkeypatch):
    def never(self, split):
        raise AssertionError(f"opened the {split} split")

    monkeypatch.setattr(Digits, "load", never)
    summary, _ = train(config(*SHORT, "data.evaluation=false"))
    assert summary["student_accuracy"] is None
    assert summary["teacher_accuracy"] is None
    assert 0 <= summary["agreement"] <= 1


def test_a_missing_teacher_is_trained_first_if_wanted(config, tmp_path):
    # The nested run takes its size from the data set's recipe; two epochs are enough to see it.
    summary, _ = train(
        config(*SHORT, "teacher.trained_by='model=supervised data=digits teacher=wrn16_1 "
        "plan.epochs=2 callbacks.progress=null'")
    )  # fmt: skip
    assert (tmp_path / "teacher.safetensors").is_file()
    assert summary["seconds_teacher"] > 0
    nested = json.loads((tmp_path / "run" / "teacher" / "summary.json").read_text())
    assert nested["accuracy"] == pytest.approx(summary["teacher_accuracy"])


def test_a_missing_teacher_is_trained_where_the_run_looks_for_it(config, tmp_path):
    short = [override for override in SHORT if not override.startswith("teacher.weights")]
    train(
        config(*short, "paths.teachers=${run_dir}/${seed}", "teacher.trained_by='model=supervised "
        "data=digits teacher=wrn16_1 plan.epochs=2 callbacks.progress=null'")
    )  # fmt: skip
    assert (tmp_path / "run" / "0" / "digits_wrn16_1.safetensors").is_file()


def test_a_missing_teacher_is_an_error_that_says_what_to_type(config):
    with pytest.raises(InputError) as error:
        train(config(*SHORT, "train_missing_teacher=false"))
    assert "'teacher.safetensors'" in str(error.value)
    assert "python train.py model=supervised data=digits teacher=wrn16_1" in str(error.value)


@pytest.mark.usefixtures("teacher_file")
def test_a_trained_teacher_is_not_replaced(config):
    before = Path("teacher.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists and would be replaced"):
        train(
            config("model=supervised", "data=digits", "teacher=wrn16_1", "logger=csv",
            "teacher.weights=teacher.safetensors", "trainer.accelerator=cpu", "run_dir=again")
        )  # fmt: skip
    assert Path("teacher.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.round_size=9", r"smaller than the number of classes \(10\)"),
        ("data.class_names=[zero,one]", "2 class names, but the data set has 10 classes"),
        ("data.class_names=letters", "No class names of 'letters'"),
        ("prompts=['no name here']", "must contain {name}"),
        ("data.image_shape=[1,18,18]", "divisible by 4"),
        ("teacher.architecture._target_=nayer_pl.networks.wrn40_1", "missing: block1.layer.2"),
        ("student.architecture._target_=nayer_pl.networks.resnet19", "no network"),
        ("bank.initial=nothing.safetensors", "not a saved memory bank"),
        ("plan.kd_steps=0", "plan.kd_steps must be at least 1"),
    ],
)
@pytest.mark.usefixtures("teacher_file")
def test_bad_input_is_one_clear_error_before_any_round(config, override, message, monkeypatch):
    def never(*_):
        raise AssertionError("a synthesis round had begun")

    monkeypatch.setattr("nayer_pl.NAYER.synthesise", never)
    with pytest.raises(InputError, match=message):
        train(config(*SHORT, override))


def test_run_directories_that_cannot_be_used_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare_run_dir(str(tmp_path / "file" / "run"))
    if os.path.isdir("/proc/self"):
        with pytest.raises(InputError, match="cannot be written"):
            prepare_run_dir("/proc/self/run")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("")
    with pytest.raises(InputError, match="already holds a run"):
        prepare_run_dir(str(tmp_path / "old"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(InputError, match="MB left"):
        prepare_run_dir(str(tmp_path / "full"))


@pytest.mark.usefixtures("teacher_file")
def test_an_interrupted_run_does_not_pretend_to_have_finished(config, tmp_path):
    class Interrupt(Callback):
        def on_train_batch_end(self, *_):
            raise KeyboardInterrupt

    cfg = config(*SHORT, "+callbacks.interrupt._target_=test_run_interrupt.Interrupt")
    module = types.ModuleType("test_run_interrupt")
    module.Interrupt = Interrupt
    sys.modules["test_run_interrupt"] = module
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(cfg)
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.usefixtures("teacher_file")
def test_the_bank_can_start_from_a_saved_one(config):
    _, first = train(config(*SHORT))
    first["datamodule"].bank.save("bank.safetensors")
    summary, second = train(
        config(*SHORT, "bank.initial=bank.safetensors", "bank.capacity=100", "run_dir=second")
    )
    bank = second["datamodule"].bank
    assert bank.added == 120
    assert len(bank) == 100
    assert torch.isfinite(torch.tensor(summary["synthesis_loss"]))
