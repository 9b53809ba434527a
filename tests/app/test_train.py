import csv
import io
import json
import os
import shutil
import signal
import sys
import types
from contextlib import nullcontext, redirect_stdout

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from PIL import Image
from running import composed
from safetensors.torch import load_file

from nayer_pl import Digits, InputError, load_classifier
from nayer_pl.app.run_dir import prepare_run_dir
from nayer_pl.app.signals import Terminated
from nayer_pl.app.train import train, train_missing_teacher
from nayer_pl.runtime.files import write_durably

# A digits run of seconds: the real data, encoder, networks and files, only less of everything.
SHORT = [
    "experiment=digits", "plan.epochs=2", "plan.warmup_epochs=1", "plan.warmup_rounds=1",
    "plan.kd_steps=3", "plan.round_size=20", "plan.batch_size=16", "model.generator_steps=3",
    "model.noisy_features=32", "teacher=wrn16_1", "teacher.weights=teacher.safetensors",
    "trainer.accelerator=cpu", "logger=csv", "callbacks.progress=null",
]  # fmt: skip
TEACH = [
    "model=supervised", "data=digits", "teacher=wrn16_1", "teacher.weights=teacher.safetensors",
    "logger=csv", "trainer.accelerator=cpu", "callbacks.progress=null",
]  # fmt: skip
TRAINED = "0/digits_wrn16_1.safetensors"  # below the directory of `with_teacher`


@pytest.fixture(scope="module")
def with_teacher(tmp_path_factory):
    """A run that had to train its teacher first: its folder and summary."""
    folder = tmp_path_factory.mktemp("with_teacher")
    short = [override for override in SHORT if not override.startswith("teacher.weights")]
    # The nested run takes its size from the data set's recipe; two epochs are enough to see it.
    with composed(folder) as config:
        summary, _ = train(
            config(*short, "paths.teachers=${run_dir}/${seed}", "teacher.trained_by='"
            "model=supervised data=digits teacher=wrn16_1 plan.epochs=2 callbacks.progress=null'")
        )  # fmt: skip
    return folder / "run", summary


@pytest.fixture(scope="module")
def done(with_teacher, tmp_path_factory):
    """A run with that teacher: its folder, what it returned and printed, the splits it opened."""
    folder, opened, load = tmp_path_factory.mktemp("done"), [], Digits.load

    def watched(self, split):
        opened.append(split)
        return load(self, split)

    with composed(folder) as config, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digits, "load", watched)
        shutil.copy(with_teacher[0] / TRAINED, "teacher.safetensors")
        with redirect_stdout(io.StringIO()) as printed:
            # Exact: the exported student is asked again, and rounding could move its answers.
            summary, objects = train(config(*SHORT, "trainer.precision=32-true"))
    return types.SimpleNamespace(
        folder=folder / "run", summary=summary, objects=objects, printed=printed.getvalue(),
        opened=opened,
    )  # fmt: skip


@pytest.fixture
def teacher_file(with_teacher, config):
    """The teacher in the working directory of the test."""
    shutil.copy(with_teacher[0] / TRAINED, "teacher.safetensors")


def test_train__files(done):
    run = done.folder
    written = json.loads((run / "summary.json").read_text())
    assert written == done.summary
    keys = {
        "teacher_accuracy", "student_accuracy", "agreement", "seconds_synthesis",
        "seconds_distillation", "student_parameters", "teacher_parameters", "seed",
    }  # fmt: skip
    assert keys <= written.keys()
    assert written["images_banked"] == done.objects["datamodule"].bank.num_added == 3 * 20
    assert written["seconds_teacher"] == 0.0
    assert OmegaConf.load(run / "config.yaml").plan.kd_steps == 3
    assert "${" not in (run / "config.yaml").read_text()
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"synthesis/bn", "synthesis/ce", "synthesis/adv", "bank/images"} <= rows[0].keys()
    with Image.open(run / "samples.png") as grid:
        assert grid.height == 10 * (16 * 3 + 2)
    for name in ("curves.png", "checkpoints/last.ckpt"):
        assert (run / name).is_file()
    for text in ("student accuracy", "student.safetensors"):
        assert text in done.printed

    student, facts = load_classifier(run / "student.safetensors")
    images, labels = Digits(16).load("evaluation")
    right = (student(images / 255).argmax(1) == labels).float().mean().item()
    assert written["student_accuracy"] == pytest.approx(right, abs=1e-6)
    assert facts["class_names"][:2] == ["zero", "one"]
    assert done.opened == ["evaluation"]  # never the training split


