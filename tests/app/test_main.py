"""train.py as a user types it."""

import os

import pytest
from omegaconf import OmegaConf
from running import train_py

from nayer_pl.app.signals import Terminated


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("sed=1", "no option sed; did you mean 'seed'?"),
        ("modle=nayer", "no option modle; did you mean 'model'"),
        ("epochs=3", "no option epochs; did you mean 'plan.epochs'?"),
        ("callbacks.checkpoint.minuts=3", "callbacks.checkpoint.minuts; did you mean 'minutes'?"),
        ("hydra.swep.dir=a", "no option hydra.swep; did you mean 'sweep'"),
        ("hydra/lanucher=local", "no option hydra/lanucher; did you mean 'hydra/launcher'"),
        ("+data.class_name=a", "no option data.class_name; did you mean 'class_names'"),
        ("model=nayr", "no model=nayr; did you mean 'nayer'? The choices are cmi, "),
        ("teacher=alexnet", "no teacher=alexnet; choose from custom, "),
        ("plan.epochs=[3", "'plan.epochs=[3' cannot be read (no viable alternative"),
        ("epochs", "'epochs' cannot be read (missing EQUAL"),
        ("+plan.epochs=3", "already at 'plan.epochs'"),
        ("data.mean=${nowhere}", "nowhere"),
        ("run_dir=null", "run_dir must be a directory, not None."),
    ],
)
def test_main__mistake(type_command, typed, answer):
    """One sentence, in a sweep too."""

    def look(cfg):
        OmegaConf.resolve(cfg)
        pytest.fail("composed")

    environment = dict(os.environ)
    in_sweeps = ("sed=1", "model=nayr", "data.mean=${nowhere}")
    for mode in [(), ("-m", "model_name=a")] if typed in in_sweeps else [()]:
        status, printed = type_command(look, *mode, typed)
        assert status == 1
        last = printed.strip().splitlines()[-1]
        assert last.startswith("error: "), printed
        assert answer in last
        assert "Traceback" not in printed
        assert os.environ == environment


def test_main__full_error(type_command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="Could not override 'sed'"):
        type_command(None, "sed=1")


def test_main__missing_teacher(type_command, tmp_path):
    """Of the run's directory nothing is left."""
    status, printed = type_command(None, "data=digits", "teacher=wrn16_1", "student=wrn16_1")
    assert status == 1
    last = printed.strip().splitlines()[-1]
    assert last.startswith("error: The teacher's weights are not at 'teachers/digits_wrn16_1")
    assert "python train.py model=supervised data=digits teacher=wrn16_1 teacher.weights=" in last
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["run", "sweep"])
def test_main__terminated(type_command, mode):
    """The exit status that a shell gives a process that SIGTERM ended; a sweep ends too."""
    jobs = []

    def training(cfg):
        jobs.append(cfg)
        raise Terminated

    assert type_command(training, *mode, *(["seed=0,1"] if mode else []))[0] == 143
    assert len(jobs) == 1


def test_train_py__digits(tmp_path):
    """Teacher, label text, synthesis, distillation and W&B offline, without a login."""
    clean = {"WANDB_MODE": "", "WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": os.devnull}
    words = [
        "experiment=digits", f"run_dir={tmp_path}/run", "plan.epochs=1", "plan.warmup_epochs=1",
        "plan.warmup_rounds=1", "plan.kd_steps=2", "model.generator_steps=2", "plan.round_size=20",
        "plan.batch_size=16", "teacher=wrn16_1", "teacher.weights=teacher.safetensors",
        "teacher.trained_by='model=supervised data=digits teacher=wrn16_1 plan.epochs=2'",
    ]  # fmt: skip
    status, said = train_py(*words, cwd=tmp_path, **clean)
    assert status == 0, said
    assert "wandb sync" in said
    assert "student accuracy" in said
    assert "warn" not in said.lower()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
