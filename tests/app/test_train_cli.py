"""train.py as a user types it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=cwd, env={**os.environ, **env}, text=True, capture_output=True, timeout=300,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mistake", "offered"),
    [("model=nayr", "supervised"), ("model.generator_stepz=3", "generator_stepz")],
)
def test_train_py__mistyped(tmp_path, mistake, offered):
    done = run(mistake, cwd=tmp_path)
    assert done.returncode != 0
    assert offered in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_train_py__missing_teacher(tmp_path):
    done = run("data=digits", "teacher=wrn16_1", "student=wrn16_1", cwd=tmp_path)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: The teacher's weights are not at 'teachers/digits_wrn16_1")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.parametrize(
    ("sweep", "over"),
    [
        ("experiment=compare", "model and seed"),
        ("ablation=conditioning", "seed and model.conditioning"),
        ("hparams_search=optuna", "model.generator_lr"),
    ],
)
def test_check_start__sweep_without_m(type_command, tmp_path, sweep, over):
    if sweep.endswith("optuna"):
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["experiment=digits", sweep] if "experiment" not in sweep else [sweep]
    status, printed = type_command(None, *words, f"run_dir={tmp_path}/run")
    assert status == 1
    assert f"error: What was chosen is a sweep over {over}" in printed
    assert "-m" in printed
    assert not (tmp_path / "run").exists()


def test_check_start__torchrun(type_command, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    status, printed = type_command(lambda cfg: 0.5, "experiment=digits")
    assert status == 1
    assert "error: With torchrun every process must know the run's directory" in printed
    status, printed = type_command(lambda cfg: 0.5, "experiment=digits", "run_dir=run")
    assert status == 0, printed


def test_train_py__digits(tmp_path):
    """Teacher, label text, synthesis, distillation and W&B offline, without a login."""
    clean = {"WANDB_MODE": "", "WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": os.devnull}
    done = run(
        "experiment=digits", f"run_dir={tmp_path}/run", "plan.epochs=1", "plan.warmup_epochs=1",
        "plan.warmup_rounds=1", "plan.kd_steps=2", "model.generator_steps=2", "plan.round_size=20",
        "plan.batch_size=16", "teacher=wrn16_1", "teacher.weights=teacher.safetensors",
        "teacher.trained_by='model=supervised data=digits teacher=wrn16_1 plan.epochs=2'",
        cwd=tmp_path, **clean,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wandb sync" in done.stdout
    assert "student accuracy" in done.stdout
    assert "warn" not in done.stderr.lower(), done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