@pytest.mark.usefixtures("teacher_file")
def test_train__no_evaluation_and_a_saved_bank(config, done, monkeypatch):
    """No real image is opened."""
    monkeypatch.setattr(Digits, "load", lambda self, split: pytest.fail(f"opened {split}"))
    done.objects["datamodule"].bank.save("bank.safetensors")
    saved = ["bank.initial=bank.safetensors", "bank.capacity=100"]
    summary, objects = train(config(*SHORT, *saved, "data.evaluation=false"))
    assert summary["student_accuracy"] is None
    assert summary["teacher_accuracy"] is None
    assert 0 <= summary["agreement"] <= 1
    bank = objects["datamodule"].bank
    assert (bank.num_added, len(bank)) == (120 - 3, 100)  # some of the new ones are held out


# The teacher


def test_missing_teacher__trained(with_teacher):
    run, summary = with_teacher
    assert (run / TRAINED).is_file()
    assert summary["seconds_teacher"] > 0
    nested = json.loads((run / "teacher" / "summary.json").read_text())
    # Trained in bfloat16, where the machine has it, two of 500 images may be rounded over.
    assert nested["accuracy"] == pytest.approx(summary["teacher_accuracy"], abs=2.1 / 500)


@pytest.fixture
def never(monkeypatch):
    monkeypatch.setattr("nayer_pl.app.train.run_training", lambda cfg: pytest.fail("trained"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("model", ["supervised", "scratch"])
def test_missing_teacher__not_needed(config, model):
    cfg = config("experiment=digits", f"model={model}", "teacher.weights=none.safetensors")
    assert cfg.train_missing_teacher
    assert train_missing_teacher(cfg) == 0.0


@pytest.mark.usefixtures("never")
def test_missing_teacher__seconds_after_resume(config, tmp_path):
    cfg = config(*SHORT)
    (tmp_path / "teacher.safetensors").touch()
    assert train_missing_teacher(cfg) == 0.0
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    (tmp_path / "run" / "teacher" / "summary.json").write_text('{"seconds_training": 12.5}')
    assert train_missing_teacher(cfg) == 12.5


# Files and directories


def test_train__resume_after_export(config, tmp_path, monkeypatch):
    """Stopped between weights and summary, in the first epoch, which has no checkpoint."""
    cfg = config(*TEACH, "plan.epochs=1", "resume=auto")

    def full(path, content):
        if path.name == "summary.json":
            raise OSError(28, "No space left on device", str(path))
        write_durably(path, content)

    with monkeypatch.context() as patch:
        patch.setattr("nayer_pl.app.output.write_durably", full)
        with pytest.raises(InputError, match=r"summary.json' cannot be written \(No space.*resume"):
            train(cfg)
    before = load_file("teacher.safetensors")
    summary, _ = train(cfg)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    after = load_file("teacher.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_prepare_run_dir__full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=10))
    with pytest.raises(InputError, match="MB left"):
        prepare_run_dir(str(tmp_path / "full"))


# Early ends


@pytest.fixture
def with_callback(config, monkeypatch):
    """A short run with one more callback."""

    def make(callback):
        module = types.ModuleType("test_run_callback")
        module.Their = callback
        monkeypatch.setitem(sys.modules, "test_run_callback", module)
        return config(*SHORT, "+callbacks.theirs._target_=test_run_callback.Their")

    return make


class Interrupt(Callback):
    def on_train_batch_end(self, *_):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("teacher_file")
def test_train__ctrl_c(with_callback, tmp_path, caplog):
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(with_callback(Interrupt))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "Ended by Ctrl-C. To resume: the same command with resume=auto run_dir=" in caplog.text


@pytest.mark.usefixtures("teacher_file")
def test_train__max_time(config, tmp_path, caplog):
    with pytest.raises(Terminated):
        train(config(*SHORT, "+trainer.max_time=00:00:00:00"))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "Ended by trainer.max_time" in caplog.text


class LateSigterm(Callback):
    def on_train_end(self, *_):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("teacher_file")
@pytest.mark.parametrize("sweep", [None, "of_many"])
def test_train__sigterm_at_the_end(with_callback, tmp_path, caplog, sweep):
    """The run is complete; of a sweep, the next job must not begin."""
    cfg = with_callback(LateSigterm)
    cfg.sweep = sweep
    with pytest.raises(Terminated) if sweep else nullcontext():
        train(cfg)
    assert (tmp_path / "run" / "summary.json").exists()
    assert "To resume" not in caplog.text
