import csv
import io
import json
import os
import shutil
import signal
import sys
import types
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from nayer_pl import Digits, InputError, load_classifier
from nayer_pl.app.train import prepare_run_dir, train, train_missing_teacher
from nayer_pl.callbacks.checkpoint import Terminated

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
TRAINED = "0/digits_wrn16_1.safetensors"  # below the directory of `with_teacher`


@pytest.fixture(scope="module")
def with_teacher(config_in, tmp_path_factory):
    """A run that had to train its teacher first: its folder and summary."""
    folder = tmp_path_factory.mktemp("with_teacher")
    short = [override for override in SHORT if not override.startswith("teacher.weights")]
    # The nested run takes its size from the data set's recipe; two epochs are enough to see it.
    with config_in(folder) as config:
        summary, _ = train(
            config(*short, "paths.teachers=${run_dir}/${seed}", "teacher.trained_by='"
            "model=supervised data=digits teacher=wrn16_1 plan.epochs=2 callbacks.progress=null'")
        )  # fmt: skip
    return folder / "run", summary


@pytest.fixture(scope="module")
def done(config_in, with_teacher, tmp_path_factory):
    """A run with that teacher: its folder, what it returned and printed, the splits it opened."""
    folder, opened, load = tmp_path_factory.mktemp("done"), [], Digits.load

    def watched(self, split):
        opened.append(split)
        return load(self, split)

    with config_in(folder) as config, pytest.MonkeyPatch.context() as patch:
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


def test_a_run_leaves_everything_it_promised(done):
    run = done.folder
    written = json.loads((run / "summary.json").read_text())
    assert written == done.summary
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
    assert "student accuracy" in done.printed
    assert "student.safetensors" in done.printed

    student, facts = load_classifier(run / "student.safetensors")
    images, labels = Digits(16).load("evaluation")
    right = (student(images / 255).argmax(1) == labels).float().mean().item()
    assert written["student_accuracy"] == pytest.approx(right, abs=1e-6)
    assert facts["class_names"][:2] == ["zero", "one"]
    assert done.objects["datamodule"].bank.num_added == 60


def test_the_training_split_is_never_opened(done):
    assert done.opened == ["evaluation"]


@pytest.mark.usefixtures("teacher_file")
def test_without_evaluation_no_real_image_is_opened_at_all(config, monkeypatch):
    def never(self, split):
        raise AssertionError(f"opened the {split} split")

    monkeypatch.setattr(Digits, "load", never)
    summary, _ = train(config(*SHORT, "data.evaluation=false"))
    assert summary["student_accuracy"] is None
    assert summary["teacher_accuracy"] is None
    assert 0 <= summary["agreement"] <= 1


def test_a_missing_teacher_is_trained_first_where_the_run_looks_for_it(with_teacher):
    run, summary = with_teacher
    assert (run / TRAINED).is_file()
    assert summary["seconds_teacher"] > 0
    nested = json.loads((run / "teacher" / "summary.json").read_text())
    # Trained in bfloat16, where the machine has it, two of 500 images may fall on the other side.
    assert nested["accuracy"] == pytest.approx(summary["teacher_accuracy"], abs=2.1 / 500)


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


def test_a_run_that_ended_before_its_summary_goes_on_in_spite_of_its_file(
    config, tmp_path, monkeypatch
):
    """As if it had been killed there; in its first epoch, from which there is no checkpoint."""
    cfg = config(
        "model=supervised", "data=digits", "teacher=wrn16_1", "plan.epochs=1",
        "teacher.weights=teacher.safetensors", "logger=csv", "trainer.accelerator=cpu",
        "callbacks.progress=null", "resume=auto",
    )  # fmt: skip

    def full(path, _):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("nayer_pl.app.train.write_summary", full)
        with pytest.raises(InputError, match=r"summary.json' cannot be written \(No space.*resume"):
            train(cfg)
    before = load_file("teacher.safetensors")
    summary, _ = train(cfg)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    after = load_file("teacher.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)


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

    monkeypatch.setattr("nayer_pl.NAYER.synthesize", never)
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


def test_no_teacher_is_trained_for_a_run_that_asks_none(config, monkeypatch):
    monkeypatch.setattr("nayer_pl.app.train._train", lambda cfg: pytest.fail("trained"))
    for model in ("supervised", "scratch"):
        cfg = config("experiment=digits", f"model={model}", "teacher.weights=none.safetensors")
        assert cfg.train_missing_teacher
        assert train_missing_teacher(cfg) == 0.0


def test_a_run_that_goes_on_knows_how_long_its_teacher_took(config, tmp_path):
    cfg = config(*SHORT)
    (tmp_path / "teacher.safetensors").touch()
    assert train_missing_teacher(cfg) == 0.0
    (tmp_path / "run" / "teacher").mkdir(parents=True)
    (tmp_path / "run" / "teacher" / "summary.json").write_text('{"seconds_training": 12.5}')
    assert train_missing_teacher(cfg) == 12.5


@pytest.fixture
def with_callback(config, monkeypatch):
    """A short run with one more callback."""

    def make(callback):
        module = types.ModuleType("test_run_callback")
        module.Their = callback
        monkeypatch.setitem(sys.modules, "test_run_callback", module)
        return config(*SHORT, "+callbacks.theirs._target_=test_run_callback.Their")

    return make


@pytest.mark.usefixtures("teacher_file")
def test_an_interrupted_run_says_how_to_go_on_and_is_not_finished(with_callback, tmp_path, caplog):
    class Interrupt(Callback):
        def on_train_batch_end(self, *_):
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(with_callback(Interrupt))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "Ended by Ctrl-C. To go on: the same command with resume=auto run_dir=" in caplog.text


@pytest.mark.usefixtures("teacher_file")
def test_nor_does_one_that_has_no_time(config, tmp_path, caplog):
    with pytest.raises(Terminated):
        train(config(*SHORT, "+trainer.max_time=00:00:00:00"))
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "Ended by trainer.max_time" in caplog.text


@pytest.mark.usefixtures("teacher_file")
@pytest.mark.parametrize("sweep", [None, "of_many"])
def test_sigterm_at_the_very_end_ends_what_would_follow(with_callback, tmp_path, caplog, sweep):
    class Late(Callback):
        def on_train_end(self, *_):
            os.kill(os.getpid(), signal.SIGTERM)

    cfg = with_callback(Late)
    cfg.sweep = sweep
    with pytest.raises(Terminated) if sweep else nullcontext():
        train(cfg)
    assert (tmp_path / "run" / "summary.json").exists()
    assert "To go on" not in caplog.text


@pytest.mark.usefixtures("teacher_file")
def test_the_bank_can_start_from_a_saved_one(config, done):
    done.objects["datamodule"].bank.save("bank.safetensors")
    options = ["bank.initial=bank.safetensors", "bank.capacity=100"]
    summary, objects = train(config(*SHORT, *options))
    bank = objects["datamodule"].bank
    assert bank.num_added == 120
    assert len(bank) == 100
    assert torch.isfinite(torch.tensor(summary["synthesis_loss"]))
